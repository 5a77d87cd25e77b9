"""Tokenizers of folders and of GGUF files: what ends a text, and its ids."""

import json

import pytest
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Backend

from pdl_jax.data.gguf_backend import byte_level, read_backend
from pdl_jax.data.hf_tokenizer import open_gguf_tokenizer, open_tokenizer
from pdl_jax.data.hf_tokenizer_files import token_ids
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.errors import DataError
from pdl_jax.model.pretrained.gguf import GGUFModel

# As Llama 3 has them: what ends a text, a message to a tool, a turn.
ENDS = ['<|end_of_text|>', '<|eom_id|>', '<|eot_id|>']
TURNS = (
  '{% for m in messages %}{{ m.role }}: {{ m.content }}<|eot_id|>{% endfor %}'
  '{% if add_generation_prompt %}assistant: {% endif %}'
)
WORDS = {'gpt-2': 'gpt2', 'smollm': 'digits', 'qwen2': 'qwen2',
         'llama-bpe': 'llama3'}  # fmt: skip


def write(path, ids=None, **options):
  """A folder whose tokens 2, 3 and 4 are the ends."""
  path.mkdir()
  backend = Backend(models.BPE(vocab={'a': 0, 'b': 1}, merges=[]))
  backend.add_special_tokens([AddedToken(t, special=True) for t in ENDS])
  backend.save(str(path / 'tokenizer.json'))
  (path / 'tokenizer_config.json').write_text(json.dumps(options), 'utf-8')
  for name, value in (ids or {}).items():
    text = json.dumps({'eos_token_id': value})
    (path / f'{name}.json').write_text(text, 'utf-8')
  return path


def test_all_of_a_list_of_ends_stop_an_answer(tmp_path):
  ids = {'config': [2, 3, 4], 'generation_config': [2, 4]}
  folder = write(tmp_path / 'a', ids, eos_token=ENDS[2], chat_template=TURNS)
  tokenizer = open_tokenizer(folder, 8)
  assert (tokenizer.end_of_turn, tokenizer.end_of_text) == (4, 2)
  assert tokenizer.stops == (4, 2, 3)
  assert token_ids(tokenizer)['eos_token_id'] == [4, 2, 3]


def test_a_list_alone_says_what_ends_a_text(tmp_path):
  folder = write(tmp_path / 'a', {'config': [3, 99, 2]})
  tokenizer = open_tokenizer(folder, 8)
  assert (tokenizer.end_of_turn, tokenizer.end_of_text) == (3, 2)
  assert tokenizer.stops == (3, 2)


def test_one_end_serves_for_turn_and_text(tmp_path):
  tokenizer = open_tokenizer(write(tmp_path / 'a', {'config': 2}), 8)
  assert tokenizer.stops == (2,)
  tokenizer = open_tokenizer(write(tmp_path / 'b', eos_token=ENDS[1]), 8)
  assert tokenizer.end_of_turn == tokenizer.end_of_text == 3


@pytest.mark.parametrize('ids', [None, [], [99], -1, [None], '2'])
def test_a_folder_without_an_end_is_one_line(tmp_path, ids):
  folder = write(tmp_path / 'a', {'config': ids, 'generation_config': None})
  with pytest.raises(DataError, match='says what ends a text') as error:
    open_tokenizer(folder, 8)
  for part in ('a:', 'eos_token)', 'generation_config.json', 'eos_token_id'):
    assert part in str(error.value)
  assert '\n' not in str(error.value)


def test_an_eos_token_that_is_none_is_named(tmp_path):
  folder = write(tmp_path / 'a', eos_token='</s>')
  with pytest.raises(DataError, match='tokenizer a has no </s> token'):
    open_tokenizer(folder, 8)


def gguf_model(path, **metadata):
  model = GGUFModel.__new__(GGUFModel)
  model.path = path / 'm.gguf'
  model.fields = {
    key if '.' in key else f'tokenizer.ggml.{key}': value
    for key, value in metadata.items()
  }
  return model


def bytes_model(path, pre='llama-bpe', **metadata):
  """Bytes, one merge, and the ends."""
  trained = json.loads(Tokenizer.train([], 259, 'bytes').definition)
  signs = list(trained['model']['vocab'])[3:]
  tokens = [*signs, 'ab', *ENDS]
  return gguf_model(path, **{
    'model': 'gpt2', 'pre': pre, 'tokens': tokens, 'merges': ['a b'],
    'token_type': [1] * len(signs) + [1, 3, 4, 3], 'eos_token_id': 257,
    **metadata,
  })  # fmt: skip


