"""What does PDL do to a model that rewrites verses?

  python -m experiments.style_transfer.experiment [--report]

The main job of its config with PDL and with cross-entropy, on the test split.
"""

from experiments import cells

NAME = 'style_transfer'

if __name__ == '__main__':
  cells.main(NAME, f'configs/{NAME}.py', cells.AGAINST_CROSS_ENTROPY)
