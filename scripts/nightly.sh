#!/usr/bin/env bash
# What is too long for every change: simulation and chaos at length, rounds of faults, long outages, every store alone,
# and the fuzz targets. Goes on where something fails, and ends with a line of figures for each part.
#   NIGHTLY_SEEDS     seeds of the default scenario (2,000); the others run a tenth of them each
#   NIGHTLY_MINUTES   of chaos (30)
#   NIGHTLY_SEED      of chaos and the rounds; the day's number if not given
#   NIGHTLY_HOME      where the output of each part goes (.lockstep/nightly)
#   NIGHTLY_PARTS     which parts (sim chaos rounds outages features advisories fuzz)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

seeds=${NIGHTLY_SEEDS:-2000}
minutes=${NIGHTLY_MINUTES:-30}
seed=${NIGHTLY_SEED:-$(date +%Y%m%d)}
home=${NIGHTLY_HOME:-.lockstep/nightly}
every_part="sim chaos rounds outages features advisories fuzz"
parts=" ${NIGHTLY_PARTS:-$every_part} "
for part in $parts; do
    [[ " $every_part " == *" $part "* ]] || { echo "nightly: unknown part '$part'; there are $every_part" >&2; exit 2; }
done
# The last line of each part is its figures, not make's.
export GNUMAKEFLAGS=--no-print-directory
mkdir -p "$home"

figures=()
failed=0
# part NAME COMMAND...: runs it with its output in a file, and keeps its time and the last line that it printed.
part() {
    local name=$1 started=$SECONDS result=passed
    shift
    printf '== %s: %s\n' "$name" "$*"
    if ! "$@" >"$home/$name.log" 2>&1; then
        result=FAILED
        failed=$((failed + 1))
    fi
    figures+=("$(printf '%-16s %-6s %6d s  %s' "$name" "$result" $((SECONDS - started)) \
        "$(tr '\r' '\n' <"$home/$name.log" | sed '/^[[:space:]]*$/d' | tail -n 1 | cut -c 1-300)")")
    printf '   %s\n' "${figures[-1]}"
}
wants() { [[ "$parts" == *" $1 "* ]]; }
nodes() { scripts/cargo.sh test --locked -p lockstep-cli --test nodes -- --nocapture --test-threads 1 "$@"; }

if wants sim; then
    part sim-default make sim SIM_ARGS="--seeds $seeds"
    for scenario in members disks snapshots upgrade plain; do
        part "sim-$scenario" make sim SIM_ARGS="--seeds $((seeds > 10 ? seeds / 10 : 1)) --scenario $scenario"
    done
fi
if wants chaos; then
    part chaos make chaos CHAOS_ARGS="--minutes $minutes --seed $seed"
fi
if wants rounds; then
    part rounds make rounds LOCKSTEP_SEED="$seed"
fi
if wants outages; then
    LOCKSTEP_OUTPUT_KILLS=24 part output-kills nodes every_output::
    LOCKSTEP_OUTAGE_SECONDS=120 part long-outages scripts/cargo.sh test --locked -p lockstep-outputs --test outputs
fi
if wants features; then
    part features make features
fi
if wants advisories; then
    part advisories scripts/deny.sh advisories
fi
if wants fuzz; then
    if cargo +nightly --version >/dev/null 2>&1; then
        part fuzz make fuzz
    else
        figures+=("fuzz             LEFT OUT: there is no nightly compiler")
    fi
fi

printf '\nnightly: %d of %d parts failed; their output is in %s\n' "$failed" "${#figures[@]}" "$home"
printf '  %s\n' "${figures[@]}"
[[ $failed -eq 0 ]]
