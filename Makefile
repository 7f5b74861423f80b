# Two commands matter: `make run` and `make test`. The rest is said by `make help`.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run build test bench bench-cluster bench-failover bench-split cluster-up cluster-down lint format clean setup setup-tests stack-up stack-down

# Build output lives outside the checkout, so that `git clean` and fresh clones stay cheap.
export SHOAL_CACHE ?= $(HOME)/.cache/shoal
export CARGO_TARGET_DIR ?= $(SHOAL_CACHE)/target
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)
VENV := $(SHOAL_CACHE)/venv

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

run: build ## set up, build and start a database on 127.0.0.1 (data in ./shoal-data; ARGS="…" adds flags)
	@exec env -u SHOAL_CACHE dist/shoal standalone $(ARGS)

build: setup ## leave the release binary at dist/shoal
	cargo build --workspace --bins --release --locked
	@mkdir -p dist
	@# Written beside and renamed: a running dist/shoal keeps its file.
	@cp "$(CARGO_TARGET_DIR)/release/shoal" dist/.shoal.new && mv dist/.shoal.new dist/shoal

test: setup-tests ## formatting, unit tests, then whole-system tests against real processes
	cargo fmt --all --check
	scripts/test

bench: setup-tests build ## the benchmark: figures against bars, into benches/RESULTS.md (ARGS="--only queries …")
	$(VENV)/bin/python benches/run $(ARGS)

bench-cluster: setup-tests build ## nodes over real Kafka, MinIO and etcd: figures against bars (ARGS="--only promotion …")
	cargo build --release --locked -p shoal-wal --example kafka_rates
	$(VENV)/bin/python benches/run-cluster --rates "$(CARGO_TARGET_DIR)/release/examples/kafka_rates" $(ARGS)

bench-failover: setup-tests build ## nodes and schedulers killed, frozen, drained, added: what clients see, against bars (ARGS="--only kill …")
	$(VENV)/bin/python benches/run-failover $(ARGS)

bench-split: setup-tests build ## tables in partitions beside the same rows in one: figures against bars (ARGS="--only query …")
	built="$$(cargo test --release --locked -p shoal-rows --lib --no-run --message-format json)"; \
	routes="$$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$$built")"; \
	$(VENV)/bin/python benches/run-split --route-test "$$routes" $(ARGS)

cluster-up: build ## start Kafka, MinIO, etcd and three nodes in ./shoal-cluster (ARGS="--nodes 2 …")
	@scripts/cluster up $(ARGS)

cluster-down: ## end them; data stays (ARGS="--purge" removes it)
	@scripts/cluster down $(ARGS)

stack-up: ## start Kafka, MinIO and etcd without containers, print a config (ARGS="--brokers 3 …")
	@scripts/stack up $(ARGS)

stack-down: ## end them; data stays (ARGS="--purge" removes it)
	@scripts/stack down $(ARGS)

lint: setup ## formatting and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

format: ## apply rustfmt
	cargo fmt --all

clean: ## remove build output (not data)
	cargo clean
	rm -rf dist

setup:
	@scripts/setup

setup-tests:
	@scripts/setup --tests
