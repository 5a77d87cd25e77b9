"""A tokenizer as the files of a folder that Hugging Face tools read."""

from pathlib import Path
from typing import Any

from pdl_jax.data.tasks import TURN_CLOSES, turn_opens
from pdl_jax.data.tokenizer import Tokenizer
from pdl_jax.pretrained.hf_write import write_json

# The plain format of `tasks`, for a model that brought no template.
_PLAIN = (
  '{% for message in messages %}'
  f'{turn_opens("{{ message.role }}")}{{{{ message.content | trim }}}}'
  f'{TURN_CLOSES}'
  '{% endfor %}'
  f'{{% if add_generation_prompt %}}{turn_opens("assistant")}{{% endif %}}'
)


def write_tokenizer(folder: Path, tokenizer: Tokenizer, is_chat: bool) -> None:
  """Writes tokenizer.json, tokenizer_config.json and the chat template.

  Args:
    folder: exists.
    is_chat: whether the model was trained on conversations.
  """
  (folder / 'tokenizer.json').write_text(tokenizer.definition, 'utf-8')
  end = tokenizer.end_of_turn if is_chat else tokenizer.end_of_text
  options: dict[str, Any] = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': _name(tokenizer, end),
    'pad_token': _name(tokenizer, tokenizer.end_of_text),
    'clean_up_tokenization_spaces': False,
  }
  if tokenizer.start_of_text != tokenizer.end_of_text:
    options['bos_token'] = _name(tokenizer, tokenizer.start_of_text)
  write_json(folder / 'tokenizer_config.json', options)
  if tokenizer.chat is not None:
    (folder / 'chat_template.jinja').write_text(tokenizer.chat.source, 'utf-8')
  elif is_chat:
    (folder / 'chat_template.jinja').write_text(_PLAIN, 'utf-8')


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
  """What config.json and generation_config.json say of tokens."""
  found: dict[str, Any] = {
    'eos_token_id': list(tokenizer.stops),
    'pad_token_id': tokenizer.end_of_text,
  }
  if tokenizer.start_of_text != tokenizer.end_of_text:
    found['bos_token_id'] = tokenizer.start_of_text
  return found


def _name(tokenizer: Tokenizer, number: int) -> str:
  return tokenizer.raw(number).decode()
