# With the environment that README's first command makes, and `.venv/bin/pip install -c constraints.txt -e ".[dev]"`.
BIN := .venv/bin

.PHONY: check test docs

check:  ## linters and type checkers, nothing started
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/pyright -p pyright-strict.json

test:  ## what `pytest` runs by default; `-m slow`, `-m gpu` and `-m chaos` are the rest
	$(BIN)/pytest

docs:  ## the page of fields, made anew; that commands, fields, files and links in the pages are true
	$(BIN)/python docs/make_configuration.py > docs/configuration.md
	$(BIN)/pytest tests/docs
