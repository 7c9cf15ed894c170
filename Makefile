# make demo    install what it needs, then see a virtual server backed up, destroyed and restored
# make test    install what it needs, then lint and run all tests
# make kill    the tests that kill the engine, at every one of some 700 points instead of a sixth of them, and those that cut off
#              each storage at every megabyte
# make storages  every test of every storage, on every server, an old Ceph among them
# make databases   the controller's tests, each on SQLite and on PostgreSQL, instead of those alone where the two could differ
# make bench   measure on a quiet machine; one JSON line per figure
#
# All of them work on a fresh Debian 12 with git, make, python3 and apt, as root or with sudo, and leave nothing outside build/.

SHELL := /bin/bash
PYTHON := build/venv/bin/python
WORKERS ?= 3
# Compiled modules are kept, in build/ too, whatever the environment says: the many processes that a run starts would
# compile them anew each.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/bytecode
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint unit kill storages databases bench generate format clean

demo:
	@.ci/bootstrap demo
	@$(PYTHON) -m tests.demo build

test: lint unit

lint:
	@.ci/bootstrap test
	build/venv/bin/ruff format --check --quiet .
	build/venv/bin/ruff check --quiet .
	build/venv/bin/mypy --cache-dir build/mypy
	build/venv/bin/buf lint

unit:
	@.ci/bootstrap test
	.ci/unit $(WORKERS)

kill:
	@.ci/bootstrap test
	BM_KILL_POINTS=all $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup tests/engine/test_kill.py tests/engine/test_resume.py \
		tests/engine/test_started_meanwhile.py tests/engine/test_raw_random.py tests/engine/test_interrupted_backups.py \
		tests/engine/test_interrupted_deletions.py \
		tests/engine/storage tests/e2e/test_stress_engine.py

storages:
	@.ci/bootstrap storages
	BM_STORAGES=all BM_KILL_POINTS=all $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup tests/engine/storage tests/engine/test_s3_backups.py \
		tests/engine/test_interrupted_backups.py tests/engine/test_interrupted_deletions.py tests/e2e/test_storage_types.py \
		tests/e2e/test_bundle.py

databases:
	@.ci/bootstrap test
	BM_DATABASES=all $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup tests/controller

bench:
	@.ci/bootstrap bench
	@$(PYTHON) -m tests.bench

generate:
	@.ci/bootstrap test
	$(PYTHON) -m clients.generate

format:
	build/venv/bin/ruff format .
	build/venv/bin/ruff check --fix .

clean:
	rm -rf build
