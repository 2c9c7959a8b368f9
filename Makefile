# Everything a developer does, by one name each. `make help` lists them.

# The Python that .venv is made with: the first of these that is 3.11 or newer and
# can make environments. 3.11 comes first as constraints.txt was resolved with it.
# Take another with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
		>/dev/null 2>&1 && { echo $$python; break; }; done)

# The build backend is held to the same versions. New pip reads the second name,
# old pip the first.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

# Notebooks and pictures leave nothing in the home folder.
export IPYTHONDIR := $(CURDIR)/.venv/jupyter
export JUPYTER_CONFIG_DIR := $(CURDIR)/.venv/jupyter
export JUPYTER_DATA_DIR := $(CURDIR)/.venv/jupyter
export JUPYTER_RUNTIME_DIR := $(CURDIR)/.venv/jupyter
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-slow test-jax check bench notebooks clean

help: ## list what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11 or newer that can make \
	environments (on Debian that takes the package python3-venv too). Install one, or \
	say which to use: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: \
	$(PYTHON) cannot be run or is older than 3.11. Say which to use: make \
	PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,openvino,onnx,cluster]' -c constraints.txt
	@touch $@

venv: $(INSTALLED) ## make .venv with everything in it, once

demo: $(INSTALLED) ## run the whole story on two made-up rural areas
	$(BIN)/cropseg demo --out cropseg_demo

# Two processes: most of a test's time is spent tracing, on one core. A file stays whole,
# so that its fixtures are made once.
test: $(INSTALLED) ## run the tests that take seconds
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Tests in a browser skip where there is none. Root gets one where there is apt-get.
test-slow: $(INSTALLED) ## run the tests that take minutes, in a browser, on workers
	@command -v chromium >/dev/null || \
	{ test "$$(id -u)" -eq 0 && command -v apt-get >/dev/null && \
		apt-get update && apt-get install --yes chromium; } || \
	echo 'There is no Chromium: the tests that need it are skipped.'
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'slow or browser or cluster'

test-jax: $(INSTALLED) ## run the transfer battery on JAX
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,openvino,onnx,cluster,jax]' -c constraints.txt
	KERAS_BACKEND=jax $(BIN)/python -m pytest tests/transfer/test_battery.py -m ""

check: $(INSTALLED) ## lint, format, types, import order, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cropseg
	$(BIN)/lint-imports
	$(BIN)/codespell

bench: $(INSTALLED) ## run every benchmark
	@for file in benchmarks/*.py; do \
		test -e "$$file" || { echo 'There is no benchmark.'; break; }; \
		echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

# Each runs with notebooks/ as its working folder, on the Python of .venv.
notebooks: $(INSTALLED) ## execute every notebook and keep its output
	@for file in notebooks/*.ipynb; do \
		test -e "$$file" || { echo 'There is no notebook.'; break; }; \
		$(BIN)/python -m nbconvert --to notebook --execute --inplace \
			--ExecutePreprocessor.kernel_name=python3 "$$file" || exit 1; done

clean: ## remove caches, builds and the demo's output, not .venv and not your runs
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf build dist cropseg_demo
	find cropseg tests scripts benchmarks notebooks \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
