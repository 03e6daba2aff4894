# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# Scenarios: kill, rolling, drain.

delete_one() {
    local pod
    pod=$(pods model | sed -n 1p)
    k delete pod "$pod" --wait=false >/dev/null
    replaced
}

# Kubernetes forgets the pod at once; the node ends it without its grace period.
delete_one_by_force() {
    local pod
    pod=$(pods model | sed -n 1p)
    k delete pod "$pod" --grace-period 0 --force >/dev/null 2>&1
    replaced
}

# Until the pod that was taken away has a successor that is ready.
replaced() {
    within "$STEP_TIMEOUT" is_settled || fail "no pod has taken the place of the one that was deleted"
}

scenario_kill() {
    under_load deleted 1 delete_one
    must_have_answered_all "a pod was deleted"
    under_load forced 1 delete_one_by_force
    # At most one request is on the pod, its one slot; the dispatcher tries it again elsewhere.
    must_have_answered_all "a pod was deleted by force, with at most one request on it, which is tried again elsewhere"
}

restart() {
    local start=$SECONDS
    k rollout restart "deployment/$1" >/dev/null
    rolled_out "$1"
    figure "rolling update of $1 in $((SECONDS - start)) s"
}

scenario_rolling() {
    under_load rolling-model "$MIN" restart model
    must_have_answered_all "model was updated"
    under_load rolling-dispatch 1 restart dispatch
    must_have_answered_all "dispatch was updated"
}

scenario_drain() {
    local mode try left_over=("${MODES[@]}") untold
    declare -A gone=() deadlines=() graces=()
    # Some nodes forget a container before they have told how it ended; then its successor is asked.
    for try in 1 2 3; do
        untold=()
        for mode in "${left_over[@]}"; do begin_to_drain "$mode"; done
        for mode in "${left_over[@]}"; do
            ended_well "$mode" || untold+=("$mode")
        done
        let_go
        for mode in "${MODES[@]}"; do rolled_out "$mode"; done
        left_over=("${untold[@]}")
        ((${#left_over[@]})) || return 0
        say "  the node did not tell how ${left_over[*]} ended (try $try of 3)"
    done
    skip "the node never told how ${left_over[*]} ended"
}

# Deletes a pod of a mode. A finalizer keeps it in the cluster's memory until it was read how it ended.
begin_to_drain() {
    local mode=$1 pod deadline grace
    pod=$(pods "$mode" | sed -n 1p)
    k patch pod "$pod" --patch '{"metadata":{"finalizers":["elastic.test/drain"]}}' >/dev/null
    k delete pod "$pod" --wait=false >/dev/null
    gone[$mode]=$pod
    # Now: the node changes both when it has ended the pod.
    IFS='|' read -r deadline grace < <(
        field "pod/$pod" '{.metadata.deletionTimestamp}|{.metadata.deletionGracePeriodSeconds}'
        echo
    )
    deadlines[$mode]=$deadline
    graces[$mode]=$grace
}

# Whether a mode's pod ended by itself and in time; false where that was not told.
ended_well() {
    local mode=$1 pod=${gone[$1]} grace=${graces[$1]} code finished left took
    within "$STEP_TIMEOUT" is_over "$pod" || fail "$pod has not ended $STEP_TIMEOUT s after its deletion"
    within 5 has_exit_code "$pod" || return 1
    code=$(exit_code "$pod")
    finished=$(field "pod/$pod" '{.status.containerStatuses[*].state.terminated.finishedAt}')
    left=$((($(unix_ms "${deadlines[$mode]}") - $(unix_ms "$finished")) / 1000))
    took=$((grace - left))
    [[ $code == 0 ]] || fail "$mode ended with exit code $code after $took s (137 is SIGKILL)"
    ((left >= 0)) || fail "$mode ended $((-left)) s after its grace period of $grace s"
    figure "$mode: exit code 0 after $took of $grace s"
}

# Whether a pod has ended: its exit code is there, or the node has deleted it for good.
is_over() {
    has_exit_code "$1" || [[ $(field "pod/$1" '{.metadata.deletionGracePeriodSeconds}') == 0 ]]
}

has_exit_code() {
    [[ -n $(exit_code "$1") ]]
}

# Takes the finalizers off again; without that the namespace could not be removed.
let_go() {
    local pod
    for pod in $(k get pods --output 'jsonpath={range .items[?(@.metadata.finalizers)]}{.metadata.name}{"\n"}{end}'); do
        k patch pod "$pod" --patch '{"metadata":{"finalizers":null}}' >/dev/null || true
    done
}
