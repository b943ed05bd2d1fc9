# One-line verbs. `make run` answers a question from a real model; `make test` passes the tests.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
QUESTION ?= Why is the sky blue? Answer in two sentences.

.PHONY: run setup fmt check test test-fast bench docs
run: $(VENV)/.installed ; @$(BIN)/ndani run smollm2:135m "$(QUESTION)" </dev/null
setup: $(VENV)/.tested
fmt: $(VENV)/.tested ; $(BIN)/ruff check --fix src tests bench; $(BIN)/ruff format src tests bench
check: $(VENV)/.tested ; $(BIN)/ruff check src tests bench && $(BIN)/ruff format --check src tests bench && $(BIN)/mypy
test: $(VENV)/.tested ; $(BIN)/python -m pytest
test-fast: $(VENV)/.tested ; $(BIN)/python -m pytest -m "not weights and not slow"
bench: $(VENV)/.tested ; $(BIN)/python -m bench
docs: $(VENV)/.tested ; $(BIN)/python -m pytest tests/test_docs.py tests/test_walk.py

$(VENV)/bin/python: ; $(PYTHON) -m venv $(VENV)
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python ; $(BIN)/python -m pip install --quiet --disable-pip-version-check -e . && touch $@
$(VENV)/.tested: pyproject.toml $(VENV)/.installed ; $(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]" && touch $@
