# Two commands: `make book` and `make test`. Both make the virtual environment first if it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= embedded

.PHONY: book test lint lock clean help

help:
	@echo "make book   install, run all chapters (PROFILE=$(PROFILE)), check them, render the book"
	@echo "make test   install, lint, run the tests"
	@echo "make clean  delete built book and runs (the cache of models stays: companion clean --cache)"

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "==> installing into $(VENV) (once; about 2 minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

book: $(VENV)/.installed
	@echo "==> running the chapters (profile $(PROFILE)); Ctrl-C is safe, run again to go on"
	@$(BIN)/companion run --profile $(PROFILE)
	@echo "==> checking the results against the baseline"
	@$(BIN)/companion check --profile $(PROFILE)
	@echo "==> rendering"
	@$(BIN)/companion build --profile $(PROFILE)

test: lint
	@echo "==> tests"
	@$(BIN)/python -m pytest

lint: $(VENV)/.installed
	@echo "==> lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

lock: ## maintainers: write requirements.lock from the environment that was tested
	@$(BIN)/python -m pip list --format=freeze --exclude-editable --exclude pip --exclude py-spy | sed 's/+cpu$$//' > requirements.lock

clean:
	@rm -rf _build
