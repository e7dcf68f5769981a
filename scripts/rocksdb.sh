#!/usr/bin/env bash
# Compiles RocksDB's library once for all checkouts, target directories and profiles of this machine, and has cargo use it.
#
# The crate librocksdb-sys compiles 342 files one by one for each target directory and profile. Here the same files, with
# the same flags, are compiled in units of several files, which takes less than half the time, and the archive is kept
# outside the checkout. `.cargo/rocksdb-VERSION.toml` then points to a file beside it with the settings that make
# librocksdb-sys take it; `.cargo/config.toml` includes that where it is there, so plain cargo takes the same way. Without
# it the crate's own way is taken; whatever goes wrong here leads there, too.
#   ROCKSDB_LIB_DIR    a library of your own: nothing is done here
#   ROCKSDB_COMPILE=1  the crate's own way, for one cargo command (scripts/cargo.sh sets it for other targets)
#   CXX, CXXFLAGS      the C++ compiler, and flags after the script's own (such as -march; RUSTFLAGS do not reach RocksDB)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unit_files=24
# Memory that the compiler may need for one unit, in KiB.
unit_memory=$((2 << 20))
kept=${XDG_CACHE_HOME:-${HOME:-}/.cache}/lockstep/rocksdb
read -r -a compiler <<<"${CXX:-c++}"

# Version and checksum of a crate in the lock file.
locked() {
    awk -v name="\"$1\"" '$1 == "name" { found = $3 == name } found && ($1 == "version" || $1 == "checksum") { print $3 }' Cargo.lock
}

settings=.cargo/rocksdb-$(locked librocksdb-sys | sed -n '1s/"//gp').toml
if ! grep -qF "\"${settings#.cargo/}\"" .cargo/config.toml; then
    echo "rocksdb: Cargo.lock has another librocksdb-sys than .cargo/config.toml: its include must be \"${settings#.cargo/}\"" >&2
    exit 1
fi

# Where the crate's sources are, vendored or not; cargo downloads them if they are not there.
sources_of() {
    cargo metadata --locked --format-version 1 --filter-platform "$target" |
        grep -oE "\"manifest_path\":\"[^\"]*/$1(-[0-9][^\"/]*)?/Cargo.toml\"" | sed 's/.*:"//; s|/Cargo.toml"$||' | head -n 1
}

# The crate's own way is the right one for what this script does not know.
own_way() {
    rm -f "$settings" 2>/dev/null || true
    if [[ $# -gt 0 ]]; then
        echo "rocksdb: $*; librocksdb-sys compiles RocksDB itself, which takes longer" >&2
    fi
    exit 0
}

[[ -z "${ROCKSDB_LIB_DIR:-}" ]] || own_way
[[ -z "${ROCKSDB_COMPILE:-}" ]] || exit 0
target=$(rustc -vV | sed -n 's/^host: //p')
case "$target" in
x86_64-*-linux-gnu | aarch64-*-linux-gnu) ;;
*) own_way ;;
esac
command -v "${compiler[0]}" >/dev/null || own_way "there is no C++ compiler '${compiler[0]}'"
command -v flock >/dev/null || own_way "the program flock is missing"

# What librocksdb-sys' build script passes on Linux with the features that Cargo.toml names, as a release.
defines=(-DLZ4=1 -DNDEBUG=1 -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION -DOS_LINUX -DROCKSDB_PLATFORM_POSIX
    -DROCKSDB_LIB_IO_POSIX -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT -DROCKSDB_FALLOCATE_PRESENT
    -DROCKSDB_RANGESYNC_PRESENT)
flags=(-std=c++20 -O3 -fPIC -ffunction-sections -fdata-sections -include cstdint "${defines[@]}")
if [[ $target == x86_64-* ]]; then
    flags+=(-m64 -msse2)
fi
read -r -a extra <<<"${CXXFLAGS:-}"
flags+=("${extra[@]}")

version=$("${compiler[@]}" --version) || own_way "'${compiler[*]}' does not say its version"
hash=$({
    locked librocksdb-sys
    locked lz4-sys
    printf '%s\n' "$target" "$unit_files" "${flags[@]}" "$version"
} | sha256sum | cut -c 1-16)
library=$kept/$hash

