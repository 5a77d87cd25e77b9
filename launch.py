"""The door from the shell: python launch.py --help says what one can do."""

import os
import signal
import sys

# A signal in the seconds that imports take; later see pdl_jax.train.preemption.
# One of several processes is spoken for by its parent.
if __name__ == '__main__' and 'PDL_JAX_HOST' not in os.environ:

  def _stop_early(*_: object) -> None:
    os.write(2, b'stopped: by a signal before anything was begun\n')
    os._exit(75)

  for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_number) != signal.SIG_IGN:
      signal.signal(_number, _stop_early)

from pdl_jax.cli.main import main

if __name__ == '__main__':
  if 'PDL_JAX_HOST' not in os.environ:
    sys.exit(main(sys.argv))
  from pdl_jax.cluster import multihost

  multihost.leave(lambda: main(sys.argv))
