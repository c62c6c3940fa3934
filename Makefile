# Sets up a fresh machine (virtual environment, pinned dependencies, model files), then runs the target.
# Finished steps are not repeated: .venv/ready is newer than its prerequisites, and model files stay in the cache.
CONFIG ?= configs/quickstart.yaml
NAME ?= $(basename $(notdir $(CONFIG)))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do command -v $$p >/dev/null && \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# Many tests wait for processes that they started. Each process takes about 3 GB.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder

.PHONY: help setup sweep test test-fast coverage mutation check bench clean

help:
	@echo "make sweep [CONFIG=configs/quickstart.yaml] [NAME=name]   run a sweep"
	@echo "make test                                                 run the tests"
	@echo "make test-fast                                            run those without the real models and Ray, in about 4 minutes"
	@echo "make coverage                                             run all tests and measure the lines that they run"
	@echo "make mutation                                             change the code in 3,000 places, and list what no test notices"
	@echo "make check                                                check formatting, lint and types"
	@echo "make bench                                                compare a training step with the original's"
	@echo "make setup                                                only create the environment and fetch the model files"
	@echo "make clean                                                remove the environment; keep outputs and models"

setup: .venv/ready
	@$(BIN)/nuanced weights --quiet

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.12 found: install one, or set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[eval]' \
		2>.venv/eval.log || echo "skipped the extra 'eval' (speaker identity): it needs a C compiler; see .venv/eval.log"
	@# For the tests of voice packs; it wants another phonemizer than misaki, of the same import name.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps kokoro-onnx
	@touch $@

sweep: setup
	$(BIN)/nuanced sweep $(CONFIG) --name $(NAME)

test: setup
	$(PYTEST)

test-fast: .venv/ready
	$(PYTEST) -m "not slow"

coverage: setup
	$(PYTEST) --cov=nuanced_core --cov=tune --cov-report=term-missing:skip-covered --cov-fail-under=92

mutation: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children $(TEST_PROCESSES)
	$(BIN)/mutmut results

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m tests.benchmarks.step

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
