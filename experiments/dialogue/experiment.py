"""What does PDL do to a pretrained model that learns to chat?

  python -m experiments.dialogue.experiment [--report]

The main job of its config with PDL and with cross-entropy, on the test split.
"""

from experiments import cells

NAME = 'dialogue'

if __name__ == '__main__':
  cells.main(NAME, f'configs/{NAME}.py', cells.AGAINST_CROSS_ENTROPY)
