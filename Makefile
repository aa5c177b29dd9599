# `make run` and `make test` need only python3 (3.11 or newer) on a Linux machine: tools/bootstrap.py gets the rest.
PYTHON ?= python3
BOOTSTRAP = $(PYTHON) tools/bootstrap.py
DEV = .venv/dev/bin

.PHONY: help run test lint types unit unit-pythons integration e2e fleet explore fuzz-lanes scenarios bench lock build clean python dev
# With -j too: what fails is told apart.
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

run: python ## install what is missing, train the example models, serve them on port 8080 until Ctrl-C
	@exec $(BOOTSTRAP) run $(ARGS)

# Tests with real processes leave a third of two processors idle. Beside them run those that stand a busy machine: the unit
# tests, those with a fleet, which wait half of their time, and the unit tests on other Pythons, which take what is left.
test: dev ## everything that CI runs
	@$(PYTHON) tools/side_by_side.py "lint types integration" "unit e2e unit-pythons"

python: # here, because an old Python cannot even read tools/bootstrap.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("modelhost: Python 3.11 or newer is needed, $(PYTHON) is %d.%d: \"make PYTHON=/path/to/python3.11 ...\" names another" % sys.version_info[:2])'

dev: python
	@$(BOOTSTRAP) env dev

lint: dev ## ruff, codespell
	$(DEV)/ruff check .
	$(DEV)/ruff format --check .
	$(DEV)/codespell

types: dev ## mypy --strict
	$(DEV)/mypy
	$(DEV)/mypy tools
	$(DEV)/mypy ansible/library
	$(DEV)/mypy ansible/action_plugins

unit: dev ## unit tests
	$(DEV)/pytest -m "not integration" -n 2

unit-pythons: python ## unit tests on every other CPython 3.11 to 3.13 of this machine
	@nice $(BOOTSTRAP) others pytest -m "not integration" -n 2 --ignore tests/ansible # which hosts run with Debian's own Python

integration: dev ## tests with real supervisord, fronts and workers
	$(DEV)/pytest -m "integration and not e2e" -n 2 --dist loadfile --no-loadscope-reorder --durations 20

e2e: dev ## tests with a fleet of real hosts: systemd, SSH, Ansible (as root, on Debian)
	$(DEV)/pytest tests/e2e -m e2e --durations 20

fleet: dev ## boot a fleet of bare hosts to try playbooks on; Ctrl-C takes it away
	@exec $(DEV)/python tests/e2e/try_fleet.py $(ARGS)

explore: dev ## the property tests with other examples each time, and twenty times as many
	$(DEV)/pytest -m "hypothesis and not integration" -n 2 --hypothesis-profile explore $(ARGS)

fuzz-lanes: dev ## a million generated requests against both lanes of the front
	cd tests/integration && PYTHONPATH=. ../../$(DEV)/python lanes.py $(ARGS)

scenarios: python ## overload, a noisy neighbour, killed workers: modelhost past its limits
	@for name in host models bench; do $(BOOTSTRAP) env $$name || exit; done
	.venv/bench/bin/python -P models/bundled/train.py --repository model_repository
	.venv/bench/bin/python benchmarks/scenarios.py $(ARGS)

bench: python ## side by side with other model servers in one run (needs wrk); ARGS="--help" says more
	@for name in host models bench bench-fastapi bench-mosec bench-mlserver bench-litserve bench-bentoml bench-ray; do \
		$(BOOTSTRAP) env $$name || exit; done
	.venv/bench/bin/python -P models/bundled/train.py --repository model_repository
	.venv/bench/bin/python benchmarks/bench.py $(ARGS)

lock: python ## renew requirements/*.txt from setup.cfg
	@$(BOOTSTRAP) lock

build: dev ## the wheel, in dist/
	.venv/tools/bin/uv build --wheel --quiet

clean: ## remove environments, builds, caches and the run directory
	rm -rf .venv build dist *.egg-info run .mypy_cache .ruff_cache .pytest_cache .hypothesis
