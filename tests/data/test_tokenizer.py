import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, processors

from pdl_jax.data import tokenizer as tokenizer_module
from pdl_jax.data.pretrained_tokenizer import open_plain_tokenizer
from pdl_jax.data.tokenizer import (
  END_OF_TEXT,
  END_OF_TURN,
  START_OF_TURN,
  Tokenizer,
  spelled,
)
from pdl_jax.errors import DataError
from tests import many_scripts
from tests.tiny_model import smollm2

GOLDEN = Path(__file__).parents[1] / 'golden'
TEXTS = ['the cat sat on the mat', 'the dog sat on the log in 1999'] * 5
SCRIPTS = [
  'Plain words, and  two spaces.', 'naïve café — “quotes”', 'Привет, мир',
  '日本語のテキスト', 'مرحبا بالعالم', 'हिन्दी', '👩‍👩‍👧 family',
  'tab\tline\n\nend ', ' leading', 'x == y_1 and {"a": [1, 2]}', '',
]


@pytest.fixture(scope='module')
def trained():
  return Tokenizer.train(TEXTS, 272, 'small')


@pytest.fixture(scope='module')
def pretrained():
  return open_plain_tokenizer(smollm2())


@pytest.fixture(params=['trained', 'pretrained'])
def tokenizer(request):
  return request.getfixturevalue(request.param)


def test_texts_and_their_bytes_come_back(tokenizer):
  for text, ids in zip(SCRIPTS, tokenizer.encode(SCRIPTS), strict=True):
    assert tokenizer.decode(ids) == text
    assert b''.join(map(tokenizer.raw, ids)) == text.encode()
    for number in ids:
      assert 0 <= number < tokenizer.vocab_size
      # The backend writes one sign for whatever is no character.
      lossy = tokenizer.decode([number])
      assert tokenizer.raw(number).decode(errors='replace') == lossy
      if '\ufffd' not in lossy:
        assert tokenizer.token(number) == lossy


def without_space(text):
  return ''.join(text.split(' '))


def check_words(tokenizer, texts):
  found = tokenizer.encode_words(texts)
  joined = [[number for _, ids in words for number in ids] for words in found]
  assert joined == tokenizer.encode(texts)
  for text, words in zip(texts, found, strict=True):
    spelled = ''.join(word for word, _ in words)
    assert without_space(spelled) == without_space(text)
    for word, ids in words:
      assert ids
      assert tokenizer.decode(ids) in (word, f' {word}')
      assert word.isspace() or not word.startswith(' ')


def test_words_hold_the_ids_and_the_characters_of_the_text(tokenizer):
  controls = [f'x{END_OF_TURN} {START_OF_TURN}', 'un 1999 is 10 000.50 ']
  check_words(tokenizer, [*SCRIPTS, *controls])
  assert tokenizer.encode_words([]) == []


@settings(deadline=None, max_examples=50)
@given(texts=st.lists(st.text(), max_size=3))
def test_any_text_comes_back_is_its_words_and_no_control_token(trained, texts):
  check_words(trained, texts)
  for text, ids in zip(texts, trained.encode(texts), strict=True):
    assert trained.decode(ids) == text
    assert not set(ids) & set(trained.special_ids)


def test_golden_words(pretrained):
  text = "The  café's the Théâtre's, 42\n\n—the end"
  (found,) = pretrained.encode_words([text])
  assert [word for word, _ in found] == [
    'The', ' ', 'café', "'s", 'the', 'Théâtre', "'s", ',', ' ', '4', '2',
    '\n', '\n', '—', 'the', 'end',
  ]  # fmt: skip
  # One character of several bytes, and a word of several pieces.
  pieces = {
    word: [pretrained.token(number) for number in ids] for word, ids in found
  }
  assert ''.join(pieces['Théâtre']) == ' Théâtre'
  assert len(pieces['Théâtre']) > 1
  assert pieces['The'] == ['The']
  # A word with and without a space before it is one word.
  (found,) = pretrained.encode_words(['mat (mat) mat'])
  words, ids = zip(*found, strict=True)
  assert words == ('mat', '(', 'mat', ')', 'mat')
  assert ids[0] == ids[2] != ids[4]


def test_numbers_of_chat_tokens_and_of_all(tokenizer, trained):
  specials = [END_OF_TEXT, START_OF_TURN, END_OF_TURN]
  ids = [tokenizer.encode_template(token) for token in specials]
  assert ids == [[0], [1], [2]]
  assert tokenizer.end_of_turn == 2
  sizes = tokenizer.vocab_size, tokenizer.special_ids
  assert sizes == ((272, (0, 1, 2)) if tokenizer is trained
                   else (49_152, tuple(range(17))))  # fmt: skip


def test_digits_are_single_tokens(tokenizer):
  for text in ('1999', 'in 2024,', 'x12y345', '10 000.50'):
    (ids,) = tokenizer.encode([text])
    pieces = [tokenizer.token(number) for number in ids]
    digits = [piece for piece in pieces if any(map(str.isdigit, piece))]
    assert digits == [character for character in text if character.isdigit()]


