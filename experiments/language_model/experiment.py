"""What does PDL do to a language model of speeches?

  python -m experiments.language_model.experiment [--report]

The main job of its config with PDL and with cross-entropy, on the test split.
"""

from experiments import cells

NAME = 'language_model'

if __name__ == '__main__':
  cells.main(NAME, f'configs/{NAME}.py', cells.AGAINST_CROSS_ENTROPY)
