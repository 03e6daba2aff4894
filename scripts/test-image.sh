#!/usr/bin/env bash
# Runs every mode from the built image, as a pod would (read-only root, no capabilities, the image's own user), looks
# how names resolve in it, and prints size and start beside their targets. Exits with 1 when anything is not as it should.
#
# Needs a Docker engine on this machine (Linux: the containers share its network), python3 and curl. A name server is
# asked at port 53, so that part needs root; a person who is not root is told that it was left out.
#
# Usage: scripts/test-image.sh
# Settings: IMAGE   image to test (elastic:dev)
#           DOCKER  the client to use (docker)
#           STARTS  how many starts are timed (9)
set -euo pipefail
cd "$(dirname "$0")/.."

image=${IMAGE:-elastic:dev}
docker=${DOCKER:-docker}
starts=${STARTS:-9}
size_mb_max=40
ready_ms_max=100
name_server=127.0.0.153

scratch=$(mktemp -d "${TMPDIR:-/tmp}/elastic-image.XXXXXX")
prefix=elastic-test-$$
names_pid=
rows=()
failed=0

# As `restricted` pods run. The containers share this machine's network, so that no engine's own name server is between.
as_a_pod=(--network host --read-only --cap-drop ALL --security-opt no-new-privileges)

fail() {
    echo "test-image: $*" >&2
    exit 1
}

# shellcheck disable=SC2329 # the trap below calls it
cleanup() {
    local status=$? left
    trap - EXIT INT TERM
    left=$("$docker" ps --all --quiet --filter "name=^$prefix-" || true)
    if [[ -n $left ]]; then xargs "$docker" rm --force <<<"$left" >/dev/null || true; fi
    if [[ -n $names_pid ]]; then kill "$names_pid" 2>/dev/null || true; fi
    rm -rf "$scratch"
    exit "$status"
}

row() { # NAME OUTCOME NOTE
    rows+=("$1"$'\t'"$2"$'\t'"$3")
    printf '%-9s %s: %s\n' "$2" "$1" "$3"
}

# Runs a check, which prints a note: NAME FUNCTION [ARGUMENT …]
check() {
    local name=$1 note status
    shift
    # Not `|| status=$?`: bash would go on after a command of the check that fails.
    set +e
    note=$(
        set -e
        "$@" 2>"$scratch/check.err"
    )
    status=$?
    set -e
    if [[ $status -eq 0 ]]; then
        row "$name" ok "$note"
    else
        row "$name" FAILED "$note"
        tail -n 12 "$scratch/check.err" >&2
        failed=1
    fi
}

helper() {
    python3 scripts/image_helpers.py "$@"
}

# Runs to its end: elastic's arguments, after engine's ones and `--`.
once() {
    local engine=()
    while [[ $1 != -- ]]; do
        engine+=("$1")
        shift
    done
    timeout 60 "$docker" run --rm "${as_a_pod[@]}" "${engine[@]}" "$image" "${@:2}"
}

# Starts a server: its name here, the engine's arguments, `--`, elastic's arguments.
start() {
    local name=$1 engine=()
    shift
    while [[ $1 != -- ]]; do
        engine+=("$1")
        shift
    done
    # One that a check left behind.
    "$docker" rm --force "$prefix-$name" >/dev/null 2>&1 || true
    "$docker" run --detach --name "$prefix-$name" "${as_a_pod[@]}" "${engine[@]}" "$image" "${@:2}" >/dev/null
}

is_ready() { # PORT
    helper ready "$1" 20 >/dev/null
}

# SIGTERM; it must end by itself with exit code 0: NAME SECONDS
stops() {
    local began ended code
    began=$(date +%s%N)
    "$docker" stop --time "$2" "$prefix-$1" >/dev/null
    ended=$(date +%s%N)
    code=$("$docker" inspect --format '{{.State.ExitCode}}' "$prefix-$1")
    if [[ $code -ne 0 ]]; then "$docker" logs --tail 5 "$prefix-$1" >&2; fi
    "$docker" rm --force "$prefix-$1" >/dev/null
    echo "exit $code after $(((ended - began) / 1000000)) ms"
    [[ $code -eq 0 ]]
}

# --- what is in it -------------------------------------------------------------------------------------------------

