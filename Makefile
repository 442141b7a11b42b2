# `make run` starts the portal, `make test` checks and tests it; both create .venv. See README.md.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-input --requirement
COMPILE := CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/python -m piptools compile --quiet --generate-hashes \
	--allow-unsafe --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-openstack audit chaos fuzz histories upgrade bench-horizon check format bench permissions pictures screenshots requirements clean

help:
	@echo "make run             start the portal with demo data on SQLite (Ctrl-C stops it)"
	@echo "make test            check the code, then run every test; make check only checks"
	@echo "make test-fast       run the tests that need neither a browser nor child processes"
	@echo "make test-openstack  test the Cinder driver against a real OpenStack (root, Debian 12)"
	@echo "make audit           ask OSV for vulnerabilities of pinned packages (needs internet access)"
	@echo "make chaos           kill processes under load, then check that nothing is lost (CHAOS_SECONDS=600)"
	@echo "make fuzz            send random requests in every role (FUZZ_REQUESTS=20000 in each)"
	@echo "make histories       bill random histories on both databases (HISTORIES=1000)"
	@echo "make upgrade         migrate while an old version serves (needs PostgreSQL; FROM=commit)"
	@echo "make format          format the code"
	@echo "make bench           measure performance"
	@echo "make permissions     generate docs/permissions.md"
	@echo "make pictures        take the guide's screenshots, into static/help"
	@echo "make screenshots     take screenshots of every page, into tests/screenshots"
	@echo "make bench-horizon   compare the list of snapshots with Horizon's (root, Debian 12)"
	@echo "make requirements    pin the newest packages that pyproject.toml allows"
	@echo "make clean           remove .venv and tool caches, but not the data folder"

# Write nothing but .venv and the data folder.
run: export PYTHONDONTWRITEBYTECODE := 1
run: .venv/.run
	@$(BIN)/python manage.py serve

test: check
	@$(MAKE) --silent .venv/.client || echo "OpenStack's clients could not be installed, so their test is left out."
	@$(BIN)/python -m tests

# SQLite only, without a browser or child processes.
test-fast: .venv/.test
	@$(BIN)/python -m tests fast

# The tools import the settings; a .env must not change their findings.
check: export ENV_FILE := /dev/null
check: export DATA_DIR := $(CURDIR)/.venv/check
check: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/djlint templates --lint --quiet
	$(BIN)/mypy .
	$(BIN)/python manage.py makemigrations --check --dry-run

format: .venv/.test
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

permissions: export ENV_FILE := /dev/null
permissions: export DATA_DIR := $(CURDIR)/.venv/check
permissions: .venv/.test
	@$(BIN)/python -m tests.permissions

test-openstack: .venv/.openstack
	@$(BIN)/python -m tests.lab.openstack

# --strict: what can't be audited fails. pip-audit prints the reason last, after a traceback if OSV doesn't answer.
# Vulnerabilities that the portal can't reach: --ignore-vuln ID, each with its reason in a comment here.
OUT_OF_REACH :=
OSV ?= https://api.osv.dev/v1/query
audit: .venv/.audit
	@.venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off --vulnerability-service osv \
		--osv-url $(OSV) $(OUT_OF_REACH) -r requirements.txt -r requirements-openstack.txt 2>.venv/audit/log; \
		status=$$?; tail -n 1 .venv/audit/log; [ $$status = 0 ] || echo "FAILED: a package is vulnerable, or OSV did not" \
		"answer. SECURITY.md says what to do, and how soon."; exit $$status

chaos: .venv/.test
	@$(BIN)/python -m tests.lab.chaos

fuzz histories: .venv/.test
	@$(BIN)/python -m tests $@

upgrade: .venv/.test
	@$(BIN)/python -m tests.lab.upgrade

bench-horizon: .venv/.openstack
	@$(BIN)/python -m tests.lab.openstack.bench_horizon

bench: .venv/.test
	@$(BIN)/python -m tests.lab.bench

pictures: .venv/.test
	PICTURES=guide $(BIN)/python -m pytest tests/browser/test_pictures.py --quiet -k "of_the_guide"

screenshots: .venv/.test
	PICTURES=pages $(BIN)/python -m pytest tests/browser/test_pictures.py --quiet -k "every_look"

requirements: .venv/.test
	$(COMPILE) --upgrade --output-file requirements.txt pyproject.toml
	$(COMPILE) --upgrade --output-file requirements-test.txt --extra test --constraint requirements.txt pyproject.toml
	$(COMPILE) --upgrade --output-file requirements-openstack.txt --extra openstack --constraint requirements.txt pyproject.toml
	$(COMPILE) --upgrade --output-file tests/audit.txt tests/audit.in
	$(COMPILE) --upgrade --output-file tests/client.txt tests/client.in
	$(COMPILE) --upgrade --output-file tests/lab/openstack/requirements.txt tests/lab/openstack/requirements.in
	$(COMPILE) --upgrade --output-file tests/lab/openstack/horizon.txt tests/lab/openstack/horizon.in

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find cng_portal billing snapshots tests -name __pycache__ -prune -exec rm -rf {} +

# An interrupted `venv` leaves an environment without pip.
.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; $(PYTHON) is " + sys.version.split()[0] + ". Name another one: make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/.run: requirements.txt | .venv/bin/pip
	$(INSTALL) requirements.txt
	@touch $@

.venv/.openstack: requirements-openstack.txt | .venv/.test
	$(INSTALL) requirements-openstack.txt
	@touch $@

.venv/.audit: tests/audit.txt | .venv/bin/pip
	$(PYTHON) -m venv .venv/audit
	.venv/audit/$(subst .venv/,,$(INSTALL)) tests/audit.txt
	@touch $@

# OpenStack's own clients, for the tests of the API. Without them those are left out.
.venv/.client: tests/client.txt | .venv/bin/pip
	$(PYTHON) -m venv .venv/client
	.venv/client/$(subst .venv/,,$(INSTALL)) tests/client.txt
	@touch $@

.venv/.test: requirements-test.txt | .venv/bin/pip
	$(INSTALL) requirements-test.txt
	@touch $@
