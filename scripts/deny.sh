#!/usr/bin/env bash
# Dependencies against .cargo/deny.toml: licences, bans and sources always; advisories where their database can be had.
# Usage: scripts/deny.sh [tree | advisories]     (both without an argument)
# 'advisories' fails where the database cannot be had; without an argument that is said and passed over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=0.20.2
home=${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}/cargo-deny-$version

# Kept beside the other tools of the tests, so it is compiled once: about three minutes. Not optimised, which is as fast here.
if [[ ! -x "$home/bin/cargo-deny" ]]; then
    echo "deny: compiling cargo-deny $version into $home" >&2
    CARGO_TARGET_DIR="$home/target" cargo install cargo-deny --version "$version" --locked --debug --quiet --root "$home"
    rm -rf "$home/target"
fi

deny() { "$home/bin/cargo-deny" --locked --log-level error "$@"; }

tree() { deny check --hide-inclusion-graph licenses bans sources; }

# The database is a git repository of its own.
database() { deny fetch db >/dev/null 2>&1; }

case "${1:-all}" in
tree) tree ;;
advisories)
    database || { echo "deny: the database of advisories cannot be had here" >&2; exit 1; }
    deny check --hide-inclusion-graph advisories
    ;;
all)
    tree
    if database; then
        deny check --hide-inclusion-graph advisories
    else
        echo "deny: advisories were NOT checked: their database cannot be had here (scripts/deny.sh advisories)"
    fi
    ;;
*)
    echo "deny: unknown part '$1'; there are tree and advisories" >&2
    exit 2
    ;;
esac
