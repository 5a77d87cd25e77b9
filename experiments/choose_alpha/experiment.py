"""Which alpha and epsilon should configs/summarize.py have? On validation.

  python -m experiments.choose_alpha.experiment [--report]
"""

from experiments import cells

_ON = ('--config.evaluate.split=validation', '--config.evaluate.examples=192')

CELLS = {
  'CE': (*_ON, '--config.loss.name=cross_entropy'),
  'alpha 0.1': (*_ON, '--config.loss.alpha=0.1'),
  'alpha 0.25': (*_ON, '--config.loss.alpha=0.25'),
  'alpha 0.5': (*_ON, '--config.loss.alpha=0.5'),
  'alpha 0.25, epsilon 1e-7': (
    *_ON,
    '--config.loss.alpha=0.25',
    '--config.loss.epsilon=1e-7',
  ),
}

if __name__ == '__main__':
  cells.main('choose_alpha', 'configs/summarize.py', CELLS)
