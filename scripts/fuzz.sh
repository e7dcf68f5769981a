#!/usr/bin/env bash
# Fuzzes the targets of crates/fuzz with libFuzzer, which sees what they cover. Needs a nightly compiler and, the first
# time, cargo-fuzz, which it compiles where the tests' other tools are kept.
# Usage: scripts/fuzz.sh [TARGET ...]      (all without an argument)
#   FUZZ_SECONDS   time for each target (60)
#   FUZZ_HOME      corpora and what was found (.lockstep/fuzz); kept, and gone on with
#   ROCKSDB_LIB_DIR, ROCKSDB_STATIC   as for RocksDB's bindings: a library that is there already need not be compiled
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

version=0.13.2
seconds=${FUZZ_SECONDS:-60}
home=${FUZZ_HOME:-$PWD/.lockstep/fuzz}
tool=${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}/cargo-fuzz-$version

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "fuzz: a nightly compiler is missing: rustup toolchain install nightly" >&2
    exit 1
fi
if [[ ! -x "$tool/bin/cargo-fuzz" ]]; then
    echo "fuzz: compiling cargo-fuzz $version into $tool" >&2
    CARGO_TARGET_DIR="$tool/target" cargo install cargo-fuzz --version "$version" --locked --debug --quiet --root "$tool"
    rm -rf "$tool/target"
fi
export PATH="$tool/bin:$PATH"

# Without a sanitizer: the code is safe Rust, and the C++ of RocksDB need not be compiled another time.
# The project's own settings hold for its tree only; this one is needed here too.
triple=$(rustc -vV | sed -n 's/^host: //p')
target=$(target_dir)
built=${target%/}/fuzz
export RUSTFLAGS="${RUSTFLAGS:-} --cfg tokio_unstable"
cargo +nightly fuzz build --fuzz-dir crates/fuzz/cargo-fuzz --sanitizer none --target-dir "$built" any
program=$built/$triple/release/any

mkdir -p "$home/seeds"
mapfile -t names < <(LOCKSTEP_FUZZ_SEEDS=$home/seeds "$program" 2>/dev/null)
if [[ $# -gt 0 ]]; then
    names=("$@")
fi
failed=()
for name in "${names[@]}"; do
    mkdir -p "$home/corpus/$name" "$home/found/$name"
    log=$home/$name.log
    if LOCKSTEP_FUZZ_TARGET=$name "$program" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=4096 \
        -print_final_stats=1 -artifact_prefix="$home/found/$name/" "$home/corpus/$name" "$home/seeds/$name" >"$log" 2>&1; then
        awk -v name="$name" '/cov: / { cov = $0 } /number_of_executed_units/ { runs = $2 }
            END { sub(/.*cov: /, "", cov); sub(/ .*/, "", cov); printf "fuzz: %-16s %12d inputs, coverage %s\n", name, runs, cov }' "$log"
    else
        failed+=("$name")
        echo "fuzz: $name: something broke; see $log and $home/found/$name" >&2
    fi
done
if [[ ${#failed[@]} -gt 0 ]]; then
    echo "fuzz: broke: ${failed[*]}" >&2
    exit 1
fi
echo "fuzz: ${#names[@]} targets, $seconds s each, nothing broke"
