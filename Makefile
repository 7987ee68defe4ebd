# `make run` does the main job on real data; `make test` runs the tests. Both set up all that they need.

PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed
RUN := demo

.PHONY: run setup test nightly check lint types protos protos-check reference services wheels lock clean

run: setup
	@$(BIN)/segrec-train run --demo --run $(RUN) || test $$? -eq 6  # 6: the release stands by, as the demo explains
	@exec $(BIN)/python deploy/demo.py --run runs/$(RUN)

setup: $(STAMP)
	@$(BIN)/segrec-triton install

# pip takes torch alone, since only pip can be told where a build without CUDA lies; uv takes the rest, in seconds.
$(STAMP): pyproject.toml protos/pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is missing: install it, or name another with PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing the pinned packages into .venv (one or two minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -E '^(torch|uv)==' requirements.lock)
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e protos -e .
	@touch $@

# Programs that the tests run and that no Python package brings: services, a browser, and generators of code for other languages.
SERVICES := redis-server prometheus chromium postgresql protobuf-compiler protoc-gen-go

services:
	@PACKAGES="$(SERVICES)"; command -v node >/dev/null || PACKAGES="$$PACKAGES nodejs"; command -v npm >/dev/null || PACKAGES="$$PACKAGES npm"; \
	  { command -v redis-server && command -v promtool && command -v chromium && command -v protoc && command -v protoc-gen-go \
	  && command -v node && command -v npm && ls /usr/lib/postgresql/*/bin/initdb; } >/dev/null 2>&1 || { \
	  echo "Installing for the tests: $$PACKAGES"; \
	  SUDO=$$(test "$$(id -u)" = 0 || echo sudo); \
	  $$SUDO apt-get update -qq && $$SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$PACKAGES >/dev/null; } \
	|| { echo "error: a program that the tests need is missing: install the packages $$PACKAGES"; exit 1; }

# Tests of the running server mostly wait, two at once; simulated histories take all cores themselves.
test: setup services
	@$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile \
	  --ignore=tests/service --ignore=tests/simulation
	@$(BIN)/python -m pytest --numprocesses=2 --dist=loadfile tests/service
	@$(BIN)/python -m pytest tests/simulation

# What takes too long for each change: long tests, ten minutes of fuzzing (atheris has wheels for Linux on x86-64 alone),
# and a hundred thousand simulated histories: some eight hours on two cores.
nightly: setup services
	@$(BIN)/python -m pytest -m nightly
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps atheris==3.0.0
	@$(BIN)/python -m tests.fuzz.fuzz_readers --seconds 600
	@$(BIN)/python -m tests.simulation --histories 100000
	@! $(BIN)/python -m tests.simulation --histories 1000 --planted guard || { echo "error: the planted fault of the guard was not found"; exit 1; }

check: setup lint types protos-check test

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-cache

types: setup
	@$(BIN)/mypy protos/segrec server training tests deploy

protos: setup
	@$(BIN)/python deploy/protos.py generate

# The committed code must be what the protos give, and the protos must not break callers of the last release.
protos-check: setup
	@$(BIN)/python deploy/protos.py check

# Pages that are made of the code and of the protos; tests compare them.
reference: setup
	@{ printf '# Settings\n\nMade by `make reference` from the code.\n\n'; $(BIN)/segrec-train config --reference; echo; \
	  $(BIN)/segrec-serve config --reference; } > docs/CONFIG.md
	@$(BIN)/python -m deploy.api_page > docs/API.md.new && mv docs/API.md.new docs/API.md

# The client and the platform, as two wheels in dist/.
wheels: setup
	@$(BIN)/uv build --quiet --wheel --python $(BIN)/python --out-dir dist protos
	@$(BIN)/uv build --quiet --wheel --python $(BIN)/python --out-dir dist .
	@ls dist/*.whl

# Pin what is installed now, after a pyproject.toml has changed.
lock:
	@{ sed -n '/^#/p' requirements.lock; echo "torch==$$($(BIN)/python -c 'import torch; print(torch.__version__.split("+")[0])')"; \
	  $(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | grep -vE '^(torch|pip|atheris)=='; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean:
	rm -rf .venv .triton dist runs history triton.log .mypy_cache .ruff_cache .pytest_cache model_repository/user_encoder/[0-9]* model_repository/.staging
