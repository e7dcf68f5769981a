#!/bin/sh
# Kills the leading node of a test network (SIGKILL, as a crash would), to watch the others go on without it.
# Usage: testnet/kill-leader.sh DIR        DIR is the --home of 'lockstep testnet up'
set -eu

if [ $# -ne 1 ] || [ ! -r "$1/testnet.json" ]; then
    echo "usage: $0 DIR, where DIR holds the testnet.json of a running test network" >&2
    exit 2
fi

# One node's object per line; they hold no objects themselves.
nodes=$(tr -d '\n' <"$1/testnet.json" | tr '{' '\n' | sed 's/}.*//' | grep '"pid"') || {
    echo "kill-leader: no nodes in $1/testnet.json" >&2
    exit 1
}

# text KEY, number KEY: that member of the node's object on standard input.
text() { sed -n "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p"; }
number() { sed -n "s/.*\"$1\" *: *\([0-9][0-9]*\).*/\1/p"; }

# Whoever answers first says who leads: "leader":{"id":2,"http":"…"}, or null where it does not know.
leader=""
for url in $(printf '%s\n' "$nodes" | text http); do
    leader=$(curl -fsS --max-time 2 "$url/api/status" 2>/dev/null | tr -d '\n ' |
        sed -n 's/.*"leader":{"id":\([0-9][0-9]*\)[,}].*/\1/p' || true)
    if [ -n "$leader" ]; then
        break
    fi
done
if [ -z "$leader" ]; then
    echo "kill-leader: no node names a leader now; is the network running?" >&2
    exit 1
fi

node=$(printf '%s\n' "$nodes" | grep -E "\"id\" *: *$leader *,") || {
    echo "kill-leader: node $leader leads, but it is not in $1/testnet.json" >&2
    exit 1
}
pid=$(printf '%s\n' "$node" | number pid)
home=$(printf '%s\n' "$node" | text home)

# After a restart by hand the number in the file is an old one, and may belong to somebody else's process by now.
case "$(ps -o args= -p "${pid:-0}" 2>/dev/null || true)" in
*"start --home $home"*) ;;
*)
    echo "kill-leader: node $leader leads, but process ${pid:-?} is not its: it was restarted by hand; end it there" >&2
    exit 1
    ;;
esac

kill -KILL "$pid"
echo "killed node $leader in $home (process $pid). The others choose a new leader; ask one of them:"
for url in $(printf '%s\n' "$nodes" | grep -v "\"pid\" *: *$pid *," | text http); do
    echo "  curl -s $url/api/status"
done
echo "To bring it back: lockstep start --home $home"
