# Sets up a fresh machine (virtual environment, pinned dependencies, model files), then runs the target.
# Finished steps are not repeated: .venv/ready is newer than its prerequisites, and model files stay in the cache.
CONFIG ?= configs/quickstart.yaml
NAME ?= $(basename $(notdir $(CONFIG)))
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do command -v $$p >/dev/null && \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
# uv, if it is there: it resolves in seconds, and links the packages to its cache instead of copying them. It does not read
# pip's configuration: if that names places of packages, pip is used. `make UV= setup` takes pip, `make UV=uv setup` uv.
UV ?= $(eval UV := $(shell command -v uv >/dev/null && \
	! $(PYTHON) -m pip config list 2>/dev/null | grep -qE '(index-url|find-links|no-index)=' && echo uv))$(UV)
# pip compiles all modules, which is most of its time. uv leaves it to the first import, except where
# PYTHONDONTWRITEBYTECODE would make every process compile torch and Ray again.
INSTALL = $(if $(UV),$(UV) pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),--compile-bytecode) --python $(BIN)/python,$\
	$(BIN)/python -m pip install --quiet --disable-pip-version-check)
# Many tests wait for processes that they started. Each process takes about 3 GB.
TEST_PROCESSES ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadgroup --no-loadscope-reorder

.PHONY: help setup sweep test test-fast coverage mutation check bench package clean

help:
	@echo "make sweep [CONFIG=configs/quickstart.yaml] [NAME=name]   run a sweep"
	@echo "make test                                                 run the tests, and measure the lines and branches that they run"
	@echo "make test-fast                                            run those without the real models and Ray, in about 2 minutes"
	@echo "make coverage                                             list what the last make test did not run"
	@echo "make mutation                                             change the code in 3,500 places, and list what no test notices"
	@echo "make check                                                check formatting, lint and types"
	@echo "make bench                                                compare a training step with the original's"
	@echo "make package [PYTHON=python3.12]                          build sdist and wheel, and use the wheel in a new environment"
	@echo "make setup                                                only create the environment and fetch the model files"
	@echo "make clean                                                remove the environment; keep outputs and models"

setup: .venv/ready
	@$(BIN)/nuanced weights --quiet

.venv/ready: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.10 to 3.12 found: install one, or set PYTHON=..."; exit 1; }
	$(if $(UV),$(UV) venv --quiet --seed --allow-existing --no-python-downloads --python $(PYTHON) .venv,$(PYTHON) -m venv .venv)
	$(INSTALL) --constraint constraints.txt --editable '.[dev,eval]'
	@# For tests. They want packages that are not wanted here: a phonemizer of the import name of misaki's, and a
	@# webrtcvad that needs a C compiler.
	$(INSTALL) --constraint constraints.txt --no-deps kokoro-onnx resemblyzer
	@# Else each of hundreds of processes would compile the sources again.
	$(if $(PYTHONDONTWRITEBYTECODE),$(BIN)/python -m compileall -q nuanced_core tune tests)
	@touch $@

sweep: setup
	$(BIN)/nuanced sweep $(CONFIG) --name $(NAME)

# Lines and branches that tests run in processes of their own do not count.
test: setup
	$(PYTEST) --cov=nuanced_core --cov=tune --cov-branch --cov-report= --cov-fail-under=92

test-fast: .venv/ready
	$(PYTEST) -m "not slow"

coverage:
	$(BIN)/coverage report --show-missing --skip-covered

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

package: .venv/ready
	UV='$(UV)' PYTHON='$(PYTHON)' tests/package.sh

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache *.egg-info build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
