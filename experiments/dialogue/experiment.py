"""What does PDL do to a pretrained model that learns to chat?

  python -m experiments.dialogue.experiment [--report]

The main job of configs/dialogue.py with PDL and with cross-entropy, on the test
split.
"""

from experiments import cells

if __name__ == '__main__':
  cells.main('dialogue', 'configs/dialogue.py', cells.AGAINST_CROSS_ENTROPY)
