"""How far from the mean of a running token, as one of nine colours.

Orange above, blue below: hues that colour-blind readers can tell apart. The
strength grows with the distance, and every ink reads on its ground.
"""

import numpy as np

# Distance, in nats, at which each strength begins. A weight of 2 is ln 2 from
# 1; a bias spans more.
EDGES = {
  'weight': tuple(np.log([1.1, 2.0, 4.0, 8.0]).tolist()),
  'bias': (0.1, 1.0, 2.0, 4.0),
}
LEVELS = tuple(range(-4, 5))
LABELS = {
  'weight': (
    'under 1/8', '1/8 to 1/4', '1/4 to 1/2', '1/2 to 0.9', 'near the mean',
    '1.1 to 2', '2 to 4', '4 to 8', 'over 8 times the mean',
  ),
  'bias': (
    '4 nats or more above', '2 to 4 above', '1 to 2 above', '0.1 to 1 above',
    'near the mean', '0.1 to 1 below', '1 to 2 below', '2 to 4 below',
    '4 nats or more below the mean',
  ),
}  # fmt: skip

# (ink, grounds from -4 to 4 without 0, which has the page's own ground).
LIGHT = ('#111111', {
  -4: '#4b93d6', -3: '#85b8e6', -2: '#b5d4f0', -1: '#dce9f7',
  1: '#fcead6', 2: '#fbcd97', 3: '#f6a455', 4: '#e07b1c',
})  # fmt: skip
DARK = ('#f5f5f5', {
  -4: '#2267ae', -3: '#1f4f82', -2: '#1b3a5c', -1: '#182a3e',
  1: '#3a2813', 2: '#5a3710', 3: '#7d460a', 4: '#a35404',
})  # fmt: skip


def levels(distance_V: np.ndarray, kind: str) -> np.ndarray:
  """Distances in nats, above the mean or below, as levels from -4 to 4."""
  strength_V = np.searchsorted(EDGES[kind], np.abs(distance_V), 'right')
  return np.sign(distance_V).astype(int) * strength_V
