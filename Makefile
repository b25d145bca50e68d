# The front door for people and CI. Everything is installed inside this folder: .tools/ (Poetry) and .venv/ (packages).
#
#     make demo
#     make test ARGS="-k folds"

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow mutants lint format bench report lock clean

# Two processes that each start a thread per core get in each other's way; one thread each is fastest and repeatable.
ONE_THREAD := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST := $(ONE_THREAD) .venv/bin/python -m pytest

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: ## install Poetry, the packages and the solutions; does nothing when they are up to date
	@sh scripts/bootstrap.sh

demo: install ## run every solution end to end on its generated sample and print a table of scores (ARGS="--all")
	@.venv/bin/python scripts/demo.py $(ARGS)

test: install ## run the default tests (ARGS="..." goes to pytest)
	$(PYTEST) -n 2 --dist loadgroup $(ARGS)

test-slow: install ## run the slow tests and those that need data beside the repository
	$(PYTEST) -m "slow or data" $(ARGS)

mutants: install ## change single places of a solution's train and infer and see whether its tests notice (ARGS="russian_art")
	@$(ONE_THREAD) .venv/bin/python scripts/mutants.py $(ARGS)

lint: install ## check format, style, import rules, declared dependencies, the lock and types
	@sh scripts/lint.sh $(ARGS)

format: install ## rewrite the Python files in the house format
	@.venv/bin/ruff check --fix-only --quiet . && .venv/bin/ruff format .

bench: install ## measure ours beside named peers and write benchmarks/RESULTS.md
	@.venv/bin/python benchmarks/run.py $(ARGS)

report: install ## write report/, a static site of all results and runs (ARGS="folders of runs")
	@.venv/bin/python -m kit_report $(ARGS)

lock: ## write poetry.lock again after a change of dependencies, then install
	@sh scripts/bootstrap.sh tools && sh scripts/poetry.sh lock && sh scripts/bootstrap.sh

clean: ## remove caches and the files of the demo; keeps .tools/, .venv/ and other runs
	@rm -rf runs/demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	@find packages solutions tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
