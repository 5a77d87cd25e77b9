"""Tokenizers of folders and of GGUF files: what ends a text, and its ids."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, models, normalizers, processors
from tokenizers import Tokenizer as Backend

from pdl_jax.data.pretrained_tokenizer import (
  open_gguf_tokenizer,
  open_tokenizer,
  token_ids,
)
from pdl_jax.data.tokenizer import Tokenizer, byte_level
from pdl_jax.errors import DataError
from pdl_jax.pretrained.gguf import GGUFModel

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


LIKE_LLAMA = (
  {'config': [2, 3, 4], 'generation_config': [2, 4]},
  {'eos_token': ENDS[2], 'chat_template': TURNS},
)


@pytest.mark.parametrize(('ids', 'options', 'ends', 'stops'), [
  (*LIKE_LLAMA, (4, 2), (4, 2, 3)),
  ({'config': [3, 99, 2]}, {}, (3, 2), (3, 2)),
  ({'config': 2}, {}, (2, 2), (2,)),
  ({}, {'eos_token': ENDS[1]}, (3, 3), (3,)),
])  # fmt: skip
def test_what_ends_a_turn_and_a_text(tmp_path, ids, options, ends, stops):
  tokenizer = open_tokenizer(write(tmp_path / 'a', ids, **options), 8)
  assert (tokenizer.end_of_turn, tokenizer.end_of_text) == ends
  assert tokenizer.stops == stops
  assert token_ids(tokenizer)['eos_token_id'] == list(stops)
  if ends == (4, 2):
    assert tokenizer.ends() == (
      "'<|eot_id|>' ends a turn, '<|end_of_text|>' a text; an answer stops at "
      "'<|eot_id|>' '<|end_of_text|>' '<|eom_id|>'"
    )


@pytest.mark.parametrize('name', ['config', 'generation_config'])
@pytest.mark.parametrize('ids', ['2', [2, '3'], 2.5, True, {'a': 2}])
def test_an_end_that_is_no_id_is_named(tmp_path, name, ids):
  folder = write(tmp_path / 'a', {name: ids}, eos_token=ENDS[2])
  with pytest.raises(DataError, match=rf'{name}\.json: eos_token_id is .* no'):
    open_tokenizer(folder, 8)


@pytest.mark.parametrize('ids', [None, [], [99], -1, [None]])
def test_a_folder_without_an_end_is_one_line(tmp_path, ids):
  folder = write(tmp_path / 'a', {'config': ids, 'generation_config': None})
  with pytest.raises(DataError, match='says what ends a text') as error:
    open_tokenizer(folder, 8)
  for part in ('a:', 'eos_token)', 'generation_config.json', 'eos_token_id'):
    assert part in str(error.value)
  assert '\n' not in str(error.value)


def test_tokens_behind_the_last_row_are_never_made_by_text(tmp_path):
  """As google/gemma-3-1b-it has one; the others have rows."""
  folder = write(tmp_path / 'a', {'config': [2, 4]}, eos_token=ENDS[0])
  tokenizer = open_tokenizer(folder, 4)
  assert tokenizer.vocab_size == 4 and tokenizer.stops == (2,)
  assert tokenizer.special_ids == (2, 3) and tokenizer.specials == tuple(ENDS)
  assert tokenizer.encode([f'ab{ENDS[2]}']) == [[0, 1]]
  tokenizer.check_rows([0, 3], 'x')
  with pytest.raises(
    DataError, match=r"^x makes token 4 \('<\|eot_id\|>'\) of tokenizer a, and"
    ' its model has 4 rows'
  ):  # fmt: skip
    tokenizer.check_rows([4, 0], 'x')


def test_an_end_or_a_beginning_without_a_row_is_refused(tmp_path):
  folder = write(tmp_path / 'a', eos_token=ENDS[2])
  with pytest.raises(DataError, match=r"'<\|eot_id\|>', which ends a text, is "
                     'token 4, and its model has 4 rows'):  # fmt: skip
    open_tokenizer(folder, 4)
  backend = Backend.from_file(str(folder / 'tokenizer.json'))
  backend.post_processor = processors.TemplateProcessing(
    single=[ENDS[2], '$A'], special_tokens=[(ENDS[2], 4)]
  )
  backend.save(str(folder / 'tokenizer.json'))
  config = '{"eos_token": "<|eom_id|>"}'
  (folder / 'tokenizer_config.json').write_text(config, 'utf-8')
  with pytest.raises(DataError, match='beginning of every text makes token 4'):
    open_tokenizer(folder, 4)


@pytest.mark.parametrize(('options', 'told'), [
  ({'eos_token': 'a'}, r"'a' \(token 0\) is to end a text, and is an ordinary"
                       ' word .*; mend eos_token'),
  ({}, r"'a' \(token 0\) is to end a text"),
  ({'eos_token': '</s>'}, 'tokenizer a has no </s> token'),
])  # fmt: skip
def test_an_end_that_is_no_control_token_is_refused(tmp_path, options, told):
  folder = write(tmp_path / 'a', {'config': 0}, **options)
  with pytest.raises(DataError, match=told):
    open_tokenizer(folder, 8)


@pytest.mark.parametrize(('text', 'says'), [
  ('', 'it is empty'), ('{"a', 'is not JSON'), ('[]', 'but a list'),
  ('{"eos_token": "a", "eos_token": "b"}', "'eos_token' stands twice"),
  ('{"eos_token": true}', 'eos_token is True'),
  ('{"eos_token": ["</s>"]}', 'eos_token is'),
  ('{"eos_token": {"content": 2}}', 'eos_token is'),
  ('{"eos_token": {"special": true}}', 'eos_token is'),
  ('{"chat_template": 3}', 'chat_template is a int'),
  ('{"chat_template": {"default": "x"}}', 'chat_template is a dict'),
  ('{"chat_template": [1]}', 'chat_template is a list'),
  ('{"chat_template": [{"name": "default"}]}', 'chat_template is a list'),
  ('{"chat_template": [{"name": "rag", "template": "x"}]}',
   "names no 'default', only 'rag'"),
])  # fmt: skip
def test_a_wrong_tokenizer_config_is_one_line(tmp_path, text, says):
  folder = write(tmp_path / 'a', {'config': 2})
  file = folder / 'tokenizer_config.json'
  for data in (text.encode(), text.encode('utf-16')):
    file.write_bytes(data)
    says = says if data == text.encode() else 'is not UTF-8 text'
    with pytest.raises(DataError, match=says) as error:
      open_tokenizer(folder, 8)
    assert str(file) in str(error.value) and '\n' not in str(error.value)


def test_templates_are_utf_8_and_a_file_comes_first(tmp_path, monkeypatch):
  read = Path.read_text
  monkeypatch.setattr(Path, 'read_text', lambda path, encoding='latin-1', **k:
                      read(path, encoding, **k))  # fmt: skip
  templates = [{'name': name, 'template': TURNS} for name in ('x', 'default')]
  folder = write(tmp_path / 'a', {'config': 2}, chat_template=templates)
  assert open_tokenizer(folder, 8).chat.source == TURNS
  file = folder / 'chat_template.jinja'
  file.write_bytes(f'«{TURNS}»'.encode())
  assert open_tokenizer(folder, 8).chat.source == f'«{TURNS}»'
  for encoding in ('utf-16', 'utf-16-le', 'latin-1'):
    file.write_bytes(f'{TURNS}ä'.encode(encoding))
    with pytest.raises(DataError, match='UTF-8'):
      open_tokenizer(folder, 8)


@pytest.mark.parametrize('change', [
  lambda text: '', lambda text: text[: len(text) // 2], lambda text: '[]',
  lambda text: '{}', lambda text: text.encode('utf-16'),
  lambda text: text.replace('"BPE"', '"CPE"'),
  lambda text: text.replace('"id": 2', '"id": "2"'),
  lambda text: text.replace('"special": true', '"special": "true"'),
])  # fmt: skip
def test_a_tokenizer_that_is_none_is_one_line(tmp_path, change):
  folder = write(tmp_path / 'a', {'config': 3})
  file = folder / 'tokenizer.json'
  changed = change(file.read_text('utf-8'))
  file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
  for open_it in (
    lambda: open_tokenizer(folder, 8), lambda: Tokenizer.load(file, 'a')
  ):  # fmt: skip
    with pytest.raises(DataError) as error:
      open_it()
    assert str(file) in str(error.value) and '\n' not in str(error.value)


def test_a_panic_of_the_library_is_one_line(monkeypatch):
  class PanicException(BaseException):
    """As pyo3 raises it."""

  for error in (PanicException('index\nout of bounds'), Exception('no unk')):
    tokenizer = Tokenizer.train([], 259, 'bytes')
    monkeypatch.setattr(tokenizer, '_backend', Raises(error))
    with pytest.raises(DataError, match=r'bytes fails at a text \(') as found:
      tokenizer.encode_template('a')
    assert '\n' not in str(found.value)
  monkeypatch.setattr(tokenizer, '_backend', Raises(KeyboardInterrupt()))
  with pytest.raises(KeyboardInterrupt):
    tokenizer.encode_template('a')


class Raises:
  def __init__(self, error):
    self.error = error

  def encode(self, *args, **options):
    raise self.error


def gguf_model(path, **metadata):
  model = GGUFModel.__new__(GGUFModel)
  model.path = path / 'm.gguf'
  model.fields = {
    key if '.' in key else f'tokenizer.ggml.{key}': value
    for key, value in metadata.items()
    if value is not ...
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
  # Lines and marks before words in the newer families.
  for pre in ('qwen2', 'llama3'):
    cut = byte_level(models.BPE(), pre).pre_tokenizer.pre_tokenize_str
    assert [w for w, _ in cut('(he)!\n\n x')] == ['(he', ')!ĊĊ', 'Ġx']
    assert [w for w, _ in cut("I'Sx")] == ['I', "'S", 'x']


def test_accents_and_whole_words_are_by_family(tmp_path):
  for pre in WORDS:
    model = bytes_model(tmp_path, pre, merges=[])
    found = open_gguf_tokenizer(model, 260).encode(['ab'])
    assert (found == [[256]]) == (pre == 'llama-bpe')
    tokenizer = open_gguf_tokenizer(bytes_model(tmp_path, pre), 260)
    text = tokenizer.decode(*tokenizer.encode(['e\u0301']))
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


@pytest.mark.parametrize(('changes', 'told'), [
  ({'tokens': 'abc'}, 'tokens is text, not a list'),
  ({'tokens': [1, 2]}, r'tokens\[0\] is an integer, not text'),
  ({'token_type': [1]}, 'token_type has 1 entries for 260 tokens'),
  ({'merges': [1]}, r'merges\[0\] is an integer'),
  ({'merges': ['a zz']}, 'its tokens make no tokenizer'),
  ({'merges': ['ab']}, 'its tokens make no tokenizer'),
  ({'eos_token_id': None}, 'no tokenizer.ggml.eos_token_id says'),
  ({'bos_token_id': 260}, 'bos_token_id is 260, of 260 tokens'),
  ({'eos_token_id': 'x'}, 'eos_token_id is text'),
  ({'add_bos_token': 'no'}, 'add_bos_token is text, not true or false'),
  ({'tokenizer.chat_template': 5}, 'chat_template is an integer'),
  *(({gone: ...}, f'there is no field .*{gone}')
    for gone in ('tokens', 'token_type', 'merges')),
])  # fmt: skip
def test_fields_of_a_file_that_do_not_fit(tmp_path, changes, told):
  with pytest.raises(DataError, match=rf'm\.gguf: .*{told}') as caught:
    open_gguf_tokenizer(bytes_model(tmp_path, **changes), 260)
  assert '\n' not in str(caught.value)


def test_spaces_and_bytes_of_sentencepiece_are_those_of_text(tmp_path):
  folder = write(tmp_path / 'a', {'config': 5})
  signs = ['<unk>', '\u2581', 'a', '<0xC3>', '<0xA9>']
  backend = Backend(models.BPE(
    vocab={sign: number for number, sign in enumerate(signs)}, merges=[],
    unk_token='<unk>', byte_fallback=True,
  ))  # fmt: skip
  backend.add_special_tokens([AddedToken('</s>', special=True)])
  backend.normalizer = normalizers.Replace(' ', '\u2581')
  backend.save(str(folder / 'tokenizer.json'))
  tokenizer = open_tokenizer(folder, 6)
  (ids,) = tokenizer.encode(['a \u00e9'])
  assert ids == [2, 1, 3, 4]
  assert b''.join(map(tokenizer.raw, ids)) == 'a \u00e9'.encode()


@pytest.mark.parametrize('metadata', [
  {}, {'model': 'bert'}, {'model': 'gpt2', 'pre': 'tekken'},
  {'model': 'gpt2'}, {'model': 'llama', 'pre': 'smollm', 'scores': [0.0]},
])  # fmt: skip
def test_other_kinds_are_refused_with_advice(tmp_path, metadata):
  with pytest.raises(
    DataError, match=r'm\.gguf: tokenizer .* is not read; of GGUF only byte-lev'
    r'.*gpt-2, smollm, .*folder with safetensors and tokenizer\.json$',
  ):
    open_gguf_tokenizer(gguf_model(tmp_path, **metadata), 9)
