# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# Load from inside the cluster, through the Service: `elastic load` in a pod, and what its report says.

# Starts load NAME with flags of `elastic load`, and waits until the pod runs.
start_load() {
    local name=load-$1
    shift
    pod "$name" load default load --target http://dispatch:8080 --photos /photos --json - \
        --timeout 10s --lag-max 100ms --wait 60s "$@" | k apply --filename - >/dev/null
    within "$STEP_TIMEOUT" is_running "$name" || fail "$name did not start within $STEP_TIMEOUT s"
}

is_running() {
    case $(phase_of "$1") in
    Running | Succeeded | Failed) return 0 ;;
    *) return 1 ;;
    esac
}

# Waits for load NAME, for at most SECONDS beyond the step's limit, and reads its report.
end_load() {
    local name=load-$1
    within $(($2 + STEP_TIMEOUT)) has_ended "$name" || fail "$name did not end within $(($2 + STEP_TIMEOUT)) s"
    k logs "$name" >"$folder/$name.json"
    load_exit=$(exit_code "$name")
    read_report "$folder/$name.json"
    [[ -n $sent ]] || fail "$name wrote no report (exit code $load_exit): $(tail -n 2 "$folder/$name.json")"
    k delete pod "$name" --wait=false >/dev/null
}

# A number of a report: report FILE FIELD, or report FILE OBJECT FIELD. Only the top level is looked at, where the
# report is indented by two; a line of the log between does no harm.
report() {
    awk -v object="${3:+$2}" -v name="${3:-$2}" '
        object == "" && $0 ~ "^  \"" name "\": " { found = 1 }
        object != "" && $0 ~ "^  \"" object "\": \\{" { inside = 1; next }
        inside && /^  \}/ { inside = 0 }
        inside && $0 ~ "^    \"" name "\": " { found = 1 }
        found { sub(/^ *"[a-z0-9_]*": */, ""); sub(/,? *\r?$/, ""); print; exit }' "$1"
}

read_report() {
    sent=$(report "$1" sent)
    failed=$(report "$1" failed)
    shed=$(report "$1" shed)
    p50=$(report "$1" latency_ms p50)
    p99=$(report "$1" latency_ms p99)
    slowest=$(report "$1" latency_ms max)
    failures_by_kind=$(report_failures "$1")
    valid=$(report "$1" valid)
    lag=$(report "$1" lag_ms p99)
}

# What failed, by kind: "timeout 2, http_502 1".
report_failures() {
    awk '/^  "failures": \{ *$/ { inside = 1; next }
        inside && /^  \}/ { exit }
        inside { gsub(/[",:]/, ""); printf "%s%s %s", sep, $1, $2; sep = ", " }' "$1"
}

# The report in a line of the table.
figure_load() {
    figure "$1: $sent requests, $failed failed${failures_by_kind:+ ($failures_by_kind)}, $shed refused," \
        "p50 $(rounded "$p50") ms, p99 $(rounded "$p99") ms, slowest $(rounded "$slowest") ms"
}

# Seconds of load for something that starts COUNT pods one after the other, from how long one took so far.
load_seconds() {
    local start_s
    start_s=$(cat "$folder/start_s" 2>/dev/null || echo 5)
    echo "${LOAD_SECONDS:-$((25 + $1 * (start_s + 5)))}"
}

# Load at a low rate while COMMAND is carried out: under_load NAME PODS COMMAND…. The command must be over,
# the pods that it took away gone, while there still is load: else nothing was judged.
under_load() {
    local name=$1 length
    length=$(load_seconds "$2")
    shift 2
    settled
    start_load "$name" --schedule "constant:$RATE_LOW" --duration "${length}s"
    # Not the first requests: those of a service that has been at it for a while.
    sleep 5
    "$@"
    within "$STEP_TIMEOUT" none_is_leaving || fail "a pod is still terminating $STEP_TIMEOUT s later"
    [[ $(phase_of "load-$name") == Running ]] ||
        fail "the load of $length s was over before the pods were; run it again with LOAD_SECONDS=$((length * 2))"
    end_load "$name" "$length"
    figure_load "$name"
}

none_is_leaving() {
    local template='{range .items[*]}{.metadata.deletionTimestamp}{end}' leaving
    leaving=$(k get pods --selector app.kubernetes.io/part-of=elastic --output "jsonpath=$template") &&
        [[ -z $leaving ]]
}

# What every request under a disturbance must be: answered.
must_have_answered_all() {
    [[ $failed == 0 && $shed == 0 ]] || fail "$1: $failed of $sent requests failed and $shed were refused; none may be"
}
