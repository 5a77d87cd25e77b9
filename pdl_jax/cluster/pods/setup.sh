#!/bin/bash
# setup.sh EXTRA: the pinned packages and JAX for tpu or cuda12, in .venv beside
# launch.py. A second call does nothing.
set -euo pipefail
cd "$(dirname "$0")/../../.."
test -e .venv/.ready && exit
# uv brings a Python of its own: TPU images have one that is too old. With
# --target pip also installs where the system's packages are managed by others.
python3 -m pip install --quiet --target=.tools uv==0.13.9
uv=.tools/bin/uv
$uv venv --quiet --clear --python 3.12 .venv
$uv pip install --quiet --python .venv "jax[$1]" --requirement requirements.txt
$uv pip install --quiet --python .venv --no-deps \
  --requirement requirements-nodeps.txt
touch .venv/.ready
