# Shortcuts; each can be read off its recipe or its script. 'make' alone lists them.
# One profile and one package selection everywhere (--release --workspace --locked): RocksDB is compiled once for all.
# CARGO_TARGET_DIR says where builds go, as always with cargo.

SHELL := /bin/bash
CARGO := scripts/cargo.sh
SELECTION := --release --workspace --locked

.DEFAULT_GOAL := help
.PHONY: help deps demo test rounds sim chaos fuzz deny build lint features fmt bench clean

help: ## List the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

deps: ## Install what is missing to build, test and demonstrate (Debian, Ubuntu)
	@scripts/deps.sh

demo: ## Three nodes and thirty devices on this machine for a minute (DEMO_SECONDS, DEMO_HOME, DEMO_PORT)
	@scripts/demo.sh

test: ## Check format, lints and licences, then run all tests (TEST_ARGS: which)
	@scripts/deps.sh build test
	@scripts/test.sh $(TEST_ARGS)

rounds: ## Two times a hundred rounds of random faults on a network under load (LOCKSTEP_ROUNDS, LOCKSTEP_SEED)
	@scripts/deps.sh build test
	@LOCKSTEP_ROUNDS=$${LOCKSTEP_ROUNDS:-100} $(CARGO) test $(SELECTION) --test nodes -- --nocapture --test-threads 1 rounds::

sim: ## Networks in simulated time, one for each seed (SIM_ARGS: how many, from where, which scenario)
	@$(CARGO) run $(SELECTION) --bin lockstep-testkit -- sim $(or $(SIM_ARGS),--seeds 200)

chaos: ## Let everything go wrong on a network of real processes for half an hour, and check (CHAOS_ARGS: how long, which seed)
	@scripts/deps.sh build test
	@$(CARGO) build $(SELECTION) --bins
	@$(CARGO) run $(SELECTION) --bin lockstep-testkit -- chaos $(CHAOS_ARGS)

fuzz: ## Fuzz every reader of bytes with coverage (FUZZ_SECONDS for each target, FUZZ_TARGETS: which); nightly Rust
	@scripts/fuzz.sh $(FUZZ_TARGETS)

deny: ## Check dependencies: licences, bans, sources, and advisories where their database can be had
	@scripts/deny.sh

build: ## Build everything, tests and benchmarks too
	@scripts/deps.sh build
	@$(CARGO) build $(SELECTION) --all-targets

lint: ## Check format and lints
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy $(SELECTION) --all-targets -- -D warnings

STORES := none sqlite postgres object altda celestia nats

features: ## Check that the program compiles with each store of tasks alone
	@for store in $(STORES); do \
	  echo "features: $$store"; \
	  $(CARGO) check --locked -p lockstep-cli --no-default-features --features "$${store#none}" || exit 1; \
	done

fmt: ## Format the code
	@$(CARGO) fmt --all

# cargo bench has a profile of its own; --profile release makes it share the other commands' build.
bench: ## Run the benchmarks (BENCH_ARGS: which, and Criterion's options)
	@$(CARGO) bench --profile release --workspace --locked --bench '*' -- $(BENCH_ARGS)

clean: ## Remove what was built and the demo's network; the next build takes long
	@$(CARGO) clean
	@rm -rf .lockstep/demo
