# The two commands of the README, and the ones that developers use. Everything lands in .venv and in the data directory.
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= .data
IMAGES := $(CURDIR)/$(DATA)/images

KILLS ?= 300

.PHONY: demo test setup setup-test check lint protos storm bench

demo: setup ## Publish a sample Skill, call it, see live output, result, artifacts and usage
	deploy/one-machine/demo.sh

test: setup-test ## Everything that must hold: linters, types, layers, generated code, all tests
	$(MAKE) --no-print-directory check
	SKILLCELL_IMAGES=$(IMAGES) SKILLCELL_TEST_IMAGES=$(IMAGES) $(BIN)/python tests/with_engine.py $(BIN)/pytest $(PYTEST_ARGS)

setup:
	deploy/one-machine/setup.sh run

setup-test:
	deploy/one-machine/setup.sh test

check: ## What needs no sandbox: format, lint, types, layers, protos
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	PYTHON=$(abspath $(BIN))/python protos/generate.sh --check

protos: ## Generate runtime/skillcell/v1 from protos/
	PYTHON=$(abspath $(BIN))/python protos/generate.sh

storm: setup-test ## Hundreds of deaths of the gateway under load, over both stores: nothing lost, nothing doubled
	PYTHONPATH=tests SKILLCELL_IMAGES=$(IMAGES) SKILLCELL_TEST_IMAGES=$(IMAGES) $(BIN)/python tests/storm.py --kills $(KILLS)

bench: setup-test ## Benchmarks; each prints ratios taken side by side in one run
	set -e; for bench in tests/benchmarks/bench_*.py; do echo "== $$bench"; SKILLCELL_IMAGES=$(IMAGES) $(BIN)/python $$bench; done
