#!/usr/bin/env bash
# Format, lints, licences of dependencies and all tests. The test runner's summary comes last.
# Arguments go to the test runner: scripts/test.sh merkle runs the tests with "merkle" in their names.
#
# Every cargo command of this project names the same profile (release) and the whole workspace, so that RocksDB is
# compiled once for all of them. Benchmarks are not tests: they run with 'make bench'.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() { printf '\n== %s\n' "$*"; }

step "format"
scripts/cargo.sh fmt --all --check

step "lints"
scripts/cargo.sh clippy --release --workspace --all-targets --locked -- -D warnings

step "dependencies"
scripts/deny.sh tree

what=(--release --workspace --locked --lib --bins --tests)
step "tests"
if command -v cargo-nextest >/dev/null; then
    exec scripts/cargo.sh nextest run "${what[@]}" --profile ci "$@"
fi

# cargo test sums up each test program by itself; the line after it sums up all of them. Tests that start clusters
# share this machine, so no more than two run at a time, as with nextest.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
scripts/cargo.sh test "${what[@]}" --no-fail-fast -- --test-threads 2 "$@" 2>&1 | tee "$log" || status=$?
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$log"
exit "$status"
