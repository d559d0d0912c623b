# make demo   serve the examples on http://127.0.0.1:5000 (HOST=, PORT=, SOCKETS_BROKER_URL=)
# make test   run the tests, in some minutes (ARGS="-k echo" to choose)
# make test-slow run the slow tests that make test leaves out
# make test-all run both, and make neighbours
# make fuzz   feed random input to the parsers for a minute (SECONDS=600, TARGETS="frames heads")
# make soak   stress-test all features under injected faults for ten minutes (MINUTES=60)
# make attack measure how much hostile clients slow down the others (ATTACK_ARGS="--only chunks")
# make oldest run the tests of the dependencies with their oldest declared versions
# make neighbours run the tests beside other extensions, in an environment of their own
# make audit  ask pip-audit for known vulnerabilities of the installed packages
# make house  count how easily a stranger finds the way in the package (tests/house.py)
# make docs   build the documentation into docs/_build/html
#
# You need Python 3.11 or newer and make. All commands install into .venv.

PYTHON ?= python3
VENV ?= .venv
OLDEST_PYTHON ?= $(PYTHON)
OLDEST_VENV ?= .venv-oldest
NEIGHBOURS_VENV ?= .venv-neighbours
HOST ?= 127.0.0.1
PORT ?= 5000
SECONDS ?= 60
MINUTES ?= 10
BIN := $(VENV)/bin
# Tests start hundreds of servers; where this is set, each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
# How many that is, tests/conftest.py says; a file's tests share their servers in one process.
PARALLEL := -n auto --dist loadfile
TURBO_JS := flask_sockets2/turbo/vendored/turbo.es2017-umd.js

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-all neighbours oldest oldest-installed house docs fuzz soak attack lint types audit bench clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -n 14
	@echo 'also: make lint, make types, make bench, make clean'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of packages, renewed when what is asked for has changed.
$(VENV)/.installed-%: pyproject.toml requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

# What wheels carry, for a checkout: ignored by git.
$(TURBO_JS): | $(VENV)/.installed-redis
	@$(BIN)/flask --app examples.demo turbo vendor --to $(@D) >/dev/null 2>&1 || \
		echo 'npm does not get turbo.js here: pages with Turbo load it from its CDN.'

# With the same key pages go on when the server is started again.
$(VENV)/.demo-key: | $(BIN)/python
	@$(BIN)/python -c 'import secrets; print(secrets.token_hex())' >$@

# gunicorn would try for five seconds, and not say what to do.
demo: $(VENV)/.installed-redis $(VENV)/.demo-key $(TURBO_JS)
	@! $(BIN)/python -c "import socket; socket.create_server(('$(HOST)', $(PORT)))" 2>&1 | \
		grep -q 'Address already in use' || { \
		echo 'Port $(PORT) is in use; choose another one: make demo PORT=8000'; exit 1; }
	@echo 'Open http://$(HOST):$(PORT) in a browser; Ctrl-C ends it.'
	@SECRET_KEY="$${SECRET_KEY:-$$(cat $(VENV)/.demo-key)}" \
		$(BIN)/gunicorn -k flask_sockets2.worker -b '$(HOST):$(PORT)' examples.demo:app

test: $(VENV)/.installed-test
	@tests/system-packages.sh
	$(BIN)/python -m pytest $(PARALLEL) -m 'not slow' $(ARGS)

test-slow: $(VENV)/.installed-test
	@tests/system-packages.sh
	$(BIN)/python -m pytest $(PARALLEL) -m slow $(ARGS)

test-all: test test-slow neighbours

# Their own environment, for what they bring along would hide what the package forgot to ask for.
$(NEIGHBOURS_VENV)/.installed: pyproject.toml requirements.txt tests/neighbours/requirements.txt
	$(PYTHON) -m venv $(NEIGHBOURS_VENV)
	$(NEIGHBOURS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		-r tests/neighbours/requirements.txt --editable '.[metrics]'
	@touch $@

neighbours: $(NEIGHBOURS_VENV)/.installed
	$(NEIGHBOURS_VENV)/bin/python -m pytest -n auto $(ARGS) tests/neighbours

# Their own environment, for the versions that the lower bounds name.
oldest-installed: $(OLDEST_VENV)/.installed
$(OLDEST_VENV)/.installed: pyproject.toml requirements.txt tests/oldest.txt
	$(OLDEST_PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint tests/oldest.txt --editable '.[test]'
	@touch $@

oldest: oldest-installed
	$(OLDEST_VENV)/bin/python -m pytest $(PARALLEL) $(ARGS) @tests/surfaces.txt

fuzz: $(VENV)/.installed-test
	$(BIN)/python -m tests.fuzz $(SECONDS) $(TARGETS)

soak: $(VENV)/.installed-test
	@tests/system-packages.sh
	$(BIN)/python -m tests.soak --minutes $(MINUTES) $(SOAK_ARGS)

attack: $(VENV)/.installed-test
	$(BIN)/python -m tests.attacks $(ATTACK_ARGS)

house: | $(BIN)/python
	@$(BIN)/python -m tests.house

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html
	@echo 'Open docs/_build/html/index.html in a browser.'

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/mypy

# Apart, for what it brings along would hide what the package forgot to ask for.
$(VENV)/audit/.installed: | $(BIN)/python
	$(BIN)/python -m venv --without-pip $(VENV)/audit
	$(BIN)/python -m pip --python $(VENV)/audit/bin/python install --quiet \
		--disable-pip-version-check 'pip-audit>=2.9'
	@touch $@

audit: $(VENV)/.installed-test $(VENV)/audit/.installed
	@PIPAPI_PYTHON_LOCATION='$(abspath $(BIN)/python)' \
		$(VENV)/audit/bin/python -m tests.audit $(AUDIT_ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(OLDEST_VENV) $(NEIGHBOURS_VENV) docs/_build .tox .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
