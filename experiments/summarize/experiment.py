"""The main job against its rival: PDL and cross-entropy on the test split.

  python -m experiments.summarize.experiment [--report]
"""

from experiments import cells

CELLS = {
  'PDL': (),
  'Cross-entropy': ('--config.loss.name=cross_entropy',),
}

if __name__ == '__main__':
  cells.main('summarize', 'configs/summarize.py', CELLS)