# Ends this script if the library is there.
take_library() {
    if [[ ! -s "$library/librocksdb.a" || ! -s "$library/cargo.toml" ]]; then
        return 0
    fi
    if [[ "$(readlink "$settings" || true)" != "$library/cargo.toml" ]]; then
        ln -sfn "$library/cargo.toml" "$settings" || own_way "$settings cannot be written"
    fi
    exit 0
}

take_library
failed=$kept/$hash.failed
# What went wrong may have been the day's: a full disk, too little memory.
find "$failed" -mmin +1440 -delete 2>/dev/null || true
[[ ! -e "$failed" ]] || own_way "it did not compile in units today (to try again at once, remove $failed)"
mkdir -p "$kept" 2>/dev/null || own_way "$kept cannot be made"
exec 9>"$kept/lock" || own_way "$kept cannot be written"
flock --nonblock 9 || { echo "rocksdb: waiting for another build of it" >&2; flock 9; }
take_library

rocksdb=$(sources_of librocksdb-sys) || own_way "cargo does not say where its sources are"
lz4=$(sources_of lz4-sys) || own_way "cargo does not say where LZ4's sources are"
[[ -f "$rocksdb/rocksdb_lib_sources.txt" && -f "$lz4/liblz4/lib/lz4.h" ]] || own_way "its sources are not where they were"

# Below the directory that it becomes, so that the last step is a rename. What a run left that was ended goes.
rm -rf "$kept"/.making-*
work=$(mktemp -d "$kept/.making-XXXXXX") || own_way "$kept cannot be written"
trap 'rm -rf "$work"' EXIT

jobs=$(nproc)
memory=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo 2>/dev/null || true)
if [[ -n "$memory" && $jobs -gt $((memory / unit_memory)) ]]; then
    jobs=$((memory > unit_memory ? memory / unit_memory : 1))
fi

# The lists of files, one for each unit, and the flags in a file as the compiler reads it.
list_units() {
    printf '%q\n' "${flags[@]}" -Irocksdb/include/ -Irocksdb/ "-I$lz4/liblz4/lib" -I. -w >"$work/flags" &&
        {
            sed '/^[[:space:]]*$/d; /^util\/build_version.cc$/d; s|^|-include rocksdb/|' "$rocksdb/rocksdb_lib_sources.txt"
            echo "-include build_version.cc"
        } | split -l "$unit_files" -a 3 -d - "$work/unit-"
}

# Compiled where the crate compiles, and named as it names them: RocksDB's log cuts what stands before the names of files.
# One object for each unit, and a line of progress.
compile_units() (
    units=("$work"/unit-*)
    echo "rocksdb: compiling RocksDB once for this machine: ${#units[@]} units on $jobs processors, about 4 minutes on two" >&2
    cd "$rocksdb" && printf '%s\0' "${units[@]}" | xargs -0 -n 1 -P "$jobs" bash -c '
        work=$1 count=$2 unit=${*: -1}
        "${@:3:$#-3}" "@$work/flags" "@$unit" -x c++ -c /dev/null -o "$unit.o" 9>&- || exit 255
        echo "rocksdb: $(find "$work" -name "*.o" | wc -l) of $count" >&2
    ' compile "$work" "${#units[@]}" "${compiler[@]}"
)

write_library() {
    ar crsD "$work/librocksdb.a" "$work"/unit-*.o && rm -f "$work/flags" "$work"/unit-* &&
        cat >"$work/cargo.toml" <<TEXT &&
# Made by scripts/rocksdb.sh: librocksdb-sys takes the library that is here.
[env]
ROCKSDB_LIB_DIR = "$library"
ROCKSDB_STATIC = "1"
TEXT
        chmod 755 "$work" && rm -rf "$library" && mv -T "$work" "$library"
}

started=$SECONDS
if ! { list_units && compile_units && write_library; }; then
    : >"$failed" || true
    own_way "it did not compile in units (to try again, remove $failed)"
fi
echo "rocksdb: done in $((SECONDS - started)) s, kept in $library" >&2
take_library
