# Everything runs in .venv, which is made on first use.
#   make demo      the main job, in minutes on two CPU cores       make test      the everyday tests
#   make test-all  slow and multi-process tests too                make lint      ruff, the type checker, the import rules
#   make bench     the small settings of all benchmarks            make studies    what is missing of the studies, and their pages
#   make test-part PART=0     one ninth of the slow tests          make gpu       what wants a GPU, in under eight minutes
#   make docs      the documentation site in site/, its links checked
# torch is installed first and alone, because whatever else pulls it in may choose a build of several gigabytes.
# On a machine with the plain package index, a CPU build comes with
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin
WORKERS ?= 2
PART ?= $(shell echo $$(( $$(date +%s) / 86400 % 9 )))
STUDIES ?=
SETTING ?= tiny
unexport PYTHONDONTWRITEBYTECODE  # compiled once, not by every worker and every process that a test starts

.PHONY: demo test test-all test-part gpu lint format bench studies docs clean

demo: .venv/installed
	$(BIN)/meristem demo --out demo

test: .venv/installed
	$(BIN)/pytest -n $(WORKERS) -m "not slow"

test-all: .venv/installed
	$(BIN)/pytest -n $(WORKERS) --timeout=1800

test-part: .venv/installed
	$(BIN)/pytest -n $(WORKERS) --timeout=1800 --part $(PART)

gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python -m docs.tools.prose
	$(BIN)/python -m docs.tools.words
	$(BIN)/codespell README.md docs examples src

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	for benchmark in benchmarks/[a-z]*.py; do $(BIN)/python $$benchmark --small || exit 1; done

studies: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks run $(STUDIES) --setting $(SETTING)
	$(BIN)/python -m benchmarks report

docs: .venv/installed
	$(BIN)/python -c "import zensical, mkdocstrings_handlers.python" || $(BIN)/pip install --quiet -e ".[docs]"
	$(BIN)/python -m docs.tools.build

clean:
	rm -rf .venv build site dist .pytest_cache .ruff_cache

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Meristem needs Python >= 3.11; this is " + sys.version.split()[0] + ". Choose one with make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet -e ".[dev,data]"
	touch $@
