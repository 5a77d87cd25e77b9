"""Shows training on the terminal: a bar, or one line per log step."""

import sys
import time

from tqdm import tqdm


class Progress:
  """A progress bar with ETA; plain lines where there is no terminal."""

  def __init__(self, start: int, total: int):
    self._total, self._start = total, start
    self._began = time.monotonic()
    self._bar = tqdm(
      total=total, initial=start, desc='train', unit='step',
      disable=not sys.stderr.isatty(),
    )  # fmt: skip

  def update(self, row: dict[str, float], show: bool) -> None:
    """Moves the bar; without one, prints the row of metrics.jsonl if `show`."""
    self._bar.update()
    text = (
      f'loss {row["loss"]:.4f}  unweighted {row["plain_loss"]:.4f}  '
      f'{row["tokens_per_second"]:6,.0f} tok/s'
    )
    if row['skipped']:
      text += f'  skipped {row["skipped"]}'
    self._bar.set_postfix_str(text)
    if self._bar.disable and show:
      step = int(row['step'])
      spent = time.monotonic() - self._began
      left = spent / (step - self._start) * (self._total - step)
      number = str(step).rjust(len(str(self._total)))
      eta = tqdm.format_interval(left)
      print(f'step {number}/{self._total}  {text}  ETA {eta}', flush=True)

  def line(self, text: str) -> None:
    """Prints a line without tearing the bar."""
    self._bar.clear()
    print(text, flush=True)
    self._bar.refresh()

  def close(self) -> None:
    """Leaves the bar on the terminal."""
    self._bar.close()
