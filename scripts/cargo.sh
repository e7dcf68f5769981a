#!/usr/bin/env bash
# cargo, after RocksDB's library, which it takes where it is there. And with what RocksDB's bindings need on a machine that
# has libclang but not clang's headers: the C compiler's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

# The library is this machine's; for another one the crate compiles its own.
if [[ -n "${CARGO_BUILD_TARGET:-}" || " $* " == *" --target "* || " $* " == *" --target="* ]]; then
    export ROCKSDB_COMPILE=1
fi
case "${1:-}" in
fmt | clean) ;;
*) scripts/rocksdb.sh ;;
esac
if [[ -z "${BINDGEN_EXTRA_CLANG_ARGS:-}" ]] && ! have_clang_headers && command -v gcc >/dev/null; then
    BINDGEN_EXTRA_CLANG_ARGS="-I$(gcc -print-file-name=include)"
    export BINDGEN_EXTRA_CLANG_ARGS
fi
exec cargo "$@"
