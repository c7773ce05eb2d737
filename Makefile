# Two commands on a fresh machine: `make demo` and `make test`. Each makes its own .venv and installs everything.
SHELL := /bin/bash
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p))))
UV_VERSION := 0.13.9
BIN := .venv/bin
# Unit tests write some thousand small files: into memory where there is room for them.
IN_MEMORY := $(shell test -w /dev/shm && test "$$(df -Pk /dev/shm | awk 'END { print $$4 }')" -gt 2000000 && echo TMPDIR=/dev/shm)
# NOTE uv installs without bytecode, and where PYTHONDONTWRITEBYTECODE is set every start would compile DSPy, MLflow and
# pandas anew: 9 s instead of 4. So it is written once, at installation.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check lint slow slow-servers slow-models lock schema tree clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   learn personas: replayed from a capable model in seconds, and by the embedded one (98 MB) in minutes"
	@echo "make test   install everything and run the unit tests"
	@echo "make check  lint, types, layers, and every slow test that this machine can run"

.venv/ready: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no python3 found: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info < (3, 14)))' || { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): expected Python 3.11 to 3.13; name one: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "no venv: install it first (Debian: apt-get install python3-venv)"; rm -rf .venv; exit 2; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip -q
	@$(BIN)/python -m pip install -q --disable-pip-version-check uv==$(UV_VERSION)
	@echo "installing (pinned in requirements.lock)"
	@VIRTUAL_ENV=.venv $(BIN)/uv pip sync -q --compile-bytecode requirements.lock
	@VIRTUAL_ENV=.venv $(BIN)/uv pip install -q --no-deps -e .
	@touch $@

demo: .venv/ready
	@echo "1. Six support agents, who only comment on our drafts"
	@$(BIN)/persona-dspy compile examples/support_agents.jsonl --task "mail -> reply" --lm replayed:examples/support_agents.answers.jsonl --out personas-support/ --fresh
	@$(BIN)/persona-dspy show "$$(ls personas-support/agent-00-*.json)"
	@echo "2. Six users, who tag films; a model that runs here"
	@$(BIN)/persona-dspy models pull smol
	@$(BIN)/persona-dspy compile examples/movie_tags.jsonl --lm local --out personas/ --resume
	@echo "What next:"
	@echo "  $(BIN)/persona-dspy report personas-support/ --history examples/support_agents.jsonl --out report.html"
	@echo "  $(BIN)/persona-dspy evaluate examples/movie_tags.jsonl --systems persona,rag --users 2 --queries 3 --lm local"
	@echo "  $(BIN)/persona-dspy ask examples/agent-03.json --history examples/support_agents.jsonl --lm replayed:examples/support_agents.answers.jsonl - < examples/mail.txt"
	@echo "  $(BIN)/persona-dspy ask \"$$(ls personas/ana-*.json)\" --history examples/movie_tags.jsonl \"A crew drifts through space.\""

test: .venv/ready
	@$(IN_MEMORY) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not model and not postgres and not ray and not notebook and not browser and not loopback and not slow"

check: lint slow

lint: .venv/ready
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/lint-imports --no-cache
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

slow: slow-servers slow-models

slow-servers: .venv/ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 -m "(postgres or ray or browser or loopback or slow) and not model and not notebook"

slow-models: .venv/ready  ## alone: a llama.cpp engine wants the cores for itself
	@$(BIN)/python -m pytest --durations=15 -m "model or notebook"

lock:  ## after a change of pyproject.toml
	@VIRTUAL_ENV=.venv uv pip compile pyproject.toml --universal --python-version 3.11 --extra local --extra ray --extra postgres --extra dense --extra report --extra serve --extra sign --extra dev --generate-hashes \
	  --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q -o requirements.lock

clean:
	@rm -rf .venv personas personas-support mlflow.db mlartifacts build dist *.egg-info

schema:  ## after a change of the persona JSON
	@$(BIN)/python -c "import json; from persona_dspy.core.document import json_schema; print(json.dumps(json_schema(), indent=2))" > persona_dspy/core/schemas/persona-2.schema.json

tree:  ## after adding or renaming a source file
	@$(BIN)/python tests/tree.py --write
	@$(BIN)/python docs/rooms.py
