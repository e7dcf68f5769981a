#!/usr/bin/env bash
# Builds the program in the profile dist and says how large it is.
# Usage: scripts/dist.sh [CARGO_ARGS ...]     (features, for one)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

# More is a fault: it grew, or something in it is not wanted.
bytes_max=50000000

echo "dist: optimising the program as a whole takes about ten minutes on top of a build" >&2
scripts/cargo.sh build --profile dist --locked -p lockstep-cli "$@"
# Another target has a directory of its own.
target=${CARGO_BUILD_TARGET:-}
arguments=("$@")
for at in "${!arguments[@]}"; do
    case "${arguments[at]}" in
    --target=*) target=${arguments[at]#--target=} ;;
    --target) target=${arguments[at + 1]:-} ;;
    esac
done
program=$(target_dir)/${target:+$target/}dist/lockstep
# Not done by cargo: see the profile in Cargo.toml.
"${STRIP:-strip}" --strip-all "$program" || {
    echo "dist: $program has its symbols: set STRIP to a program that can strip it (for another target its own), and run this again" >&2
    exit 1
}
bytes=$(wc -c <"$program")
echo "$program: $bytes bytes, at most $bytes_max"
if [[ $bytes -gt $bytes_max ]]; then
    echo "dist: that is too large: see what grew before it is given away" >&2
    exit 1
fi
