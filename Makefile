# Everything a change has to pass. `make fix` repairs what tools can repair.
PYTHON ?= python3
# A test that hangs in spite of its time-out ends the run, and its traceback is the last thing shown.
PYTEST = $(PYTHON) -m pytest -W error -o faulthandler_exit_on_timeout=true

.PHONY: check format lint types test slow docs fix

check: format lint types test

format:
	$(PYTHON) -m ruff format --check .

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy src
	$(PYTHON) -m mypy tests
	$(PYTHON) -m mypy docs

# Two processes, for a suite of small worlds leaves half of two cores idle. What the second says is shown at its end.
define in_two
@output=$$(mktemp) && { $(PYTEST) $(1) >$$output 2>&1 & } && second=$$!; \
$(PYTEST) $(2); first=$$?; wait $$second; second=$$?; cat $$output; rm -f $$output; \
test $$first = 0 -a $$second = 0
endef

WORLDS = contract examples faults mutations

# The runner's tests go with those of everything but the core, so that both processes end at about the same time.
test:
	$(call in_two,$(filter-out tests/core/,$(wildcard tests/*/ tests/test_*.py)) tests/core/runner,tests/core --ignore tests/core/runner)

slow:
	$(call in_two,-m slow $(WORLDS:%=--ignore tests/%),-m slow $(WORLDS:%=tests/%))

# The site, from docs/ and from the code: build/docs/html/index.html. Whatever Sphinx warns of ends it.
SPHINXOPTS ?= -W --keep-going -j auto

docs:
	$(PYTHON) -m docs.generator build/docs/pages
	$(PYTHON) -m sphinx -q -c docs $(SPHINXOPTS) build/docs/pages build/docs/html
	$(PYTHON) -m docs.generator.self_contained build/docs/html

fix:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
