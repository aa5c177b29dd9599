# `make run` and `make test` need only python3 (3.11 or newer) on a Linux machine: tools/bootstrap.py gets the rest.
PYTHON ?= python3
BOOTSTRAP = $(PYTHON) tools/bootstrap.py
DEV = .venv/dev/bin

.PHONY: help run test lint types unit unit-pythons integration bench lock build clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: ## install what is missing, train the example models, serve them on port 8080 until Ctrl-C
	@exec $(BOOTSTRAP) run $(ARGS)

test: lint types unit unit-pythons integration ## everything that CI runs

dev:
	@$(BOOTSTRAP) env dev

lint: dev ## ruff, codespell
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/codespell

types: dev ## mypy --strict
	$(DEV)/mypy

unit: dev ## unit tests
	$(DEV)/pytest -q -m "not integration"

unit-pythons: dev ## unit tests on every other CPython 3.11 to 3.13 of this machine
	@for version in $$($(BOOTSTRAP) pythons); do \
		$(BOOTSTRAP) env $$version || exit 1; \
		echo "unit tests on Python $$version"; \
		.venv/py$$version/bin/pytest -q -m "not integration" || exit 1; \
	done

integration: dev ## tests with real supervisord, fronts and workers
	$(DEV)/pytest -q -m integration

bench: dev ## side by side with FastAPI in one run (needs wrk)
	@$(BOOTSTRAP) env bench
	$(DEV)/python benchmarks/bench.py $(ARGS)

lock: ## renew requirements/*.txt from setup.cfg
	@$(BOOTSTRAP) lock

build: dev ## the wheel, in dist/
	.venv/tools/bin/uv build --wheel --quiet

clean: ## remove environments, builds, caches and the run directory
	rm -rf .venv build dist *.egg-info run .mypy_cache .ruff_cache .pytest_cache .hypothesis
