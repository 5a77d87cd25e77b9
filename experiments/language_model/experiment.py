"""What does PDL do to a language model of speeches from another time?

  python -m experiments.language_model.experiment [--report]

The main job of configs/language_model.py with PDL and with cross-entropy, on the test
split.
"""

from experiments import cells

if __name__ == '__main__':
  cells.main('language_model', 'configs/language_model.py', cells.AGAINST_CROSS_ENTROPY)