contents() {
    local user entry files strange
    user=$("$docker" image inspect --format '{{.Config.User}}' "$image")
    entry=$("$docker" image inspect --format '{{json .Config.Entrypoint}}' "$image")
    "$docker" create --name "$prefix-files" "$image" >/dev/null
    files=$("$docker" export "$prefix-files" | tar -t | grep -v '/$' | sort)
    "$docker" rm "$prefix-files" >/dev/null
    # The engine itself adds the rest of these to a container.
    strange=$(grep -Ev '^(elastic|weights/.*|licenses/.*|etc/ssl/certs/ca-certificates\.crt)$' <<<"$files" |
        grep -Ev '^(\.dockerenv|dev/console|etc/(hostname|hosts|mtab|resolv\.conf))$' || true)
    echo "user $user, entrypoint $entry$([[ -z $strange ]] || echo ", and unexpected: $strange")"
    grep -qx licenses/LICENSE <<<"$files"
    [[ $user == 65532:65532 && $entry == '["/elastic"]' && -z $strange ]]
}

size() {
    local bytes compressed
    bytes=$("$docker" image inspect --format '{{.Size}}' "$image")
    compressed=$("$docker" save "$image" | gzip -c | wc -c)
    awk -v bytes="$bytes" -v compressed="$compressed" -v most="$size_mb_max" 'BEGIN {
        printf "%.1f MB (target: at most %d MB), compressed %.1f MB\n", bytes / 1e6, most, compressed / 1e6
        exit bytes > most * 1e6
    }'
}

# --- modes that end by themselves ----------------------------------------------------------------------------------

help_text() {
    # Not `| grep -q`, which leaves before the whole text is written.
    [[ $(once -- --help) == *serve-model* ]]
    once -- --version
}

completions() {
    once -- completions bash | bash -n
    echo "bash reads them"
}

classify() {
    local text
    text=$(once -v "$PWD/tests/photos:/photos:ro" -- classify /photos/goldfish.jpg)
    grep -o 'goldfish[^,]*' <<<"$text" | head -n 1
}

weights() {
    once -- weights list >"$scratch/list.txt"
    # The only folder that can be written to; it belongs to the image's user.
    once --tmpfs /made:uid=65532,gid=65532 -- weights fetch --from /weights --dir /made
    echo "list; fetch from a folder into a volume"
}

simulate() {
    once -v "$PWD/workload.txt:/workload.txt:ro" -- \
        simulate --workload /workload.txt --policy slo --jobs 1 --json >"$scratch/simulate.json"
    echo "$(python3 -c 'import json, sys; print(len(json.dumps(json.load(open(sys.argv[1])))))' \
        "$scratch/simulate.json") bytes of JSON"
}

