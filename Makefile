# Everything a person does here. `make` alone prints this help.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(shell find protos -name '*.proto' | sort)
READY := $(VENV)/.ready
# Two workers on a small machine; tests share nothing, so more cores may take more.
WORKERS ?= 2

##@ Start

help: ## Print this help
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n\033[1m%s\033[0m\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  \033[36m%-18s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make the virtual environment from requirements.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

run: setup ## Tell the whole story on config/examples/acme, then stop everything
	@$(BIN)/tenon story

up: setup ## Start PostgreSQL, both services and a sandbox provider, and leave them running
	@$(BIN)/tenon up --sandbox

down: setup ## Stop what `make up` started
	@$(BIN)/tenon down

migrate: setup ## Bring the database at TENON_DATABASE_URL to the newest schema
	@$(BIN)/tenon migrate up

##@ Build

protos: setup ## Generate Python beside each .proto
	$(BIN)/python -m grpc_tools.protoc -I protos --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
		--python_out=protos --mypy_out=quiet:protos --grpc_python_out=protos --mypy_grpc_out=quiet:protos $(PROTOS)

codegen: protos ## The same

protos-check: setup ## The generated code is what the .proto files say, and buf finds no fault
	$(BIN)/buf lint
	@rm -rf build/protos && mkdir -p build/protos && cp -r protos/tenon build/protos/
	@cd build/protos && ../../$(BIN)/python -m grpc_tools.protoc -I . \
		--plugin=protoc-gen-mypy=../../$(BIN)/protoc-gen-mypy \
		--plugin=protoc-gen-mypy_grpc=../../$(BIN)/protoc-gen-mypy_grpc \
		--python_out=. --mypy_out=quiet:. --grpc_python_out=. --mypy_grpc_out=quiet:. $$(find tenon -name '*.proto' | sort)
	@diff -r -x __pycache__ protos/tenon build/protos/tenon && echo "protos: generated code is up to date"

lock: setup ## Resolve pyproject.toml into requirements.lock (hashes, no index address)
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --generate-hashes --universal --python-version 3.11 \
		--no-emit-index-url --no-emit-find-links --no-header -o requirements.lock

##@ Check

lint: setup protos-check ## Style, types, import rules, contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Put the code into its form
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

test: setup ## Every test that belongs to a change
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -q

test-unit: setup ## The pure ones, in seconds
	$(BIN)/pytest -q tests/unit tests/conformance

test-integration: setup ## With real PostgreSQL and real servers
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -q tests/integration tests/scenarios tests/migrations tests/e2e

test-faults: setup ## Every failpoint, kill -9 at each
	TENON_FAULTS=all $(BIN)/pytest -q tests/faults

bench: bench-rpc bench-access bench-lanes bench-connectors bench-credentials bench-ingest bench-delivery bench-endpoints ## Every performance claim

bench-rpc: setup ## RPCs against a bare echo in the same run
	@$(BIN)/python -m bench.rpc

bench-access: setup ## CPU time of authentication and authorisation, with few and many keys
	@$(BIN)/python -m bench.access

bench-lanes: setup ## Items of work a second, and what they feel of others' work
	@$(BIN)/python -m bench.lanes

bench-connectors: setup ## What a connector adds to the bare HTTP call
	@$(BIN)/python -m bench.connectors

bench-credentials: setup ## Credentials resolved, sealed, opened and wrapped anew
	@$(BIN)/python -m bench.credentials

bench-delivery: setup ## Events delivered a second, against bare POSTs, and with more and more stored
	@$(BIN)/python -m bench.deliveries
bench-endpoints: setup ## How long operators wait to see how endpoints stand
	@$(BIN)/python -m bench.endpoints
bench-ingest: setup ## Webhooks that one ingress process takes in, and how long each waits
	@$(BIN)/python -m bench.ingest

##@ Tidy

clean: ## Remove what was built; data of `make up` stays
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help setup run up down migrate protos codegen protos-check lock lint format test test-unit \
	test-integration test-faults bench bench-rpc bench-access bench-lanes bench-connectors bench-credentials \
	bench-ingest bench-delivery bench-endpoints clean