@pytest.mark.parametrize(('pre', 'words'), [
  ('gpt-2', ["IT", "'", 'S', 'Ġ12345', 'Ġx', '\ufffd', "Ġdon", "'t"]),
  ('smollm', ["IT", "'", 'S', 'Ġ', '1', '2', '3', '4', '5', 'Ġx', '\ufffd',
              'Ġdon', "'t"]),
  ('qwen2', ["IT", "'S", 'Ġ', '1', '2', '3', '4', '5', 'Ġx', '\ufffd', 'Ġdon',
             "'t"]),
  ('llama-bpe', ["IT", "'S", 'Ġ', '123', '45', 'Ġx', '\ufffd', 'Ġdon', "'t"]),
])  # fmt: skip
def test_words_are_those_of_the_family(pre, words):
  """Case of clitics, and digits: where the families differ."""
  backend = byte_level(models.BPE(), WORDS[pre])
  text = "IT'S 12345 x… don't"
  found = [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
  assert [w if w != 'âĢ¦' else '\ufffd' for w in found] == words


def test_lines_and_marks_before_words_in_the_newer_families():
  for pre in ('qwen2', 'llama3'):
    cut = byte_level(models.BPE(), pre).pre_tokenizer.pre_tokenize_str
    assert [w for w, _ in cut('(he)!\n\n x')] == ['(he', ')!ĊĊ', 'Ġx']
    assert [w for w, _ in cut("I'Sx")] == ['I', "'S", 'x']


def test_accents_are_composed_for_qwen2_alone(tmp_path):
  for pre in WORDS:
    backend = read_backend(bytes_model(tmp_path, pre).fields, 'm')
    text = backend.decode(backend.encode('e\u0301').ids)
    assert text == ('\u00e9' if pre == 'qwen2' else 'e\u0301')


def test_a_file_ends_starts_and_chats_by_its_own_tokens(tmp_path):
  model = bytes_model(tmp_path, bos_token_id=257, eot_token_id=259,
                      **{'tokenizer.chat_template': TURNS})  # fmt: skip
  tokenizer = open_gguf_tokenizer(model, 260)
  assert (tokenizer.end_of_turn, tokenizer.end_of_text) == (259, 257)
  assert tokenizer.start_of_text == 257 and tokenizer.stops == (259, 257)
  assert tokenizer.chat is not None and tokenizer.vocab_size == 260
  assert tokenizer.specials == (ENDS[0], ENDS[2])
  (ids,) = tokenizer.encode(['ab'])
  assert ids == [256] and tokenizer.decode(ids) == 'ab'
  assert tokenizer.encode_template(f'ab{ENDS[2]}') == [256, 259]
  plain = bytes_model(tmp_path, eot_token_id=259)
  assert open_gguf_tokenizer(plain, 260).stops == (257, 259)
  # A token of the user's is one, and no control token.
  assert tokenizer.encode([ENDS[1]]) == [[258]]
  (spelled,) = tokenizer.encode([ENDS[2]])
  assert 259 not in spelled


def test_a_file_without_an_end_is_one_line(tmp_path):
  model = bytes_model(tmp_path, eos_token_id=None)
  with pytest.raises(
    DataError, match=r'm\.gguf: no tokenizer\.ggml\.eos_token_id says'
  ):
    open_gguf_tokenizer(model, 260)


def test_whole_words_need_no_merges_in_llama_3_alone(tmp_path):
  for pre in ('llama-bpe', 'gpt-2'):
    model = bytes_model(tmp_path, pre, merges=[])
    found = open_gguf_tokenizer(model, 260).encode(['ab'])
    assert (found == [[256]]) == (pre == 'llama-bpe')


def pieces_model(path, **metadata):
  """SentencePiece: the better score is merged first."""
  pieces = ['\u2581', 'a', 'b', 'c', 'ab', 'bc', '\u2581a', '</', 's>', '<',
            '/', 's', '>']  # fmt: skip
  scores = [-9.0, -9, -9, -9, -2, -1, -3, -4, -4, -9, -9, -9, -9]
  raw = [f'<0x{number:02X}>' for number in range(256)]
  return gguf_model(path, **{
    'model': 'llama', 'tokens': ['<unk>', '<s>', '</s>', *raw, *pieces],
    'scores': [0.0] * 259 + scores,
    'token_type': [2, 3, 3] + [6] * 256 + [1] * len(pieces),
    'bos_token_id': 1, 'eos_token_id': 2, 'unknown_token_id': 0, **metadata,
  })  # fmt: skip


def test_pieces_with_the_best_scores_are_merged_first(tmp_path):
  tokenizer = open_gguf_tokenizer(pieces_model(tmp_path), 272)
  pieces = lambda text: [
    tokenizer.raw(n).decode(errors='replace')
    for n in tokenizer.encode([text])[0]
  ]
  assert pieces('abc') == [' a', 'bc']
  assert pieces('cabc') == [' ', 'c', 'a', 'bc']
  assert pieces('bab') == [' ', 'b', 'ab']
  assert pieces('a b') == [' a', ' ', 'b']
  for text in ('abc', 'a  b', ' b', 'c\u00e9\n\U0001f600', '</s><s>'):
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {0, 1, 2}
  assert tokenizer.start_of_text == 1 and tokenizer.stops == (2,)


def test_no_space_stands_before_pieces_where_the_file_says_so(tmp_path):
  model = pieces_model(tmp_path, add_space_prefix=False, add_bos_token=False)
  tokenizer = open_gguf_tokenizer(model, 272)
  (ids,) = tokenizer.encode(['bc'])
  assert [tokenizer.raw(n) for n in ids] == [b'bc']
  assert tokenizer.decode(tokenizer.encode([' a'])[0]) == ' a'
  assert tokenizer.start_of_text == 2


@pytest.mark.parametrize('metadata', [
  {}, {'model': 'bert'}, {'model': 'gpt2', 'pre': 'tekken'},
  {'model': 'gpt2'}, {'model': 'llama'},
])  # fmt: skip
def test_other_kinds_are_refused_with_advice(tmp_path, metadata):
  with pytest.raises(DataError, match=r'm\.gguf: tokenizer .* is not read'
                     r'.*gpt-2, smollm, .*folder with tokenizer\.json$'):
    open_gguf_tokenizer(gguf_model(tmp_path, **metadata), 9)
