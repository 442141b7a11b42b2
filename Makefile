# `make run` starts the portal, `make test` checks and tests it; both build .venv by themselves. See README.md.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --no-cache-dir --disable-pip-version-check --no-input --requirement
COMPILE := CUSTOM_COMPILE_COMMAND="make requirements" $(BIN)/python -m piptools compile --quiet --generate-hashes \
	--allow-unsafe --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-trusted-host

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-openstack audit chaos upgrade bench-horizon check format bench permissions pictures screenshots requirements clean

help:
	@echo "make run             start the portal with an SQLite database and demo data (Ctrl-C stops it)"
	@echo "make test            check the code, then run every test; make check only checks it"
	@echo "make test-fast       run the tests that need neither a browser nor child processes (two minutes)"
	@echo "make test-openstack  test the Cinder driver on an OpenStack of its own (root, Debian 12)"
	@echo "make audit           ask OSV whether a pinned package has a known hole (needs the internet)"
	@echo "make chaos           kill everything while customers click, then see that nothing is lost (CHAOS_SECONDS=600)"
	@echo "make upgrade         migrate while an old version serves (PostgreSQL's programs; FROM=commit)"
	@echo "make format          format the code"
	@echo "make bench           measure what must stay fast"
	@echo "make permissions     write docs/permissions.md: who may do what"
	@echo "make        bring the translations up to date with the code (gettext)"
	@echo "make pictures        take the pictures of the guide anew, into static/help"
	@echo "make screenshots     take a picture of every page in every look, into tests/screenshots, to look at"
	@echo "make bench-horizon   compare the page of snapshots with Horizon's (root, Debian 12)"
	@echo "make requirements    pin the newest packages that pyproject.toml allows"
	@echo "make clean           remove .venv and the caches of the tools; the data folder stays"

# Nothing is written but .venv and the data folder, no __pycache__ either.
run: export PYTHONDONTWRITEBYTECODE := 1
run: .venv/.run
	@$(BIN)/python manage.py serve

test: check
	@$(BIN)/python -m tests

# For the loop of work: SQLite alone, without a browser and without child processes.
test-fast: .venv/.test
	@$(BIN)/python -m pytest --quiet -n 2 -m "not browser and not slow" --ignore tests/lab/openstack

# The tools read the settings: from nowhere but here, so that a .env does not change what they find.
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

# --strict: what could not be audited has not passed. pip-audit says the reason last, after a traceback where nobody answers.
# Holes that the portal does not reach: --ignore-vuln ID, each with its reason in a comment here.
OUT_OF_REACH :=
OSV ?= https://api.osv.dev/v1/query
audit: .venv/.audit
	@.venv/audit/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off --vulnerability-service osv \
		--osv-url $(OSV) $(OUT_OF_REACH) -r requirements.txt -r requirements-openstack.txt 2>.venv/audit/log; \
		status=$$?; tail -n 1 .venv/audit/log; [ $$status = 0 ] || echo "NOT PASSED: a package has a known hole, or the" \
		"list of holes could not be asked and nothing is known. SECURITY.md says what to do, and how soon."; exit $$status

chaos: .venv/.test
	@$(BIN)/python -m tests.lab.chaos

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
	$(COMPILE) --upgrade --output-file tests/lab/openstack/requirements.txt tests/lab/openstack/requirements.in
	$(COMPILE) --upgrade --output-file tests/lab/openstack/horizon.txt tests/lab/openstack/horizon.in

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find cng_portal billing snapshots tests -name __pycache__ -prune -exec rm -rf {} +

# pip is what is missing after `venv` stopped half-way, so it tells whether there is an environment.
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

.venv/.test: requirements-test.txt | .venv/bin/pip
	$(INSTALL) requirements-test.txt
	@touch $@
