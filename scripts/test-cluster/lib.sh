# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# What every scenario uses: kubectl within bounds, waiting, notes for the table, plain HTTP.
# No pipe is read in part (`grep -q`, `head`): under pipefail, whoever writes into it would fail by chance.

# A scenario that the cluster cannot play ends with this code.
readonly SKIPPED=77

scenario=setup
background=()

say() {
    printf '[%4d s] %s\n' "$SECONDS" "$*"
}

# A line in the table: note SCENARIO TEXT, or figure TEXT in the scenario that runs.
note() {
    printf '%s\n' "$2" >>"$folder/notes.$1"
}

figure() {
    note "$scenario" "$*"
    say "  $*"
}

fail() {
    figure "FAILED: $*"
    exit 1
}

skip() {
    figure "skipped: $*"
    exit "$SKIPPED"
}

# kubectl in the namespace. A call that hangs ends by itself.
k() {
    kubectl ${CONTEXT:+--context "$CONTEXT"} --namespace "$NAMESPACE" --request-timeout 20s "$@"
}

# kubectl without a limit on the request, for what waits by design.
k_open() {
    kubectl ${CONTEXT:+--context "$CONTEXT"} --namespace "$NAMESPACE" "$@"
}

now_ms() {
    local us=${EPOCHREALTIME/[.,]/}
    echo "${us%???}"
}

# A time as the API writes it, in milliseconds since the epoch.
unix_ms() {
    date --date "$1" +%s%3N
}

# A number without its fraction, a word as it is.
rounded() {
    if [[ $1 =~ ^[0-9.]+$ ]]; then printf '%.0f' "$1"; else printf '%s' "$1"; fi
}

seconds() {
    awk -v ms="$1" 'BEGIN { printf "%.1f", ms / 1000 }'
}

# Whether a comparison of two numbers is true: holds '12.5 <= 500'. One that is not known makes it false.
holds() {
    [[ $1 =~ ^[0-9.]+\ (<|<=|>|>=|==)\ [0-9.]+$ ]] && awk "BEGIN { exit !($1) }"
}

# Tries a command twice a second until it succeeds: within SECONDS COMMAND ARGUMENTS….
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < deadline)) || return 1
        sleep 0.5
    done
}

# Runs kubectl in the background until the scenario ends: start_background FILE ARGUMENTS…. Kubectl itself, not a
# function that calls it: what is ended must be the process that runs.
start_background() {
    local out=$1
    shift
    kubectl ${CONTEXT:+--context "$CONTEXT"} --namespace "$NAMESPACE" "$@" \
        >"$out" 2>>"$folder/background.log" </dev/null &
    background+=("$!")
}

stop_background() {
    local pid
    for pid in "${background[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    background=()
}

# Follows objects: each change is a line in FILE, "MILLISECONDS|what the template prints".
# follow FILE RESOURCE TEMPLATE [FLAGS…]; the template ends with {"\n"}. (Not tabs: `read` takes two for one.)
follow() {
    local file=$1 resource=$2 template=$3
    shift 3
    kubectl ${CONTEXT:+--context "$CONTEXT"} --namespace "$NAMESPACE" get "$resource" --watch \
        --output "jsonpath=$template" "$@" 2>>"$folder/background.log" </dev/null > >(stamp >"$file") &
    background+=("$!")
}

stamp() {
    local line us
    while IFS= read -r line; do
        us=${EPOCHREALTIME/[.,]/}
        printf '%s|%s\n' "${us%???}" "$line"
    done
}

# One field of an object; empty where it is absent: field deployment/model '{.spec.replicas}'.
field() {
    k get "$1" --output "jsonpath=$2" 2>/dev/null || true
}

# Names of the pods of a mode that are not on their way out (the judge's own are no part of
# elastic), one a line, the youngest last.
pods() {
    local template='{range .items[*]}{.metadata.name}{"\t"}{.metadata.deletionTimestamp}{"\n"}{end}'
    k get pods --selector "app.kubernetes.io/name=$1,app.kubernetes.io/part-of=elastic" \
        --sort-by .metadata.creationTimestamp --output "jsonpath=$template" |
        awk -F '\t' '$1 != "" && $2 == "" { print $1 }'
}

wanted_replicas() {
    local replicas
    replicas=$(field deployment/model '{.spec.replicas}')
    echo "${replicas:-0}"
}

ready_replicas() {
    local replicas
    replicas=$(field "deployment/$1" '{.status.readyReplicas}')
    echo "${replicas:-0}"
}

# Waits until a Deployment is as it is asked to be, or one of its containers ends again and again.
rolled_out() {
    local deadline=$((SECONDS + STEP_TIMEOUT)) crashing
    until k_open rollout status "deployment/$1" --timeout 5s >/dev/null 2>>"$folder/background.log"; do
        crashing=$(crashing_pod)
        [[ -z $crashing ]] || fail "$crashing ends again and again; it says: $(last_words "$crashing")"
        ((SECONDS < deadline)) || fail "$1 is not available within $STEP_TIMEOUT s; $(last_warning)"
        sleep 0.5
    done
}