def test_content_cannot_end_a_turn(tokenizer):
  for control in (END_OF_TURN, START_OF_TURN, END_OF_TEXT):
    text = f'before{control}after {control}'
    (ids,) = tokenizer.encode([text])
    assert not set(ids) & set(tokenizer.special_ids)
    assert tokenizer.decode(ids) == text


def test_specials_are_left_out_of_text_unless_asked_for(tokenizer):
  (ids,) = tokenizer.encode(['fin'])
  ids.append(tokenizer.end_of_turn)
  assert tokenizer.decode(ids) == 'fin'
  assert tokenizer.decode(np.array(ids), keep_special=True) == (
    f'fin{END_OF_TURN}'
  )
  assert tokenizer.token(2) == END_OF_TURN


def test_every_byte_has_the_character_of_the_tokenizers():
  table = tokenizer_module._BYTES
  assert sorted(table.values()) == list(range(256))
  assert set(table) == set(pre_tokenizers.ByteLevel.alphabet())


@pytest.mark.parametrize(('raw', 'text'), [
  (b'', ''),
  (b' the\n', ' the\n'),
  ('naïve 日本'.encode(), 'naïve 日本'),
  (b'\xe2\x80', '<0xE2><0x80>'),
  (b'\x99 a\xc3', '<0x99> a<0xC3>'),
  ('\ud83d'.encode(errors='surrogatepass'), '<0xED><0xA0><0xBD>'),
  (b'<0xE2>', '<0xE2>'),
])  # fmt: skip
def test_bytes_that_are_no_character_can_be_read(raw, text):
  assert spelled(raw) == text


def test_a_type_that_is_part_of_a_character_shows_its_bytes(pretrained):
  (ids,) = pretrained.encode(['\U0001f9ff'])
  texts = [pretrained.token(number) for number in ids]
  assert len(texts) > 1 and '\ufffd' not in ''.join(texts)
  assert ''.join(texts) == '<0xF0><0x9F><0xA7><0xBF>'
  assert pretrained.token(pretrained.end_of_turn) == END_OF_TURN
  assert pretrained.raw(pretrained.end_of_turn) == END_OF_TURN.encode()
  with pytest.raises(DataError, match='no token 49152, only 49152'):
    pretrained.raw(49_152)


def test_fingerprint_names_the_definition(tmp_path, trained, pretrained):
  path = tmp_path / 'tokenizer.json'
  path.write_text(trained.definition, 'utf-8')
  loaded = Tokenizer.load(path, 'same')
  assert loaded.fingerprint == trained.fingerprint
  assert loaded.name == 'same'
  assert loaded.encode(SCRIPTS) == trained.encode(SCRIPTS)
  again = Tokenizer.train(TEXTS, 272, 'small')
  assert again.fingerprint == trained.fingerprint
  others = [
    Tokenizer.train(TEXTS, 271, 'small'),
    Tokenizer.train(['other words altogether'] * 9, 272, 'small'),
    pretrained,
  ]
  prints = {t.fingerprint for t in (trained, *others)}
  assert len(prints) == 4


def test_a_tokenizer_without_an_end_of_turn_is_refused():
  with pytest.raises(DataError, match=r'bare has no <\|im_end\|> token'):
    Tokenizer(Backend(models.BPE()), 'bare')


def test_a_thousand_texts_in_many_scripts_have_the_ids_of_transformers(
  pretrained,
):
  """Of the same GGUF file; golden/make_tokens.py says what that was told."""
  golden = json.loads((GOLDEN / 'tokens.json').read_text('utf-8'))
  encode = lambda text: pretrained.encode([text])[0]
  assert encode(many_scripts.texts()[7]) == golden['eighth']
  assert many_scripts.digests(encode) == golden['smollm2']


@pytest.mark.parametrize(('template', 'start'), [
  (f'{START_OF_TURN} $A', START_OF_TURN), (f'$A {END_OF_TURN}', END_OF_TEXT),
])  # fmt: skip
def test_a_start_is_what_is_put_before_a_text_and_nothing_after_it(
  trained, template, start
):
  backend = Backend.from_str(trained.definition)
  ids = [(name, backend.token_to_id(name)) for name in trained.specials]
  backend.post_processor = processors.TemplateProcessing(
    single=template, special_tokens=ids
  )
  assert Tokenizer(backend, 'own').start_of_text == dict(ids)[start]


def test_a_letter_of_two_pieces_is_no_start():
  backend = Backend(models.BPE({'▁': 0, 'a': 1}, []))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.add_special_tokens([END_OF_TURN, END_OF_TEXT])
  tokenizer = Tokenizer(backend, 'own')
  assert tokenizer.encode(['a']) == [[0, 1]]
  assert tokenizer.start_of_text == tokenizer.end_of_text
