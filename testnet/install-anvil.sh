#!/usr/bin/env bash
# Installs anvil, an Ethereum node for tests, where tools are kept: ${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}.
# Version and checksum are those of testnet/anvil/package-lock.json. Does nothing when it is there.
# Usage: testnet/install-anvil.sh
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/anvil" && pwd)
tools=${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}
version=$(sed -n 's/^ *"version": *"\(.*\)".*/\1/p' "$source/package.json")
installed=$tools/anvil-$version
binary=$installed/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil

install() {
    if ! command -v npm >/dev/null; then
        echo "install-anvil: npm is missing; scripts/deps.sh test installs it" >&2
        exit 1
    fi
    # Made beside its place and then moved there: an install that was cut short is not taken for one.
    local making
    making=$(mktemp -d "$tools/.anvil.XXXXXX")
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -rf '$making'" EXIT
    cp "$source/package.json" "$source/package-lock.json" "$making/"
    echo "install-anvil: installing anvil $version in $tools"
    (cd "$making" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline --silent)
    # Another run may have been faster.
    mv -T "$making" "$installed" 2>/dev/null || [[ -x $binary ]]
}

mkdir -p "$tools/bin"
if [[ "$(uname -sm)" != "Linux x86_64" ]]; then
    if ! binary=$(command -v anvil); then
        echo "install-anvil: for $(uname -sm) there is no package; install Foundry's anvil $version in PATH" >&2
        exit 1
    fi
elif [[ ! -x $binary ]]; then
    install
fi

# Replaced in one step: a test may be starting it right now.
link=$(mktemp -d "$tools/bin/.link.XXXXXX")
ln -s "$binary" "$link/anvil"
mv -f "$link/anvil" "$tools/bin/anvil"
rmdir "$link"
