# Each target makes the machine ready first: see scripts/setup.
.PHONY: demo test tests check bench wheel-test all-pythons soak clean setup

demo:
	@scripts/setup demo
	@.venv/bin/lazycluster demo

# More workers than cores: tests of real hosts wait for much of their time.
WORKERS ?= 3

test: check tests

# Every test but those of `make soak`; `make test` checks the code as well.
tests: setup
	.venv/bin/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term-missing:skip-covered tests/unit tests/process tests/contract tests/real

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python scripts/check-shell
	.venv/bin/python scripts/check-prose
	scripts/check-public-types

# The speed, side by side with the floors and the peers: `make bench BENCH="--quick --only 1,2"`.
bench:
	@scripts/setup bench
	.venv-bench/bin/python -m benchmarks $(BENCH)

# The built wheel in empty environments: a smoke test, and the types that a strictly typed consumer sees.
wheel-test: setup
	scripts/wheel-test

# The unit and process tests on every other supported Python that this machine has.
all-pythons: setup
	scripts/all-pythons

# Tests that are long by nature: run them once for a change that touches their subject.
soak: setup
	.venv/bin/python -m pytest -m soak tests
	scripts/all-pythons
	scripts/wheel-test

setup:
	@scripts/setup test

clean:
	rm -rf .venv .venv-* build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
