# Two commands do everything on a fresh machine:
#   make demo   the whole pipeline on the embedded handwritten digits
#   make test   format, lint, types and all tests
# Each makes .venv and installs into it what is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs/demo

.PHONY: demo test lint clean

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dali-cuda130,deploy,dev]'
	touch $@

# Supernet, search through NNI, training from scratch, and what came out. Repeat it to continue.
# One thread: more gain little on images of 8 x 8 pixels and lose much beside other programs, and
# the results are the same on any number of cores.
demo: export OMP_NUM_THREADS ?= 1
demo: $(RUNS)/best.json
	$(BIN)/python scratch.py --fixed-arc $(RUNS)/best.json --run-dir $(RUNS)/scratch
	$(BIN)/python -m spos report $(RUNS) --output-dir $(RUNS)/report
	$(BIN)/python -m spos summary $(RUNS)

$(RUNS)/best.json: $(VENV)/.installed
	$(BIN)/python supernet.py --run-dir $(RUNS)/supernet
	$(BIN)/python -m spos search start --run-dir $(RUNS)/supernet --experiments-dir $(RUNS)/search \
	  --rounds 3 --population 10 --concurrency 2
	$(BIN)/python -m spos search best --experiments-dir $(RUNS)/search --output $@

# Three processes share the files of tests, on two cores, in the order of tests/conftest.py: many of
# them wait for NNI. More threads than one would only wait for each other.
test: export OMP_NUM_THREADS ?= 1
test: lint
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf runs .pytest_cache .ruff_cache .hypothesis
