#!/usr/bin/env bash
# The demo: everything on this machine, a day-like workload, and a verdict as exit code.
#
# Usage: scripts/demo.sh [further arguments of `elastic load`]
# Settings: DEMO_SPEED   replay faster by this factor
#           DEMO_PACE    least time a replica takes for one image (100ms), so that a small machine can hold several
#           DEMO_POLICY  rule that scales, slo or step (slo)
#           DEMO_KILL=1  kill a replica with SIGKILL in the middle
#           DEMO_KEEP=1  leave everything running afterwards, until Ctrl-C
#           DEMO_LAG_MAX how late the load generator may be itself (50ms): with everything on one small machine it
#                        waits for a core now and then, and 1ms, its default, cannot be kept
#           DEMO_REPORT  where the report goes as a page (target/demo-report.html); the JSON is beside it
#           DEMO_WORKLOAD, DEMO_REPLICAS_MAX, DEMO_PORT, ELASTIC (path of the executable)
set -euo pipefail
cd "$(dirname "$0")/.."

elastic=${ELASTIC:-target/release/elastic}
workload=${DEMO_WORKLOAD:-workload.txt}
speed=${DEMO_SPEED:-1}
report=${DEMO_REPORT:-target/demo-report.html}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/elastic-demo.XXXXXX")
up_pid=
load_pid=
kill_pid=
keep_scratch=

say() {
    echo "demo: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

alive() {
    kill -0 "$1" 2>/dev/null
}

# Sends SIGTERM and waits. `up` drains within its own time-outs; if it has not ended after 30 s it is killed,
# and its replicas end with it.
# shellcheck disable=SC2317,SC2329 # cleanup calls it
stop_up() {
    [[ -n $up_pid ]] || return 0
    local tries
    kill -TERM "$up_pid" 2>/dev/null || true
    for ((tries = 0; tries < 150; tries++)); do
        alive "$up_pid" || break
        sleep 0.2
    done
    if alive "$up_pid"; then
        say "elastic up did not end after SIGTERM; killing it"
        kill -KILL "$up_pid" 2>/dev/null || true
    fi
    wait "$up_pid" 2>/dev/null || true
    up_pid=
}

# shellcheck disable=SC2317,SC2329 # the trap below calls it
cleanup() {
    local status=$?
    trap - EXIT INT TERM
    # In its own process group, so that its sleep goes with it.
    if [[ -n $kill_pid ]]; then
        kill -TERM -- "-$kill_pid" 2>/dev/null || true
    fi
    if [[ -n $load_pid ]]; then
        kill -TERM "$load_pid" 2>/dev/null || true
        wait "$load_pid" 2>/dev/null || true
    fi
    stop_up
    if [[ $status -ne 0 || -n $keep_scratch ]]; then
        say "logs are in $scratch"
    else
        rm -rf "$scratch"
    fi
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The address of one part, from the file that `up` writes; empty as long as it is not there.
address() {
    tr -d '\n' 2>/dev/null <"$scratch/addresses.json" |
        sed -n 's/.*"'"$1"'"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p' || true
}

port_is_free() {
    ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

start_up() {
    local port=${DEMO_PORT:-8080} tries
    if ! port_is_free "$port"; then
        say "port $port is taken; taking a free one"
        port=0
    fi
    "$elastic" up --replicas-min 1 --replicas-max "${DEMO_REPLICAS_MAX:-8}" --pace "${DEMO_PACE:-100ms}" \
        --policy "${DEMO_POLICY:-slo}" --port "$port" --addresses "$scratch/addresses.json" >"$scratch/up.log" 2>&1 &
    up_pid=$!
    for ((tries = 0; tries < 600; tries++)); do
        if [[ -f $scratch/addresses.json ]]; then
            dispatch=$(address dispatch)
            monitor=$(address monitor)
            autoscale=$(address autoscale)
            [[ -z $dispatch || -z $monitor || -z $autoscale ]] || return 0
        fi
        alive "$up_pid" || break
        sleep 0.1
    done
    tail -n 20 "$scratch/up.log" >&2
    fail "elastic up did not start; its last log lines are above"
}

# Half of the replay's length, seconds.
half_s() {
    awk -v speed="$speed" '!/^[[:space:]]*(#|$)/ { lines++ } END { printf "%.1f", lines / speed / 2 }' "$workload"
}

# Kills one ready replica of our own `up`; any other if none says that it is ready.
kill_one_replica() {
    local replicas pid
    sleep "$(half_s)"
    replicas=$(curl --silent --fail --max-time 5 "$autoscale/replicas" | tr -d '\n' | grep -o '{[^}]*}') ||
        { say "cannot read $autoscale/replicas; no replica was killed"; return; }
    pid=$( (grep -i '"ready"' <<<"$replicas" || cat <<<"$replicas") |
        sed -n 's/.*"pid"[[:space:]]*:[[:space:]]*\([0-9][0-9]*\).*/\1/p' | tail -n 1)
    [[ -n $pid ]] || { say "$autoscale/replicas names no process; no replica was killed"; return; }
    if kill -KILL "$pid"; then say "killed replica $pid with SIGKILL"; fi
}

# Least and most replicas at the end of any second since the first was ready.
replica_range() {
    curl --silent --fail --max-time 5 "$monitor/history" |
        grep -o '"replicas_ready"[[:space:]]*:[[:space:]]*[0-9][0-9]*' | sed 's/.*[^0-9]//' |
        awk '$1 > 0 || seen { if (!seen || $1 < least) least = $1; if ($1 > most) most = $1; seen = 1 }
             END { if (seen) printf "%d to %d", least, most; else exit 1 }'
}

[[ -x $elastic ]] || fail "$elastic is not there; run 'make build' first"
[[ -f $workload ]] || fail "$workload is not there; name a file of requests per second in DEMO_WORKLOAD"
command -v curl >/dev/null || fail "curl is not installed; the demo reads the number of replicas with it"
awk -v speed="$speed" 'BEGIN { exit !(speed + 0 > 0) }' || fail "DEMO_SPEED must be a number above 0, not '$speed'"

start_up
echo "live page: $monitor/"
if [[ ${DEMO_KILL:-} == 1 ]]; then
    set -m
    kill_one_replica &
    kill_pid=$!
    set +m
fi

# In the background, so that a signal ends the demo at once and not after the whole workload.
mkdir -p "$(dirname "$report")"
rm -f "$report"
"$elastic" load --workload "$workload" --target "$dispatch" --monitor "$monitor" --autoscaler "$autoscale" \
    --speed "$speed" --slo-p99 500ms --lag-max "${DEMO_LAG_MAX:-50ms}" \
    --html "$report" --json "${report%.html}.json" "$@" &
load_pid=$!
verdict=0
wait "$load_pid" || verdict=$?
load_pid=

range=$(replica_range) || range="unknown ($monitor/history does not say)"
echo "replicas: $range"
if [[ -f $report ]]; then echo "report: $report, and as JSON ${report%.html}.json"; fi
echo "live page: $monitor/"
if [[ ${DEMO_KEEP:-} == 1 ]]; then
    keep_scratch=1
    say "still running, Ctrl-C ends it"
    trap 'exit "$verdict"' INT TERM
    wait "$up_pid" || true
fi
exit "$verdict"
