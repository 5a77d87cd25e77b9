"""Reads values of a config.json; each is mapped or refused."""

import json
import math
import reprlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdl_jax.errors import DataError

# Keys that change no logit here: of training, serving, other tasks, tokenizers,
# generation, and of how transformers computes.
_HARMLESS = {
  'architectures', 'attention_dropout', 'attn_implementation', 'attn_pdrop',
  'auto_map', 'bad_words_ids', 'begin_suppress_tokens', 'bos_token_id',
  'cache_implementation', 'chunk_size_feed_forward', 'classifier_dropout',
  'decoder_start_token_id', 'diversity_penalty', 'do_sample', 'dropout',
  'dtype', 'early_stopping', 'embd_pdrop', 'encoder_no_repeat_ngram_size',
  'eos_token_id', 'exponential_decay_length_penalty', 'finetuning_task',
  'forced_bos_token_id', 'forced_eos_token_id', 'gradient_checkpointing',
  'hidden_dropout', 'id2label', 'initializer_range', 'is_decoder',
  'is_llama_config', 'keys_to_ignore_at_inference', 'label2id',
  'length_penalty', 'mask_token_id', 'max_length', 'max_new_tokens',
  'max_sequence_length', 'min_length', 'model_max_length', 'model_type',
  'n_special', 'name_or_path', 'no_repeat_ngram_size', 'num_beam_groups',
  'num_beams', 'num_labels', 'num_return_sequences', 'pad_token_id',
  'predict_special_tokens', 'prefix', 'pretraining_tp', 'problem_type',
  'remove_invalid_values', 'repetition_penalty', 'resid_pdrop', 'return_dict',
  'return_dict_in_generate', 'sep_token_id', 'suppress_tokens',
  'task_specific_params', 'temperature', 'tf_legacy_loss', 'tokenizer_class',
  'tokenizer_model_max_length', 'top_k', 'top_p', 'torch_dtype', 'torchscript',
  'transformers.js_config', 'transformers_version', 'typical_p', 'unk_token_id',
  'use_bfloat16', 'use_cache',
}  # fmt: skip
_HARMLESS_STARTS = ('_', 'summary_', 'unsloth_', 'output_')
NEEDED: Any = object()
# Shortens foreign values in errors.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlist = _SHORT.maxdict = 8


def read_object(path: Path) -> dict[str, Any]:
  """Reads the JSON object in a file that others have written."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror})') from error
  return parse_object(data, str(path))


def parse_object(data: bytes, name: str) -> dict[str, Any]:
  """Reads one JSON object; refuses UTF-16, repeated keys, NaN, Infinity."""
  try:
    values = json.loads(
      data.decode('utf-8'), object_pairs_hook=_unique, parse_constant=_refuse
    )
  except UnicodeDecodeError as error:
    raise DataError(f'{name} is not UTF-8 text ({error.reason})') from error
  except RecursionError as error:
    raise DataError(f'{name} is not JSON (nested too deeply)') from error
  except ValueError as error:
    why = str(error) if data.strip() else 'it is empty'
    raise DataError(f'{name} is not JSON ({why})') from error
  if not isinstance(values, dict):
    kind = type(values).__name__
    raise DataError(f'{name} is not a JSON object, but a {kind}')
  return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  made = dict(pairs)
  if len(made) < len(pairs):
    twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
    raise ValueError(f'the key {twice!r} stands twice')
  return made


def _refuse(constant: str) -> None:
  raise ValueError(f'{constant} is no number')


class Fields:
  """The keys of a config file; `finish` refuses keys that nobody read."""

  def __init__(
    self, values: Mapping[str, Any], name: str, advice: str = ''
  ) -> None:
    """`name` and `advice`, on values that are not mapped, are for errors."""
    self.name, self._values, self._advice = name, values, advice
    self._asked: set[str] = set()

  @classmethod
  def read(cls, folder: Path) -> 'Fields':
    """Opens the config.json of a folder."""
    path = folder / 'config.json'
    if not path.exists():
      raise DataError(f'{folder} has no config.json')
    return cls(read_object(path), str(path))

  def get(self, key: str, default: Any = None) -> Any:
    """Returns a value, or the default if it is absent or null."""
    self._asked.add(key)
    value = self._values.get(key)
    if value is None and default is NEEDED:
      raise DataError(f'{self.name} does not declare {key}')
    return default if value is None else value

  def need(self, key: str) -> Any:
    """Returns a value that must be there."""
    return self.get(key, NEEDED)

  def count(
    self,
    key: str,
    default: int | None = NEEDED,
    least: int = 1,
    most: int = 2**31 - 1,
  ) -> Any:
    """Reads an integer, or the default if it is absent or null."""
    value = self.get(key, default)
    if value is None:
      return None
    if type(value) is not int or not least <= value <= most:
      raise self.refusal(
        key, value, f'it is no whole number from {least} to {most}'
      )
    return value

  def number(self, key: str, default: float | None = NEEDED) -> Any:
    """Reads a number > 0, or the default if it is absent or null."""
    value = self.get(key, default)
    if value is None:
      return None
    if type(value) not in (int, float) or not 0 < value < math.inf:
      raise self.refusal(key, value, 'it is no number > 0')
    return float(value)

  def number_or_null(self, key: str, default: float | None) -> Any:
    """Reads a number > 0; None if null, the default if absent."""
    return self.number(key, None if key in self._values else default)

  def count_or_null(self, key: str, default: int) -> Any:
    """Reads an integer; None if null, the default if absent."""
    return self.count(key, None if key in self._values else default)

  def flag(self, key: str, default: bool) -> bool:
    """Reads a truth value; the text "false", true to Python, is refused."""
    value = self.get(key, default)
    if type(value) is not bool:
      raise self.refusal(key, value, 'it is neither true nor false')
    return value

  def group(self, key: str) -> dict[str, Any]:
    """Reads an object, empty if it is absent or null."""
    value = self.get(key, {})
    if not isinstance(value, Mapping):
      raise self.refusal(key, value, 'it is no object')
    return dict(value)

  def one_of(self, key: str, allowed: Mapping[str, Any], default: str) -> Any:
    """Reads a name, and returns its value in `allowed`."""
    value = self.get(key, default)
    if not isinstance(value, str) or value not in allowed:
      raise self.refusal(key, value, f'known are {", ".join(allowed)}')
    return allowed[value]

  def expect(self, key: str, value: Any) -> None:
    """Refuses any other value of a key that may be absent."""
    found = self.get(key, value)
    if found != value:
      raise self.refusal(key, found, f'only {value} is mapped')

  def ignore(self, *keys: str) -> None:
    """Accepts keys that change nothing here."""
    self._asked |= set(keys)

  def finish(self) -> None:
    """Refuses unread keys that might change what the model computes."""

    def is_empty(value: Any) -> bool:  # A number 0 is not: it may be a choice.
      return value is None or value is False or value in ('', [], {})

    unmapped = [
      f'{key} {_SHORT.repr(value)}'
      for key, value in sorted(self._values.items())
      if key not in self._asked | _HARMLESS
      and not key.startswith(_HARMLESS_STARTS)
      and not is_empty(value)
    ]
    if unmapped:
      raise DataError(
        f'{self.name} has values that are not mapped and could change what the '
        f'model computes: {"; ".join(unmapped)}{self._advice}'
      )

  def refusal(self, key: str, value: Any, why: str) -> DataError:
    """Makes the error for a value that is not mapped."""
    return DataError(
      f'{self.name}: {key} {_SHORT.repr(value)} is not mapped; {why}'
      f'{self._advice}'
    )
