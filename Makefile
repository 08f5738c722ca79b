# make fit, make test: each sets up what it needs.
#   TORCH, TORCHVISION   which builds to install, e.g. TORCH="torch==2.9.1" TORCHVISION="torchvision==0.24.1"
#   WORKERS              processes that share the tests, of a thread each
#   VENV                 folder of the virtual environment; VENV=none uses the python that is active
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
TIMM ?= timm==1.0.31
VENV ?= .venv
PYTHON ?= python3
CONFIG ?= lora_r16.yaml
WORKERS ?= 2

ifeq ($(VENV),none)
  PY := $(PYTHON)
  STAMP := .setup-stamp
else
  PY := $(VENV)/bin/python
  STAMP := $(VENV)/.setup-stamp
endif

.PHONY: help setup fit test test-slow check tables bench tiny

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## make the environment alone

$(STAMP): pyproject.toml constraints.txt
ifneq ($(VENV),none)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
endif
	$(PY) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps "$(TORCHVISION)" "$(TIMM)"
	touch $@

fit: $(STAMP)  ## fine-tune the embedded base, score before and after
	$(PY) -m vlmpeft fit --config $(CONFIG)

test: $(STAMP)  ## the tests, minutes on 2 cores
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(STAMP)  ## the long tests
	$(PY) -m pytest -m "slow and not gpu and not net"

check: $(STAMP)  ## lint, format, types, import layers, spelling, and that every table and plot is what its records give
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright
	$(dir $(PY))lint-imports
	$(PY) -m codespell_lib
	$(PY) scripts/tables.py --check

bench: $(STAMP)  ## the benchmarks, records under results/benchmarks/
	$(PY) benchmarks/step.py
	$(PY) benchmarks/fit.py
	$(PY) benchmarks/cli.py
	$(PY) benchmarks/strategies.py
	$(PY) benchmarks/estimate.py
	$(PY) benchmarks/merging.py
	$(PY) benchmarks/merged_step.py
	$(PY) benchmarks/table.py

tables: $(STAMP)  ## the tables of README and docs from their records
	$(PY) scripts/tables.py

tiny: $(STAMP)  ## train the embedded base again
	$(PY) scripts/train_tiny.py --out vlmpeft/base/tiny
