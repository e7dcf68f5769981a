#!/usr/bin/env bash
# Installs a libp2p peer that is set as those of W3bstream, for tests, where tools are kept:
# ${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}. Versions and checksums are those of
# testnet/w3bstream-peer/package-lock.json. Does nothing when it is there.
# Usage: testnet/install-w3bstream-peer.sh
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/w3bstream-peer" && pwd)
tools=${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}
# Named by what is in it, so that a changed peer is installed anew.
sum=$(cat "$source/package-lock.json" "$source/peer.js" | sha256sum | cut -c 1-16)
installed=$tools/w3bstream-peer-$sum
program=$installed/peer.js

install() {
    if ! command -v npm >/dev/null; then
        echo "install-w3bstream-peer: npm is missing; scripts/deps.sh test installs it" >&2
        exit 1
    fi
    # Made beside its place and then moved there: an install that was cut short is not taken for one.
    local making
    making=$(mktemp -d "$tools/.w3bstream-peer.XXXXXX")
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -rf '$making'" EXIT
    cp "$source/package.json" "$source/package-lock.json" "$source/peer.js" "$making/"
    echo "install-w3bstream-peer: installing it in $tools"
    (cd "$making" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline --silent)
    # Another run may have been faster.
    mv -T "$making" "$installed" 2>/dev/null || [[ -f $program ]]
}

mkdir -p "$tools/bin"
[[ -f $program ]] || install

# Replaced in one step: a test may be starting it right now.
link=$(mktemp -d "$tools/bin/.link.XXXXXX")
ln -s "$program" "$link/w3bstream-peer.js"
mv -f "$link/w3bstream-peer.js" "$tools/bin/w3bstream-peer.js"
rmdir "$link"
