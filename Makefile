# Two commands: `make book` and `make test`. Both install into .venv first if it is missing or out of date.
# Without make, the same lines work by hand (on Windows: .venv\Scripts\companion for $(BIN)/companion).
PYTHON ?= python3
BIN := .venv/bin
PROFILE ?= embedded

.PHONY: book test lint lock install clean help

help:
	@echo "make book   install, run all chapters (PROFILE=$(PROFILE)), render the book, compare the results with the baseline"
	@echo "make test   install, lint, run the tests"
	@echo "make clean  delete built book and runs (the cache of models stays: companion clean --cache)"

install:
	@$(PYTHON) install.py

book: install
	@echo "==> running the chapters (profile $(PROFILE)); Ctrl-C is safe, run again to go on"
	@$(BIN)/companion run --profile $(PROFILE)
	@echo "==> rendering"
	@$(BIN)/companion build --profile $(PROFILE)
	@echo "==> comparing the results with the baseline"
	@$(BIN)/companion check --profile $(PROFILE)

test: lint
	@echo "==> tests"
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: install
	@echo "==> lint"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

lock: install ## maintainers: resolve anew what pyproject.toml asks for; versions that still fit stay (uv's --upgrade takes the newest)
	@$(BIN)/uv pip compile pyproject.toml --group weights --group build --extra book --extra dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --custom-compile-command "make lock" --quiet -o requirements.lock

clean:
	@rm -rf _build
