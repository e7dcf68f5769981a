#!/bin/sh
# Kills the leading node of a test network (SIGKILL, as a crash would), to watch the others go on without it.
# Usage: testnet/kill-leader.sh DIR        DIR is the --home of 'lockstep testnet up'
set -eu

if [ $# -ne 1 ] || [ ! -r "$1/testnet.json" ]; then
    echo "usage: $0 DIR, where DIR holds the testnet.json of a running test network" >&2
    exit 2
fi
home=${1%/}

# value_of KEY: the value of that key, text or number, in the JSON on standard input (one line).
value_of() {
    sed -n -e "s/.*\"$1\" *: *\"\([^\"]*\)\".*/\1/p" -e "s/.*\"$1\" *: *\([0-9][0-9]*\).*/\1/p" | head -n 1
}

# One node's object per line; they hold no objects themselves.
nodes=$(tr -d '\n' <"$home/testnet.json" | tr '{' '\n' | sed 's/}.*//' | grep '"pid"') || {
    echo "kill-leader: no nodes in $home/testnet.json" >&2
    exit 1
}

# Whoever answers first says who leads: a node's name, or its id.
leader=""
for url in $(printf '%s\n' "$nodes" | sed -n 's/.*"http" *: *"\([^"]*\)".*/\1/p'); do
    leader=$(curl -fsS --max-time 2 "$url/api/status" 2>/dev/null | tr -d '\n' | value_of leader || true)
    if [ -n "$leader" ]; then
        break
    fi
done
if [ -z "$leader" ]; then
    echo "kill-leader: no node names a leader now; is the network running?" >&2
    exit 1
fi

node=$(printf '%s\n' "$nodes" | grep -E "\"(name|id)\" *: *\"?$leader\"? *(,|$)" | head -n 1)
pid=$(printf '%s\n' "$node" | value_of pid)
node_home=$(printf '%s\n' "$node" | value_of home)

# After a restart by hand the number in the file is an old one, and may belong to somebody else's process by now.
case "$(ps -o args= -p "${pid:-0}" 2>/dev/null || true)" in
*lockstep*) ;;
*)
    echo "kill-leader: $leader leads, but process ${pid:-?} is not its: it was restarted by hand; end it there" >&2
    exit 1
    ;;
esac

kill -KILL "$pid"
echo "killed $leader (process $pid). The others choose a new leader; ask one of them: curl -s URL/api/status"
echo "To bring it back: lockstep start --home ${node_home:-$home/NODE}"
