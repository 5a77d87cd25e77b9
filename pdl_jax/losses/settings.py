"""Settings below `loss`: its name and its options."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from pdl_jax.errors import ConfigError, not_negative, one_of
from pdl_jax.losses.checks import check_number, check_range
from pdl_jax.losses.frequency import UNITS
from pdl_jax.losses.fused.plan import ACCURACIES
from pdl_jax.losses.power_law import EPSILON_POLICIES, NORMALIZE, UNSEEN
from pdl_jax.losses.reduce import REDUCTIONS
from pdl_jax.losses.registry import LOSSES, LossSpec
from pdl_jax.losses.schedule import SCHEDULES, check_schedule


@dataclasses.dataclass(frozen=True)
class LossSettings:
  """The loss by name, and the options that it reads."""

  # power_law, cross_entropy or a rival. Each reads the keys loss.NAME.* and
  # some of the others. By type: inverse_frequency, face, class_balanced,
  # adaptive_exponential, adaptive_chi_square, logit_adjustment. By token:
  # focal, mile, dft, mixce, gem, unlikelihood, scale_grad, emo. Or a loss that
  # your own module registers; the config file must import that module.
  name: str = 'power_law'
  # Decay exponent, >= 0; 0 is cross-entropy.
  alpha: float = 0.25
  # Smoothing constant, >= 0, in the unit below.
  epsilon: float = 1.0
  # absolute, or times_median: epsilon is a multiple of the median frequency
  # of the types seen, so it means the same for any corpus size.
  epsilon_policy: str = 'absolute'
  # Unit of freq(t) and epsilon: count or probability.
  unit: str = 'count'
  # What is counted: token, or word. With word, freq(t) is the geometric mean
  # of the counts of the words that contain the piece.
  level: str = 'token'
  # Largest weight as a ratio to the corpus mean; 0 sets no limit.
  clip: float = 0.0
  # corpus_mean scales the weights to a mean of 1 over token occurrences, which
  # keeps the meaning of the learning rate; none is the paper's formula.
  normalize: str = 'corpus_mean'
  # Weight of a type never counted: formula (the paper's), min_count (that of
  # the rarest type seen) or neutral (1).
  unseen: str = 'min_count'
  # weighted_mean (sum w l / sum w), token_mean (sum w l / n), sum (paper).
  reduction: str = 'weighted_mean'
  # Stored frequency table; '' counts this task's training targets.
  frequency_table: str = ''
  # Stored table of a general corpus (frequency.npz of another run with the
  # same tokenizer), and its share of the frequencies, in [0, 1].
  background_table: str = ''
  background_weight: float = 0.0
  # Schedule of the weights: constant, warmup (from cross-entropy, over
  # schedule_steps from step schedule_start), anneal (to cross-entropy, over the
  # same steps), or cross_entropy_first (until schedule_start). It multiplies
  # alpha; the weights of rivals are raised to its power.
  schedule: str = 'constant'
  schedule_start: int = 0
  schedule_steps: int = 0
  # For losses whose terms are (weighted) cross-entropy: the mass spread evenly
  # over all types, in [0, 1) (0.1 is usual), and the coefficient of (log Z)^2,
  # >= 0 (1e-4 is usual).
  label_smoothing: float = 0.0
  z_loss: float = 0.0
  # Budget in MiB of the logits that are alive at once in training, from which
  # the tiles of a linear head's loss follow; 0 is 88 on a CPU, and elsewhere a
  # sixteenth of the device's memory, at most 4,096. Changes rounding alone.
  memory_mb: int = 0
  # Accuracy of exp and log in the log Z of a linear head, in training and in
  # scores: '' is the device's own, fast and inexact on a TPU; or highest.
  exp_accuracy: str = ''
  # Read by one loss alone; most defaults are published values. Formulas and
  # sources: pdl_jax/losses/ type_weights, token_losses and dense_losses.
  # normalize: published, or corpus_mean (mean 1 over token occurrences).
  rivals: dict[str, dict[str, Any] | None] = dataclasses.field(
    default_factory=lambda: dict(own_settings())
  )

  @classmethod
  def from_config(cls, config: dict[str, Any]) -> 'LossSettings':
    """Keeps the group of the chosen loss and drops those of the others."""
    groups = {k: v for k, v in config.items() if isinstance(v, dict)}
    flat = {k: v for k, v in config.items() if k not in groups}
    name = flat['name']
    return cls(
      **flat, rivals={k: v if k == name else None for k, v in groups.items()}
    )

  @property
  def spec(self) -> LossSpec:
    """The registered loss; cross-entropy if this one is not registered here."""
    return LOSSES.get(self.name, LossSpec())

  @property
  def own(self) -> dict[str, Any]:
    """Settings of this loss alone."""
    return self.spec.settings | (self.rivals.get(self.name) or {})

  def __post_init__(self):
    if self.rivals.get(self.name) is None and self.name not in LOSSES:
      raise ConfigError(
        f'loss.name {self.name!r} is not one of {", ".join(LOSSES)}; one of '
        'your own needs a config file that imports its module'
      )
    for name, allowed in (
      ('unit', UNITS), ('normalize', NORMALIZE), ('unseen', UNSEEN),
      ('epsilon_policy', EPSILON_POLICIES), ('level', ('token', 'word')),
      ('schedule', SCHEDULES), ('reduction', REDUCTIONS),
      ('exp_accuracy', ACCURACIES),
    ):  # fmt: skip
      one_of(f'loss.{name}', getattr(self, name), allowed)
    for name in ('alpha', 'epsilon', 'z_loss'):
      check_number(f'loss.{name}', getattr(self, name))
    not_negative('loss', self, 'memory_mb')
    check_range('loss.background_weight', self.background_weight, '[0, 1]')
    check_range('loss.label_smoothing', self.label_smoothing, '[0, 1)')
    if self.clip and not 1 <= self.clip < math.inf:
      raise ConfigError(
        'loss.clip must be 0 (no limit) or a finite number of at least 1, got '
        f'{self.clip}'
      )
    if self.level == 'word' and self.unit != 'count':
      raise ConfigError('loss.level word counts words: loss.unit must be count')
    if self.level == 'word' and (self.background_table or self.frequency_table):
      raise ConfigError(
        "loss.level word counts this task's words: leave out "
        'loss.background_table and loss.frequency_table'
      )
    if self.background_weight and not self.background_table:
      raise ConfigError(
        f'loss.background_weight {self.background_weight} needs a '
        'loss.background_table'
      )
    try:
      # Does not compute the factor, because a sweeper must not start JAX.
      check_schedule(self.schedule, self.schedule_start, self.schedule_steps)
    except ConfigError as error:
      raise ConfigError(
        f'loss.schedule (with schedule_start and schedule_steps): {error}'
      ) from None
    known = LOSSES.get(self.name)
    if self.schedule != 'constant' and known and known.weights is None:
      raise ConfigError(
        f'loss.schedule {self.schedule} needs a loss with a weight per type; '
        f'{self.name} has none'
      )


def own_settings() -> dict[str, dict[str, Any]]:
  """Returns the key groups of losses that have settings, or are a user's own.

  Raises:
    ConfigError: a loss has the name of a key.
  """
  fields = {field.name for field in dataclasses.fields(LossSettings)}
  if taken := fields & LOSSES.keys():
    raise ConfigError(f'{taken.pop()!r} is a key below loss, and no loss')
  return {
    name: spec.settings
    for name, spec in LOSSES.items()
    if spec.settings or spec.file
  }


def is_counted_whole(name: str) -> bool:
  """Whether all keys of a loss enter a run's hash, defaults included.

  This holds for a user's own loss: its defaults may change, and its run folder
  may be read where the loss is not registered.
  """
  return name not in LOSSES or LOSSES[name].file is not None


def unread(flat: Mapping[str, Any]) -> set[str]:
  """Returns the dotted keys below `loss` that the chosen loss does not read."""
  name = flat['loss.name']

  def is_read(key: str) -> bool:
    group, _, rest = key.partition('.')
    if rest:
      return group == name
    return is_counted_whole(name) or group in LOSSES[name].read

  return {
    key for key in flat
    if key.startswith('loss.') and not is_read(key.removeprefix('loss.'))
  }  # fmt: skip
