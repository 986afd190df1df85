# `make run` starts the gateway, `make test` checks everything; each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Test processes: one for each processor, from 2 to 4, for each has servers of its own.
WORKERS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
    [ "$$n" -ge 2 ] || n=2; [ "$$n" -le 4 ] || n=4; echo $$n)
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := llm_gateway billing pricing_rules migrations tests bench

.DEFAULT_GOAL := help
.PHONY: help run test check bench bench-ledger bench-prices bench-simulate fmt lock wheel clean mutate soak

help:
	@echo "make run    start the gateway (http://127.0.0.1:8080)"
	@echo "make test   formatting, lint, types, layers, and all tests"
	@echo "make check  formatting, lint and types only"
	@echo "make bench  what a call costs in CPU, latency and memory, and what its price does"
	@echo "make bench-ledger  charges and holds per second on both engines"
	@echo "make bench-simulate  re-rating a million calls on both engines"
	@echo "make bench-prices  reading, uploading and matching 10,000 price rules"
	@echo "make mutate change the code that reckons money, line by line, and see a test fail"
	@echo "make soak   kill, freeze and cut off processes under load, then audit (MINUTES=10 SEED=1)"
	@echo "make fmt    format and fix what can be fixed"
	@echo "make lock   resolve the dependencies anew (needs uv)"

run: $(VENV)/.runtime
	@exec $(BIN)/llm-gateway serve

test: check
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m bench $(ARGS)
	$(BIN)/python -m bench.prices

bench-ledger: $(VENV)/.dev
	$(BIN)/python -m bench.ledger $(ARGS)

bench-simulate: $(VENV)/.dev
	$(BIN)/python -m bench.simulate $(ARGS)

bench-prices: $(VENV)/.dev
	$(BIN)/python -m bench.prices $(ARGS)

fmt: $(VENV)/.dev
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --no-annotate pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-header --no-annotate pyproject.toml --group dev -c requirements.lock -o requirements-dev.lock

# A quarter of an hour of one core. What survives is compared with tests/mutation_survivors.toml.
# A part of it: make mutate ARGS='"billing.ledger.*" "pricing_rules.*"'. What earlier runs found is
# dropped, for mutmut does not try a survivor again on new tests.
mutate: $(VENV)/.dev
	rm -rf mutants
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mutmut run --max-children $(WORKERS) $(ARGS)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.mutation $(ARGS)

# The same seed plans the same calls and faults. HOLDS=redis puts the holds there.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),1) --holds $(or $(HOLDS),database) \
	    $(if $(SEED),--seed $(SEED)) $(ARGS)

wheel: $(VENV)/.dev
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov mutants

# The locks are whole, so nothing is left to resolve: older pips would look for newer releases of what has extras.
# The stamps are newer than the locks exactly when the environment holds what the locks say.
$(VENV)/.created: Makefile
	@command -v $(PYTHON) >/dev/null || { echo "llm-gateway needs Python 3.11 or newer; there is no '$(PYTHON)' on the PATH (set PYTHON=...)." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "llm-gateway needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>&1). Set PYTHON=... to another." >&2; exit 1; }
	@test -x $(BIN)/python || echo "Making the environment in $(VENV) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@touch $@

$(VENV)/.runtime: $(VENV)/.created requirements.lock pyproject.toml
	@echo "Installing what the gateway needs (first time: about a minute) ..."
	@$(PIP_INSTALL) --no-deps --require-hashes -r requirements.lock
	@$(PIP_INSTALL) --no-deps -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@echo "Installing what the tests need ..."
	@$(PIP_INSTALL) --no-deps --require-hashes -r requirements-dev.lock
	@touch $@
