# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: quickstart test check clean

quickstart: $(VENV)/installed ## train on the embedded corpus, test, continue held-out prompts
	PYTHON=$(BIN)/python sh scripts/quickstart.sh

test: $(VENV)/installed-dev ## every test
	$(BIN)/python -m pytest

check: $(VENV)/installed-dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/mypy

clean: ## everything that was made here, runs excepted
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
