# One command each; everything lives in .venv, made once and again only when a
# requirements file changes. VENV names another folder, for another Python.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: summarize tiny debian test test-slow aot lint types clean

# Large pages of memory, where a step's time goes to small ones (Linux).
summarize tiny: export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

summarize: $(READY)
	$(BIN)/python launch.py --config=configs/summarize.py

tiny: $(READY)
	$(BIN)/python launch.py --config=configs/summarize.py:tiny

# Descriptions of Debian's packages, by apt, into .cache: a harder set.
debian: $(READY)
	$(BIN)/python -m pdl_jax.data.packaged.debian_synopses

# The fast tests, and the slow ones: whole jobs, several processes, compilers.
# TESTS names some of them. A test that only the end of its process could stop
# would be tried again and again by processes that follow.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --max-worker-restart=0

test: $(READY)
	$(PYTEST) -m 'not slow' $(TESTS)

test-slow: $(READY)
	$(PYTEST) -m slow $(TESTS)

# Compiles steps for TPUs that are not here, by their compiler (640 MB): the
# tests that need it, then the cases that benchmarks/aot has no record of, of
# which each takes minutes.
AOT := .venv-aot

aot: $(AOT)/.ready
	$(AOT)/bin/python -m pytest -q -n 0 tests/cluster/test_aot.py
	$(AOT)/bin/python -m benchmarks.aot

$(AOT)/.ready: requirements-aot.txt requirements.txt requirements-nodeps.txt
	test -x $(AOT)/bin/python || python3.12 -m venv $(AOT)
	$(AOT)/bin/python -m pip install --quiet --requirement requirements-aot.txt
	$(AOT)/bin/python -m pip install --quiet --no-deps --requirement requirements-nodeps.txt
	touch $@

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/pyright

$(READY): requirements.txt requirements-nodeps.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %d.%d; try make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-nodeps.txt
	touch $@

clean:
	rm -rf $(VENV) $(AOT)
