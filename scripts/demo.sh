#!/usr/bin/env bash
# Three nodes on this machine, thirty devices that send to them, and a look at what came out.
#   DEMO_SECONDS   how long it runs (60)
#   DEMO_HOME      directory of the network; kept and continued when you name one (.lockstep/demo, made anew each time)
#   DEMO_PORT      HTTP port of the first node, the others follow it (9001)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

seconds=${DEMO_SECONDS:-60}
port=${DEMO_PORT:-9001}
own_home=.lockstep/demo
home=${DEMO_HOME:-$own_home}
lockstep=$(target_dir)/debug/lockstep

echo "The demo needs Rust, and of Debian's packages g++, libclang, sqlite3 and curl; it installs those that are missing."
if [[ -x "$lockstep" ]]; then
    echo "It then builds what changed since the last build."
else
    echo "It then builds Lockstep, quickly and not for speed: about 12 minutes the first time on two cores, 4 of them for"
    echo "RocksDB, which is kept for all other builds; a few seconds afterwards. It needs about 1.5 GB of disk under $(target_dir)."
fi
scripts/deps.sh build demo
scripts/cargo.sh build --locked -p lockstep-cli

if [[ "$home" == "$own_home" ]]; then
    rm -rf "$own_home"
fi
mkdir -p "$home"

cat <<TEXT

Starting three nodes and thirty devices that send 200 messages a second together, for $seconds seconds.
Everything is written under $home.

While it runs, open in a browser, or ask with curl in another terminal:
  http://127.0.0.1:$port/              a status page of the first node; the others are on ports $((port + 1)) and $((port + 2))
  http://127.0.0.1:$port/api/status    how it is, and who leads
  http://127.0.0.1:$port/metrics       its measurements
To kill the leading node, and see that nothing that was acknowledged is lost:
  testnet/kill-leader.sh $home

TEXT

"$lockstep" testnet up --nodes 3 --home "$home" --http-base-port "$port" --devices 30 --rate 200 --for "$seconds"

tasks=$home/tasks.sqlite
query="SELECT id, project_id, hex(task_id) AS task, message_ids FROM tasks ORDER BY id DESC LIMIT 5"
echo
if [[ ! -s "$tasks" ]]; then
    echo "demo: no tasks were published: $tasks is missing or empty" >&2
    exit 1
fi
echo "The tasks are in $tasks, in the tables that W3bstream reads. The newest of them:"
echo "  sqlite3 -header -column $tasks \\"
echo "    \"$query\""
echo
if command -v sqlite3 >/dev/null; then
    sqlite3 -header -column "$tasks" "$query"
    count=$(sqlite3 "$tasks" "SELECT count(*) FROM tasks")
    echo
    echo "$count tasks in all."
    if [[ "$count" -eq 0 ]]; then
        exit 1
    fi
fi
echo "To go on with the same network, until you press Ctrl-C:"
echo "  $lockstep testnet up --nodes 3 --home $home --http-base-port $port"
