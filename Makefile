# `make demo` and `make test` need nothing but Python 3.11 or newer; they make what else they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CELERY_VENV := .venv-celery
OLD_CELERY_VENV := .venv-celery56
# Options for pytest: make test ARGS="-k redis -x"
ARGS ?=

.PHONY: help demo test interop56 lint prove prove-rabbitmq prove-postgres bench docs clean servers
# Where newer versions of RabbitMQ are kept for `make prove-rabbitmq`
RABBITMQS ?= .rabbitmq

help:
	@echo "make demo    see it work: a small project on SQLite, no server needed"
	@echo "make test    install what the tests need, then lint, type checks and all tests"
	@echo "make interop56  workers and producers of Celery 5.6 on the other side, on one queue with ours"
	@echo "make lint    ruff, mypy and pyright"
	@echo "make prove   the long form of every fault test"
	@echo "make prove-rabbitmq   the same on RabbitMQ 4.0 and the newest one (as root)"
	@echo "make prove-postgres   the same on PostgreSQL 18"
	@echo "make bench   measure, beside Celery and dramatiq on this machine"
	@echo "make docs    write the generated pages anew"

demo: $(VENV)/.installed
	$(BIN)/celeriac demo

test: $(VENV)/.developed $(CELERY_VENV)/.installed servers lint
	$(BIN)/python -m pytest $(ARGS)

interop56: $(VENV)/.developed $(OLD_CELERY_VENV)/.installed servers
	CELERIAC_CELERY_PYTHON="$(CURDIR)/$(OLD_CELERY_VENV)/bin/python" $(BIN)/python -m pytest tests/interop $(ARGS)

lint: $(VENV)/.developed
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

prove: $(VENV)/.developed $(CELERY_VENV)/.installed servers
	CELERIAC_PROOFS=docs/proofs.md $(BIN)/python -m pytest -m full $(ARGS)

prove-rabbitmq: $(VENV)/.developed $(CELERY_VENV)/.installed servers
	sh tests/install-rabbitmq.sh $(RABBITMQS)
	set -e; for suite in trixie sid; do \
		CELERIAC_RABBITMQ_ROOT=$(abspath $(RABBITMQS))/$$suite $(BIN)/python -m pytest -m "full or not full" \
			tests/brokers/test_rabbitmq_broker.py tests/faults/test_rabbitmq.py tests/interop/test_rabbitmq.py $(ARGS); \
	done

prove-postgres: $(VENV)/.developed $(CELERY_VENV)/.installed servers
	CELERIAC_POSTGRES=newest CELERIAC_PROOFS=docs/proofs.md $(BIN)/python -m pytest -m "full or not full" \
		-k "postgres or transaction" $(ARGS)

bench: $(VENV)/.developed $(CELERY_VENV)/.installed servers
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.developed
	$(BIN)/python docs/generate.py

servers:
	@sh tests/install-servers.sh

clean:
	rm -rf $(VENV) $(CELERY_VENV) $(OLD_CELERY_VENV) .celeriac .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "celeriac needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { echo "make: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.developed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[all]" --group dev
	@touch $@

# Real Celery, to stand on the other side of the tests, and dramatiq, to be measured beside. Never in the same Python.
$(CELERY_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(CELERY_VENV)
	$(CELERY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "celery==5.7.*" redis hiredis "dramatiq==2.2.*" "pgqueuer[asyncpg]" sqlalchemy "psycopg[binary]" PyMySQL pymemcache msgpack PyYAML packaging
	@touch $@

$(OLD_CELERY_VENV)/.installed: Makefile
	$(PYTHON) -m venv $(OLD_CELERY_VENV)
	$(OLD_CELERY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check "celery==5.6.*" redis hiredis msgpack PyYAML packaging
	@touch $@
