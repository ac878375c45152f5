# Everything starts with setup, which does nothing when nothing changed.
PYTHON ?= python3
PAPERS ?=
SCALE ?= quick
SEED ?= 0
BIN := .venv/bin

.PHONY: help setup reproduce control test notebooks lint lab bench lock clean

help:
	@echo "make reproduce [PAPERS=\"saber batch-pi\"] [SCALE=quick] [SEED=0]   run the papers and print their claims"
	@echo "make control   [PAPERS=...]   the same with each method switched off: claims must fail"
	@echo "make test      run all tests      make lint   style, types, layers"
	@echo "make notebooks each claim of each notebook as a test"
	@echo "make lab       the papers in JupyterLab   make bench  run the benchmarks"
	@echo "make setup     .venv and the workbench command    make lock   pin versions anew    make clean"

setup:
	@$(PYTHON) scripts/setup.py

reproduce: setup
	@$(BIN)/workbench reproduce $(PAPERS) --scale $(SCALE) --seed $(SEED)

control: setup
	@$(BIN)/workbench reproduce $(PAPERS) --scale $(SCALE) --seed $(SEED) --control

test: setup
	@$(BIN)/python -m pytest -n 2 --dist loadgroup

notebooks: setup
	@$(BIN)/python -m pytest -n 2 notebooks

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright

lab: setup
	@$(BIN)/workbench lab

bench: setup
	@for script in benchmarks/*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

lock: setup
	@$(BIN)/python scripts/lock.py

clean:
	rm -rf .venv runs .artefacts .pytest_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