no_cluster() {
    local status=0 text
    text=$(once -- autoscale --target deployment/model --monitor http://127.0.0.1:9 --port 0 2>&1) || status=$?
    tail -n 1 <<<"$text"
    [[ $status -eq 1 && $text == *"no Kubernetes cluster"* ]]
}

# --- servers -------------------------------------------------------------------------------------------------------

start_to_ready() {
    local port number at from watch
    : >"$scratch/starts.txt"
    for ((number = 0; number < starts; number++)); do
        read -r port < <(helper ports 1)
        helper ready "$port" 20 >"$scratch/ready.txt" &
        watch=$!
        start timed -- serve-model --port "$port"
        wait "$watch"
        at=$(<"$scratch/ready.txt")
        from=$(helper started "$("$docker" inspect --format '{{.State.Pid}}' "$prefix-timed")")
        echo "$at $from" >>"$scratch/starts.txt"
        "$docker" rm --force "$prefix-timed" >/dev/null
    done
    awk '{ print ($1 - $2) * 1000 }' "$scratch/starts.txt" | sort -n | awk -v most="$ready_ms_max" '
        { ms[NR] = $1 }
        END {
            median = ms[int((NR + 1) / 2)]
            printf "median %.0f ms of %d (%.0f to %.0f; target: at most %d ms)\n", median, NR, ms[1], ms[NR], most
            exit median > most
        }'
}

# A photo through the dispatcher, as a client sends it: PORT
classified() {
    local answer
    answer=$(curl --silent --show-error --fail --max-time 10 --data-binary @tests/photos/goldfish.jpg \
        -H 'content-type: image/jpeg' "http://127.0.0.1:$1/predict")
    grep -o '"label": *"goldfish"' <<<"$answer" | head -n 1
}

pipeline() {
    local dispatch=$1 model=$2 monitor=$3
    start monitor -- monitor --port "$monitor"
    start model -- serve-model --port "$model"
    is_ready "$monitor"
    is_ready "$model"
    # The first replica is known by a name that the container's hosts file alone knows.
    start dispatch --add-host "known-by-file:127.0.0.1" -- dispatch --port "$dispatch" \
        --replica "http://known-by-file:$model" --monitor "http://known-by-file:$monitor"
    is_ready "$dispatch"
    classified "$dispatch"
}

load() {
    local dispatch=$1 monitor=$2
    once --add-host "known-by-file:127.0.0.1" -v "$PWD/tests/photos:/photos:ro" -- load \
        --schedule constant:10 --duration 3s --photos /photos --target "http://known-by-file:$dispatch" \
        --failed-max 0 --lag-max 100ms --quiet >"$scratch/load.txt" || {
        tail -n 20 "$scratch/load.txt" >&2
        return 1
    }
    curl --silent --fail --max-time 5 "http://127.0.0.1:$monitor/stats" >"$scratch/stats.json"
    python3 -c 'import json, sys; print("30 requests; the monitor:", json.dumps(json.load(open(sys.argv[1])))[:80])' \
        "$scratch/stats.json"
}

everything() {
    local port=$1
    start up -- up --port "$port" --monitor-port 0 --autoscale-port 0 --replicas-max 2
    is_ready "$port"
    echo "$(classified "$port"), $(stops up 30)"
}

processes() {
    local monitor=$1 autoscale=$2
    start monitor2 -- monitor --port "$monitor"
    is_ready "$monitor"
    start autoscale -- autoscale --target processes --monitor "http://127.0.0.1:$monitor" --port "$autoscale" \
        --replicas-min 1 --replicas-max 2
    is_ready "$autoscale"
    stops monitor2 30 >/dev/null
    stops autoscale 30
}

# --- names ---------------------------------------------------------------------------------------------------------

slots() { # PORT
    curl --silent --max-time 5 "http://127.0.0.1:$1/metrics" | awk '$1 ~ /^elastic_dispatch_slots/ { print $2 }'
}

# A dispatcher whose replicas are a name's addresses, all of which lead to one replica: NAME ADDRESSES
resolves() {
    local name=$1 wanted=$2 port have=0 number
    read -r port < <(helper ports 1)
    start names -v "$scratch/resolv.conf:/etc/resolv.conf:ro" -- dispatch --port "$port" \
        --replica-dns "$name:$everywhere_port"
    is_ready "$port"
    for ((number = 0; number < 100; number++)); do
        have=$(slots "$port")
        if [[ $have == $((wanted * everywhere_slots)) ]]; then break; fi
        sleep 0.1
    done
    "$docker" rm --force "$prefix-names" >/dev/null
    echo "$((have / everywhere_slots)) of $wanted addresses"
    [[ $have == $((wanted * everywhere_slots)) ]]
}

over_tcp() {
    resolves many 60
    grep -q '^tcp 1 many' "$scratch/asked.txt"
}

# Nobody has the name: the dispatcher goes on, and stops when it is told to.
unknown_name() {
    local port
    read -r port < <(helper ports 1)
    start names -v "$scratch/resolv.conf:/etc/resolv.conf:ro" -- dispatch --port "$port" --replica-dns nobody:80
    is_ready "$port"
    wait_until_asked 'udp 1 nobody$'
    stops names 30
}

wait_until_asked() {
    local number
    for ((number = 0; number < 100; number++)); do
        if grep -Eq "$1" "$scratch/asked.txt"; then return; fi
        sleep 0.1
    done
    echo "the name server was never asked for $1" >&2
    return 1
}

# A name server that does not answer must hold neither threads nor the end.
silent_server() {
    local port threads number note
    read -r port < <(helper ports 1)
    start names -v "$scratch/resolv.conf:/etc/resolv.conf:ro" -- dispatch --port "$port" \
        --replica "http://silent:80" --replica-dns silent:80 --monitor http://silent:80
    is_ready "$port"
    for ((number = 0; number < 40; number++)); do
        curl --silent --max-time 1 --output /dev/null --data-binary x "http://127.0.0.1:$port/predict" &
    done
    sleep 4
    threads=$(awk '$1 == "Threads:" { print $2 }' "/proc/$("$docker" inspect --format '{{.State.Pid}}' "$prefix-names")/status")
    note=$(stops names 30)
    echo "$threads threads; $note"
    # A drain waits for the reports that are under way.
    [[ $threads -le $(($(nproc) + 6)) && $note =~ after\ ([0-9]+)\ ms && ${BASH_REMATCH[1]} -le 12000 ]]
}

# A replica that all addresses of this machine lead to; how many slots it has.
everywhere() {
    local host=0.0.0.0 at port number have=0
    if [[ -e /proc/net/if_inet6 ]]; then host=::; fi
    read -r at port < <(helper ports 2)
    start everywhere -- serve-model --port "$at" --host "$host" --threads 1
    is_ready "$at"
    start one -- dispatch --port "$port" --replica "http://127.0.0.1:$at"
    is_ready "$port"
    for ((number = 0; number < 100; number++)); do
        have=$(slots "$port")
        if [[ ${have:-0} != 0 ]]; then break; fi
        sleep 0.1
    done
    echo "$at $have" >"$scratch/everywhere.txt"
    echo "$have slots"
    [[ $have -gt 0 ]]
}

name_rows=(
    "a short name (search, ndots:5)|resolves|one|1"
    "a name of another namespace|resolves|other.svc|1"
    "a whole name, without a dot at its end|resolves|absolute.test|1"
    "a name with three addresses|resolves|few|3"
    "60 addresses, over TCP|over_tcp"
    "a name that nobody has|unknown_name"
    "a name server that is silent|silent_server"
)
v6_rows=(
    "IPv4 and IPv6|resolves|both|2"
    "IPv6 alone|resolves|six|1"
)

names() {
    local line parts number
    : >"$scratch/everywhere.txt"
    printf 'search elastic.svc.cluster.local svc.cluster.local cluster.local\nnameserver %s\noptions ndots:5\n' \
        "$name_server" >"$scratch/resolv.conf"
    chmod 644 "$scratch/resolv.conf"
    : >"$scratch/asked.txt"
    # Not through `helper`: the process to end is the server itself, not a shell around it.
    python3 scripts/image_helpers.py names "$name_server" >"$scratch/asked.txt" 2>"$scratch/names.err" &
    names_pid=$!
    for ((number = 0; number < 100; number++)); do
        if [[ -s $scratch/asked.txt ]] || ! kill -0 "$names_pid" 2>/dev/null; then break; fi
        sleep 0.1
    done
    if [[ ! -s $scratch/asked.txt ]]; then
        names_pid=
        row "names from a name server" LEFT-OUT "port 53 of $name_server: $(tail -n 1 "$scratch/names.err"); run as root"
        failed=1
        return
    fi
    check "a replica for the names to lead to" everywhere
    read -r everywhere_port everywhere_slots <"$scratch/everywhere.txt" || return
    if [[ -e /proc/net/if_inet6 ]]; then name_rows+=("${v6_rows[@]}"); fi
    for line in "${name_rows[@]}"; do
        IFS='|' read -r -a parts <<<"$line"
        check "${parts[@]}"
    done
}

command -v python3 >/dev/null || fail "python3 is not installed"
command -v curl >/dev/null || fail "curl is not installed"
"$docker" info >/dev/null 2>&1 || fail "no Docker engine answers '$docker info'; start one, or name another client in DOCKER"
"$docker" image inspect "$image" >/dev/null 2>&1 || fail "there is no image $image; run 'make image' first"
trap cleanup EXIT
trap 'exit 130' INT TERM
everywhere_port=0
everywhere_slots=0

read -r dispatch_port model_port monitor_port up_port monitor2_port autoscale_port < <(helper ports 6)
check "contents" contents
check "size" size
check "--help, --version" help_text
check "completions" completions
check "classify" classify
check "weights" weights
check "simulate" simulate
check "autoscale without a cluster refuses" no_cluster
check "serve-model: start to ready" start_to_ready
check "monitor, serve-model, dispatch: a photo" pipeline "$dispatch_port" "$model_port" "$monitor_port"
check "load" load "$dispatch_port" "$monitor_port"
for mode in dispatch model monitor; do
    check "SIGTERM: $mode" stops "$mode" 30
done
check "up: a photo, SIGTERM" everything "$up_port"
check "autoscale --target processes, SIGTERM" processes "$monitor2_port" "$autoscale_port"
names

echo
printf '%s\n' "${rows[@]}" | awk -F '\t' -v image="$image" '
    BEGIN { printf "%-44s %-9s %s\n", image, "outcome", "note" }
    { gsub(/\n/, "; "); printf "%-44s %-9s %s\n", $1, $2, $3 }'
if [[ $failed -ne 0 ]]; then
    echo "test-image: not everything is as it should be" >&2
    exit 1
fi
