# Everything a change has to pass. `make fix` repairs what tools can repair.
PYTHON ?= python3

.PHONY: check format lint types test slow fix

check: format lint types test

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy src
	$(PYTHON) -m mypy tests

test:
	$(PYTHON) -m pytest -W error

slow:
	$(PYTHON) -m pytest -W error -m slow

fix:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
