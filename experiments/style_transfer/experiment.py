"""What does PDL do to a model that rewrites verses?

  python -m experiments.style_transfer.experiment [--report]

The main job of configs/style_transfer.py with PDL and with cross-entropy, on the test
split.
"""

from experiments import cells

if __name__ == '__main__':
  cells.main('style_transfer', 'configs/style_transfer.py', cells.AGAINST_CROSS_ENTROPY)
