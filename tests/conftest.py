"""Eight CPU devices and a strict runtime, before JAX starts."""

import os

# Several CPU devices in one process can deadlock on jax 0.10.2 with fewer
# threads than this.
os.environ['NPROC'] = '16'
os.environ['JAX_PLATFORMS'] = 'cpu'

import jax

jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')
