"""The main job against its rival: PDL and cross-entropy on the test split.

  python -m experiments.summarize.experiment [--report]
"""

from experiments import cells

if __name__ == '__main__':
  cells.main('summarize', 'configs/summarize.py', cells.AGAINST_CROSS_ENTROPY)
