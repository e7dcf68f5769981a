# Sourced by the other scripts: small questions about this machine.
# shellcheck shell=bash

# Where cargo puts what it builds.
target_dir() {
    printf '%s\n' "${CARGO_TARGET_DIR:-target}"
}

# Whether a file matches one of the patterns.
any_file() {
    local pattern
    for pattern in "$@"; do
        if compgen -G "$pattern" >/dev/null; then
            return 0
        fi
    done
    return 1
}

# Newest of the versions of libclang that are below /usr/lib/llvm-*, as a path; nothing where there is none. A number
# must follow the name: libclang-cpp.so is another library, which does not read headers.
newest_libclang() {
    { compgen -G '/usr/lib/llvm-*/lib/libclang.so*' || true
      compgen -G '/usr/lib/llvm-*/lib/libclang-[0-9]*.so*' || true; } | sort -V | tail -n 1
}

# Whether the library is there with which bindgen reads RocksDB's C header.
have_libclang() {
    [[ -n "${LIBCLANG_PATH:-}" || -n "$(newest_libclang)" ]] ||
        any_file '/usr/lib*/libclang.so*' '/usr/lib*/libclang-[0-9]*.so*' \
            '/usr/lib/*/libclang.so*' '/usr/lib/*/libclang-[0-9]*.so*'
}

# Whether clang's own headers (stddef.h and so on) are there. The library alone comes without them. With several
# versions installed the newest is used, so its headers are the ones that count.
have_clang_headers() {
    local newest
    newest=$(newest_libclang)
    if [[ -n "$newest" ]]; then
        any_file "$(dirname "$newest")/clang/*/include/stddef.h"
    else
        any_file '/usr/lib*/clang/*/include/stddef.h'
    fi
}

# Whether a program of the PostgreSQL server is there; Debian keeps them outside PATH.
have_postgres_server() {
    command -v initdb >/dev/null || any_file '/usr/lib/postgresql/*/bin/initdb'
}

# A Rust compiler that has the library for WebAssembly: that of the toolchain, or the distribution's.
wasm_rustc() {
    local rustc
    for rustc in rustc /usr/bin/rustc; do
        if [[ -e "$("$rustc" --print target-libdir --target wasm32-unknown-unknown 2>/dev/null)" ]]; then
            echo "$rustc"
            return 0
        fi
    done
    return 1
}
