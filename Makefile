# edge-agent: `make demo` and `make test` do all the set-up themselves. `make` alone lists what there is.
SHELL := /bin/bash
VENV ?= .venv
export VENV PYTHON PREFIX DESTDIR SYSCONFDIR JOBS SEED

.DEFAULT_GOAL := help
.PHONY: help demo test soak check format bench lock install uninstall clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|'

# A stamp for each set of packages: the second run starts at once, without the network.
$(VENV)/.demo-ready: requirements.lock requirements-build.lock pyproject.toml
	@scripts/venv.sh $(VENV) requirements.lock
	@touch $@

$(VENV)/.dev-ready: requirements-dev.lock requirements-build.lock pyproject.toml
	@scripts/venv.sh $(VENV) requirements-dev.lock
	@touch $@ $(VENV)/.demo-ready

# The foreign OPC UA server of the tests (node-opcua): what its lock names, with hashes. npm comes by system-packages.sh.
$(VENV)/opcua-peer/.ready: tests/peers/opcua/package.json tests/peers/opcua/package-lock.json
	@echo "Installing what tests/peers/opcua/package-lock.json names (with hashes; a minute the first time)"
	@mkdir -p $(@D) && cp $^ $(@D)/
	@cd $(@D) && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >npm.log 2>&1 || { tail -n 15 npm.log >&2; exit 1; }
	@touch $@

demo: $(VENV)/.demo-ready ## a simulated plant, a broker, the agent and its page; Ctrl-C ends it (options: ARGS="--for 60s")
	@scripts/system-packages.sh demo
	@scripts/demo.sh $(ARGS)

test: $(VENV)/.dev-ready ## style, types, contracts and all tests; installs the Debian packages that are missing
	@scripts/system-packages.sh test
	@$(MAKE) --no-print-directory $(VENV)/opcua-peer/.ready
	@$(MAKE) --no-print-directory check
	@scripts/test.sh

soak: $(VENV)/.dev-ready ## the long rigs: faults, kill -9, power cuts, field buses (hours; SEED=2 for others, ONLY="oracle power")
	@scripts/system-packages.sh test
	@$(MAKE) --no-print-directory $(VENV)/opcua-peer/.ready
	@scripts/soak.sh

check: $(VENV)/.dev-ready ## style (ruff), types (mypy), floors (import-linter)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.dev-ready ## let ruff lay out the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(VENV)/.dev-ready ## how fast the path of a reading is on this machine
	@$(VENV)/bin/python -m bench $(ARGS)

lock: ## write the locks anew from pyproject.toml (ARGS=--upgrade moves the pins)
	@scripts/lock.sh $(ARGS)

install: ## install the service into /opt/edge-agent (root; PREFIX, SYSCONFDIR, DESTDIR)
	@scripts/install.sh

uninstall: ## remove the service; the configuration and the data stay
	@scripts/uninstall.sh

clean: ## remove the virtual environment and everything that was made
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