# A pod whose container was started three times or more and ended as often.
crashing_pod() {
    local template='{range .items[*]}{.metadata.name}|{.status.containerStatuses[*].restartCount}|'
    template+='{.status.containerStatuses[*].state.waiting.reason}{"\n"}{end}'
    k get pods --output "jsonpath=$template" 2>/dev/null |
        awk -F '|' '$2 >= 2 && $3 == "CrashLoopBackOff" { print $1; exit }' || true
}

# The error in a pod's log, else its last line.
last_words() {
    local log
    log=$(k logs "$1" --tail 30 2>&1 || true)
    grep -i -m 1 'error' <<<"$log" || tail -n 1 <<<"$log"
}

# What the cluster complained about last.
last_warning() {
    local text
    text=$(k get events --field-selector type=Warning --sort-by .lastTimestamp --output \
        'jsonpath={range .items[*]}{.involvedObject.name}: {.message}{"\n"}{end}' 2>/dev/null | tail -n 1 || true)
    echo "${text:-no warning among the Events}"
}

# Whether model is at its least and every pod beyond is gone.
is_settled() {
    [[ $(wanted_replicas) == "$MIN" && $(ready_replicas model) == "$MIN" ]] &&
        [[ $(pods model | wc -l) == "$MIN" ]]
}

settled() {
    within "$STEP_TIMEOUT" is_settled ||
        fail "model is not back at $MIN replicas $STEP_TIMEOUT s later: $(wanted_replicas) wanted"
}

# What Events say about the Deployment: events Scaled.
events() {
    k get events --field-selector "reason=$1,involvedObject.kind=Deployment,involvedObject.name=model" \
        --output 'jsonpath={range .items[*]}{.message}{"\n"}{end}' 2>/dev/null || true
}

# Asks 127.0.0.1:PORT: http METHOD PORT PATH [FILE [MEDIA_TYPE]]. The status is in $status (000 without an answer), the
# body in $reply.
http() {
    local method=$1 port=$2 path=$3 file=${4:-/dev/null} type=${5:-}
    reply=$folder/reply
    # HTTP/1.0: the answer comes in one piece and the end of the connection is its end.
    # shellcheck disable=SC2016 # the inner shell expands them
    timeout 30 bash -c '
        exec 3<>"/dev/tcp/127.0.0.1/$1" || exit 1
        printf "%s %s HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: %s\r\n" "$2" "$3" "$(wc -c <"$4")" >&3
        [[ -z $5 ]] || printf "Content-Type: %s\r\n" "$5" >&3
        printf "\r\n" >&3
        cat "$4" >&3
        cat <&3' http "$port" "$method" "$path" "$file" "$type" >"$folder/answer" 2>>"$folder/background.log" || true
    status=$(head -n 1 "$folder/answer" | awk '$1 ~ /^HTTP/ { print $2 }')
    status=${status:-000}
    sed '1,/^\r*$/d' "$folder/answer" >"$reply"
}

# Opens a port here that leads to an object, and prints it: forward service/dispatch 8080.
forward() {
    local out=$folder/forward.$RANDOM
    start_background "$out" port-forward "$1" ":$2" --address 127.0.0.1
    within 20 grep -qs 'Forwarding from 127.0.0.1:' "$out" || return 1
    opened=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\).*/\1/p' "$out" | head -n 1)
}

# Opens a port here that speaks to the API server as whoever the kubeconfig says: api_port [KUBECONFIG].
api_port() {
    local out=$folder/proxy.$RANDOM
    if [[ -n ${1:-} ]]; then
        kubectl --kubeconfig "$1" proxy --port 0 >"$out" 2>>"$folder/background.log" </dev/null &
        background+=("$!")
    else
        start_background "$out" proxy --port 0
    fi
    within 20 grep -qs 'Starting to serve on' "$out" || return 1
    opened=$(sed -n 's/^Starting to serve on .*:\([0-9]*\).*/\1/p' "$out" | head -n 1)
}

# Everything that tells why a scenario failed.
gather() {
    local into=$folder/failed-$1 pod
    mkdir -p "$into"
    {
        k get all,endpointslices,leases,events,hpa --output wide || true
    } >"$into/objects.txt" 2>&1
    k describe deployments,pods >"$into/describe.txt" 2>&1 || true
    k get events --sort-by .lastTimestamp --output yaml >"$into/events.yaml" 2>&1 || true
    k get leases --output yaml >"$into/leases.yaml" 2>&1 || true
    for pod in $(k get pods --output name 2>/dev/null); do
        k logs "$pod" --all-containers --timestamps --tail 2000 >"$into/${pod#pod/}.log" 2>&1 || true
        k logs "$pod" --all-containers --previous --tail 500 >"$into/${pod#pod/}.previous.log" 2>/dev/null ||
            rm -f "$into/${pod#pod/}.previous.log"
    done
    say "$1: logs and descriptions are in $into"
}
