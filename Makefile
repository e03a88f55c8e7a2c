# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart test check benchmark clean

quickstart: $(VENV)/installed ## train on the embedded corpus, test, continue held-out prompts
	PYTHON=$(BIN)/python sh scripts/quickstart.sh

test: $(VENV)/installed-dev ## every test
	$(BIN)/python -m pytest

check: $(VENV)/installed-dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy

benchmark: $(VENV)/installed ## speed and sizes, to runs/benchmark_*.md
	mkdir -p runs
	$(BIN)/python -m benchmarks.training > runs/benchmark_training.md
	$(BIN)/python -m benchmarks.sizes > runs/benchmark_sizes.md
	$(BIN)/python benchmarks/decoding.py > runs/benchmark_decoding.md
	cat runs/benchmark_training.md runs/benchmark_decoding.md runs/benchmark_sizes.md

clean: ## everything that was made here, runs excepted
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
