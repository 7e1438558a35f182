# make setup | demo | test | check | slow | full | bench

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.imprint-setup
PYTHON ?= python3

# Test workers: one for each core, each with one thread, so that tests do not fight for cores.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
JOBS  ?= $(shell [ $(CORES) -gt 8 ] && echo 8 || echo $(CORES))

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test check slow full bench docs
setup: $(STAMP)

# torch first: which build is right depends on the machine, so constraints.txt only bounds it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: setup
	$(BIN)/imprint demo

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_house.py

# Slow tests use all cores themselves, so they run one after the other.
slow: setup
	$(BIN)/python -m pytest -m slow

full: setup
	$(BIN)/python -m pytest -m full

# Every benchmark is a file that runs on its own; those with a leading underscore are helpers.
bench: setup
	@set -e; for file in $(wildcard benchmarks/[a-z]*.py); do \
		echo "== $$file"; $(BIN)/python $$file; \
	done

docs: setup
	$(BIN)/python tools/write_docs.py
