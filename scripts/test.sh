#!/usr/bin/env bash
# Format, lints, licences of dependencies and all tests. The test runner's summary comes last.
# Arguments choose tests, and then only these are built and run:
#   scripts/test.sh merkle                      those with "merkle" in their names, of all crates
#   scripts/test.sh -p lockstep-node places     those of one crate, which builds its tests only
# Benchmarks and fuzz targets are no tests; the lints see to it that they compile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

steps=""
# step NAME COMMAND...: runs it, and keeps how long it took.
step() {
    local name=$1 started=$SECONDS
    shift
    printf '\n== %s\n' "$name"
    "$@"
    printf '== %s: %d s\n' "$name" $((SECONDS - started))
    steps+=$(printf '  %-24s %5d s' "$name" $((SECONDS - started)))$'\n'
}

# What 'make' built serves plain cargo as it is, and the other way round.
plain_cargo_builds_nothing() {
    local again
    again=$(cargo test --color never "${what[@]}" --no-run 2>&1) || { echo "$again" >&2; return 1; }
    if grep -E '^ +Compiling' <<<"$again"; then
        echo "test: plain cargo builds again what 'make' has built" >&2
        return 1
    fi
}

what=(--workspace)
for argument in "$@"; do
    [[ "$argument" != -p* && "$argument" != --package* ]] || what=()
done
what+=(--locked --tests)
if [[ $# -eq 0 ]]; then
    step "format" scripts/cargo.sh fmt --all --check
    step "RocksDB" scripts/rocksdb.sh
    step "lints" scripts/cargo.sh clippy --workspace --all-targets --locked -- -D warnings
    step "dependencies" scripts/deny.sh tree
fi

if command -v cargo-nextest >/dev/null; then
    if [[ $# -eq 0 ]]; then
        step "building the tests" scripts/cargo.sh nextest run "${what[@]}" --profile ci --no-run
        # Where scripts/cargo.sh lends bindgen headers, plain cargo does not have them.
        ! have_clang_headers || step "plain cargo" plain_cargo_builds_nothing
        printf '\n== time so far\n%s' "$steps"
    fi
    printf '\n== tests\n'
    exec scripts/cargo.sh nextest run "${what[@]}" --profile ci "$@"
fi

# cargo test sums up each test program by itself; the line after it sums up all of them. Tests that start clusters
# share this machine, so no more than two run at a time, as with nextest.
if [[ " $* " == *" -E "* ]]; then
    echo "test: -E needs cargo-nextest: cargo install cargo-nextest --locked" >&2
    exit 2
fi
if [[ $# -eq 0 ]]; then
    step "building the tests" scripts/cargo.sh test "${what[@]}" --no-run
    printf '\n== time so far\n%s' "$steps"
fi
# What stands behind -- is for the test programs, which take several names there.
arguments=()
while [[ $# -gt 0 && "$1" != -- ]]; do
    arguments+=("$1")
    shift
done
[[ $# -eq 0 ]] || shift
printf '\n== tests\n'
log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
scripts/cargo.sh test "${what[@]}" --no-fail-fast "${arguments[@]}" -- --test-threads 2 "$@" 2>&1 | tee "$log" || status=$?
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$log"
exit "$status"
