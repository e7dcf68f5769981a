#!/bin/sh
# Run by compose.yaml before the nodes: makes three homes and the genesis that they share. Running it again changes
# nothing but the database's password; an interrupted run is carried on.
set -eu
umask 077

homes=${HOMES:-/homes}
network=${LOCKSTEP_NETWORK:-compose}
: "${POSTGRES_PASSWORD:?set it in .env}"

# A value in single quotes for a PostgreSQL connection string.
quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/[\\\\']/\\\\&/g")"
}

for n in 1 2 3; do
    home=$homes/node-$n
    if [ ! -e "$home/member.json" ]; then
        lockstep init --home "$home" --name "node-$n" \
            --p2p-address "/dns4/node-$n/tcp/9100" --p2p-listen /ip4/0.0.0.0/tcp/9100 \
            --http-url "http://node-$n:9000" --http-listen 0.0.0.0:9000
    fi
    # W3bstream knows one public key per data source, so all nodes sign tasks with the same key.
    if [ "$n" != 1 ]; then
        cp "$homes/node-1/task.key" "$home/task.key"
    fi
    if ! grep -q '^name = "w3bstream"' "$home/config.toml"; then
        cat >> "$home/config.toml" <<'TOML'

[[output]]
name = "w3bstream"
kind = "postgres"
dsn_file = "postgres.dsn"
schema = "public"
scope = "network"
TOML
    fi
    printf 'host=postgres user=lockstep dbname=lockstep password=%s\n' "$(quoted "$POSTGRES_PASSWORD")" \
        > "$home/postgres.dsn"
done

# The same members give the same genesis, whoever makes it and however often.
genesis=$(mktemp -d)/genesis.json
lockstep genesis --network "$network" --member "$homes/node-1/member.json" --member "$homes/node-2/member.json" \
    --member "$homes/node-3/member.json" --out "$genesis"
for n in 1 2 3; do
    home=$homes/node-$n
    if [ ! -e "$home/.genesis-installed" ]; then
        lockstep init --home "$home" --genesis "$genesis"
        touch "$home/.genesis-installed"
    fi
    chown -R 10001:10001 "$home"
done
echo "homes of node-1, node-2 and node-3 are ready"
