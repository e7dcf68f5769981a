#!/bin/sh
# Run by compose.yaml before the nodes: makes three homes and the genesis that they share. Running it again changes
# nothing but the database's password; an interrupted run is carried on.
set -eu
umask 077

homes=${HOMES:-/homes}
network=${LOCKSTEP_NETWORK:-compose}
: "${LOCKSTEP_PROJECTS:?set it in .env, for example LOCKSTEP_PROJECTS=7,8}"
: "${POSTGRES_PASSWORD:?set it in .env}"

# A value in single quotes for a PostgreSQL connection string.
quoted() {
    printf "'%s'" "$(printf '%s' "$1" | sed "s/[\\\\']/\\\\&/g")"
}

for n in 1 2 3; do
    home=$homes/node-$n
    if [ ! -e "$home/member.json" ] && [ ! -e "$home/genesis.json" ]; then
        # member.json is written last, and no genesis can name a node without it: what an interrupted run left of
        # this home has never been part of a network.
        rm -rf "$home/config.toml" "$home/node.key" "$home/task.key" "$home/store"
        set -- --name "node-$n" --p2p-address "/dns4/node-$n/tcp/9100" --p2p-listen /ip4/0.0.0.0/tcp/9100 \
            --http-url "http://node-$n:9000" --http-listen 0.0.0.0:9000
        # W3bstream knows one public key per data source, so all nodes sign tasks with the same key.
        if [ "$n" != 1 ]; then
            set -- "$@" --task-key-file "$homes/node-1/task.key"
        fi
        lockstep init --home "$home" "$@"
    fi
    if ! grep -q '^name = "w3bstream"' "$home/config.toml"; then
        cat >> "$home/config.toml" <<'TOML'

[[output]]
name = "w3bstream"
scope = "network"
kind = "postgres"
dsn_file = "postgres.dsn"
schema = "public"
TOML
    fi
    printf 'host=postgres user=lockstep dbname=lockstep password=%s\n' "$(quoted "$POSTGRES_PASSWORD")" \
        > "$home/postgres.dsn"
done

# The same members and options give the same genesis for each node. Once it is there it stays: a change of the
# network's name or projects would be another network.
for n in 1 2 3; do
    home=$homes/node-$n
    if [ ! -e "$home/genesis.json" ]; then
        set -- --network "$network"
        for m in 1 2 3; do
            set -- "$@" --member "$homes/node-$m/member.json"
        done
        for project in $(printf '%s' "$LOCKSTEP_PROJECTS" | tr ',' ' '); do
            set -- "$@" --project "$project"
        done
        lockstep init --home "$home" "$@"
    fi
    chown -R 10001:10001 "$home"
done
echo "homes of node-1, node-2 and node-3 are ready"
