# Each target makes .venv by itself, from requirements.lock, and may be run again at any time.

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
  $$p -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
RUN := $(BIN)/python -m

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export TF_CPP_MIN_LOG_LEVEL ?= 2
export TF_ENABLE_ONEDNN_OPTS ?= 0

.PHONY: demo test test-nightly lint clean

# Two of scikit-image's sample photographs: real pictures that are there without a download.
PHOTOGRAPHS := coffee.png motorcycle_left.png

demo: .venv/ready
	$(RUN) mtl_jax.main --config=configs/scenes.py:demo --workdir=runs/demo
	@photographs=$$($(BIN)/python -c 'import skimage; print(skimage.data_dir)') && for name in $(PHOTOGRAPHS); do \
	  $(RUN) mtl_jax.predict --workdir=runs/demo --images=$$photographs/$$name --out=runs/demo/photographs || exit; done
	$(RUN) mtl_jax.report --workdirs runs/demo --out runs/demo

test: .venv/parity
	$(RUN) pytest -n 2 -m "not slow" tests

# The slow tests too; point MTL_JAX_DATA at a folder with BSDS500 and NYUv2_320x240 for those on real data.
test-nightly: .venv/parity
	$(RUN) pytest -n 2 tests

lint: .venv/ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .

.venv/ready: setup.py requirements.lock
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or 3.12 with its venv module is needed (Debian: apt install python3 python3-venv)'; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# PyTorch and what else the tests compare with; setup.py tells how to have its CPU build alone.
.venv/parity: .venv/ready requirements-parity.lock
	$(RUN) pip install --quiet --disable-pip-version-check -r requirements-parity.lock
	touch $@

clean:
	rm -rf .venv .cache
