# Shortcuts; each can be read off its recipe or its script. 'make' alone lists them.
# The program for every day is a release; demo, tests and lints are built in cargo's profile dev, the program for others in
# the profile dist.
# RocksDB is compiled once for all of them (scripts/rocksdb.sh), also for plain cargo.
# CARGO_TARGET_DIR says where builds go, as always with cargo.

SHELL := /bin/bash
CARGO := scripts/cargo.sh
PROGRAM := --locked -p lockstep-cli
# The simulation and the runner of chaos, with the program that they play with.
TESTKIT := --release --locked -p lockstep-cli -p lockstep-testkit

.DEFAULT_GOAL := help
.PHONY: help deps demo quick build dist test lint features fmt deny bench sim rounds chaos fuzz nightly clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

deps: ## Install what is missing to build, test and demonstrate (Debian, Ubuntu)
	@scripts/deps.sh

demo: ## Three nodes and thirty devices on this machine for a minute (DEMO_SECONDS, DEMO_HOME, DEMO_PORT)
	@scripts/demo.sh

quick: ## Build the program to try it, in half the time: target/debug/lockstep
	@scripts/deps.sh build
	@$(CARGO) build $(PROGRAM)

build: ## Build the program for every day: target/release/lockstep
	@scripts/deps.sh build
	@$(CARGO) build --release $(PROGRAM)

dist: ## Build the program to give away, small and slowly: target/dist/lockstep
	@scripts/deps.sh build
	@scripts/dist.sh

test: ## Check format, lints and licences, then run all tests (TEST_ARGS: only these tests, such as '-p lockstep-node places')
	@scripts/deps.sh build test
	@scripts/test.sh $(TEST_ARGS)

lint: ## Check format and lints, and that everything compiles, benchmarks and fuzz targets too
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

FEATURES := none sqlite postgres object altda celestia nats buckets chain gossip rules default

features: ## Check that the program compiles with no feature, with each alone, and with all of them
	@for feature in $(FEATURES); do \
	  echo "features: $$feature"; \
	  $(CARGO) check --locked -p lockstep-cli --no-default-features --features "$${feature#none}" || exit 1; \
	done

fmt: ## Format the code
	@$(CARGO) fmt --all

deny: ## Check dependencies: licences, bans, sources, and advisories where their database can be had
	@scripts/deny.sh

bench: ## Run the benchmarks (BENCH_ARGS: which, and Criterion's options)
	@$(CARGO) bench --profile release --workspace --locked --bench '*' -- $(BENCH_ARGS)

sim: ## Networks in simulated time, one for each seed (SIM_ARGS: how many, from where, which scenario)
	@$(CARGO) run $(TESTKIT) --bin lockstep-testkit -- sim $(or $(SIM_ARGS),--seeds 200)

rounds: ## Two times a hundred rounds of random faults on a network under load (LOCKSTEP_ROUNDS, LOCKSTEP_SEED)
	@scripts/deps.sh build test
	@LOCKSTEP_ROUNDS=$${LOCKSTEP_ROUNDS:-100} $(CARGO) test --locked -p lockstep-cli --test nodes -- --nocapture --test-threads 1 rounds::

chaos: ## Let everything go wrong on a network of real processes for half an hour, and check (CHAOS_ARGS: how long, which seed)
	@scripts/deps.sh build test
	@$(CARGO) build $(TESTKIT) --bins
	@$(CARGO) run $(TESTKIT) --bin lockstep-testkit -- chaos $(CHAOS_ARGS)

fuzz: ## Fuzz every reader of bytes with coverage (FUZZ_SECONDS for each target, FUZZ_TARGETS: which); nightly Rust
	@scripts/fuzz.sh $(FUZZ_TARGETS)

nightly: ## Everything that takes hours: simulation, chaos, rounds and waits at length; prints the figures
	@scripts/deps.sh build test
	@scripts/nightly.sh

clean: ## Remove what was built and the demo's network; RocksDB's library stays
	@$(CARGO) clean
	@rm -rf .lockstep/demo
