# make setup | demo | test | check | slow | full | bench | bench-peers

VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.imprint-setup
PYTHON ?= python3

# Test workers: one for each core, each with one thread, so that tests do not fight for cores.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
JOBS  ?= $(shell [ $(CORES) -gt 8 ] && echo 8 || echo $(CORES))

export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test check slow full bench bench-peers docs
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
# peers.py takes hours, and has a target of its own.
bench: setup
	@set -e; for file in $(filter-out benchmarks/peers.py,$(wildcard benchmarks/[a-z]*.py)); do \
		echo "== $$file"; $(BIN)/python $$file; \
	done

# The peer that benchmarks/peers.py measures against has an environment of its own, with the same torch.
PEERS := .venv-peers/.imprint-peers

bench-peers: setup $(PEERS)
	$(BIN)/python benchmarks/peers.py

$(PEERS): benchmarks/peers.txt constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch==2.13.0
	.venv-peers/bin/python -m pip install --quiet -c constraints.txt -r benchmarks/peers.txt
	touch $@

docs: setup
	$(BIN)/python tools/write_docs.py
