"""The training loop: feed the step, watch it, save it, stop when asked."""

import contextlib
import dataclasses
import time
from collections.abc import Callable

import grain
from jax import Array
from jax.sharding import Mesh

from pdl_jax.errors import DivergedError
from pdl_jax.mesh import put_batch
from pdl_jax.run_folder import RunFolder
from pdl_jax.train.checkpoint import Checkpointer
from pdl_jax.train.preemption import StopRequest
from pdl_jax.train.progress import Progress
from pdl_jax.train.settings import TrainSettings
from pdl_jax.train.state import TrainState

Step = Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict]]


@dataclasses.dataclass
class Loop:
  """Everything one training run needs besides its state.

  Attributes:
    step: compiled, (state, batch) -> (state, scalars); donates the state.
    validate: unweighted loss on held-out data, in nats per target token.
  """

  settings: TrainSettings
  mesh: Mesh
  step: Step
  validate: Callable[[TrainState], float]
  batches: grain.DatasetIterator
  checkpoints: Checkpointer
  folder: RunFolder
  stop: StopRequest

  def run(self, state: TrainState) -> TrainState:
    """Trains from the state's step to the last one.

    Raises:
      DivergedError: after `max_nonfinite_steps` bad steps in a row, unsaved.
      PreemptedError: after a signal, with the state saved.
    """
    first, total = int(state.step), self.settings.steps
    # A signal at a checkpoint step left no time for its validation.
    owed = (
      first > 0 and self._due(first) and not self.checkpoints.measured(first)
    )
    self.folder.cut_metrics(first, owed)
    progress = Progress(first, total)
    with contextlib.closing(progress) as self._progress:
      if owed:
        self.stop.note(f'validating step {first}')
        self.checkpoints.measure(first, self._validate(first, state))
      self._clock = time.monotonic()
      pending: dict[str, Array] | None = None
      for number in range(first + 1, total + 1):
        self.stop.note(f'reading the batch of step {number}')
        batch = put_batch(next(self.batches), self.mesh)
        state, scalars = self.step(state, batch)
        # The previous step's scalars are fetched while this step runs.
        if pending is not None:
          self._report(number - 1, pending)
        pending = scalars
        stopping = self.stop.reached(f'in step {number}')
        if self._due(number) or stopping:
          self._report(number, scalars)
          pending = None
          self._save(number, state)
    return state

  def _due(self, number: int) -> bool:
    return (
      number % self.settings.checkpoint_every == 0
      or number == self.settings.steps
    )

  def _report(self, number: int, scalars: dict[str, Array]) -> None:
    values = {key: value.item() for key, value in scalars.items()}
    now = time.monotonic()
    seconds, self._clock = now - self._clock, now
    rate = values['input_tokens'] / seconds
    row = {'step': number, **values, 'tokens_per_second': round(rate, 1)}
    due = number % self.settings.log_every == 0 or number == self.settings.steps
    if due:
      self.folder.append_metrics(row)
      self.folder.write_status('running', number)
    self._progress.update(row, show=due)
    if values['skipped_in_row'] >= self.settings.max_nonfinite_steps:
      latest = self.checkpoints.latest_step()
      good = 'none was saved' if latest is None else f'step {latest}'
      raise DivergedError(
        f'step {number}: the loss or the gradient was not finite '
        f'{values["skipped_in_row"]} steps in a row; the last good checkpoint: '
        f'{good}. Lower optimizer.learning_rate or loss.alpha'
      )

  def _save(self, number: int, state: TrainState) -> None:
    metrics = {}
    # A signal leaves no time to validate.
    if self._due(number) and not self.stop.requested:
      metrics = self._validate(number, state)
    self.checkpoints.save(number, state, self.batches, metrics)
    if self.stop.requested and number < self.settings.steps:
      self.checkpoints.wait()
      self.stop.check(f'training; step {number} is saved')
    self._clock = time.monotonic()

  def _validate(self, number: int, state: TrainState) -> dict[str, float]:
    metrics = {'validation_nats': self.validate(state)}
    self.folder.append_metrics({'step': number, **metrics})
    self._progress.line(
      f'step {number}: validation {metrics["validation_nats"]:.4f} nats a '
      'target token, unweighted'
    )
    return metrics
