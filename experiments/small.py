"""Small models of the wide grids: one base a task, then every variant from it.

The base learns with cross-entropy on one half of the training data; variants
fine-tune it on the other half. Both are random halves of the records.
"""

BASE = {
  'loss.name': 'cross_entropy',
  'data.splits.train': 'train[:50%]',
  'optimizer.learning_rate': 3e-3,
  'train.steps': 1500,
  'train.checkpoint_every': 250,
}
OVERRIDES = {'data.splits.train': 'train[50%:]'}
