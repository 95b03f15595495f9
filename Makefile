# The commands that one needs to know. `make study` and `make test` set everything up themselves.
PYTHON ?= python3.11
BIN := .venv/bin
RECIPE ?= laptop
DEFAULT_TESTS := not ray

.PHONY: study test test-default test-ray check format setup clean

study: setup ## the main job: a finished small study and its report
	$(BIN)/tsd study $(RECIPE)

test: test-default test-ray ## every test tier that this machine can run

test-default: setup ## no Ray, no network, no GPU
	$(BIN)/pytest -m "$(DEFAULT_TESTS)"

test-ray: setup ## real local Ray clusters
	$(BIN)/pytest -m ray

check: setup ## formatting, lints, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up .venv: two to ten minutes, once"
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean: ## remove the environment and caches; runs/ stays
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
