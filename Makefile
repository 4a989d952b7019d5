# Everything runs in .venv, which the first target sets up from requirements.lock. PYTHON picks the interpreter (3.11+).
PYTHON ?= python3
BIN := .venv/bin
# Ray 2.60 writes a token to the home folder unless told not to; nothing here listens beyond this machine.
export RAY_AUTH_MODE ?= disabled

.PHONY: quickstart test lint format bench serve lock clean

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rayclip needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

quickstart: .venv/ready  ## draw the demo, embed it, index it, search it
	rm -rf out/demo
	$(BIN)/python -m jobs.demo --out out/demo/figures
	$(BIN)/python -m jobs.embed --config jobs/configs/demo.toml
	$(BIN)/python -m jobs.build_index --store out/demo/store
	$(BIN)/python -m jobs.demo.show --store out/demo/store --sheet out/demo/hits.png

# Two processes, whatever the machine: tests are made for two cores, and each process has a Ray of its own.
test: .venv/ready  ## all tests, offline and without a GPU
	$(BIN)/python -m pytest --numprocesses 2

lint: .venv/ready  ## format, style, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/ready  ## the embed job against this machine's own ceiling; some minutes
	$(BIN)/python -m jobs.benchmark throughput

serve: .venv/ready  ## serve the demo of `make quickstart`
	$(BIN)/python -m jobs.serve --store out/demo/store

lock: .venv/ready  ## after a change of dependencies in pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --no-header --upgrade --quiet --output-file requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra kubernetes --extra aws --constraint requirements.lock --universal \
	  --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet \
	  --output-file cluster/requirements.lock

clean:
	rm -rf .venv out build *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
