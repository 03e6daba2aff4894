# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# Scenarios: kill, rolling, drain.

delete_one() {
    local pod
    pod=$(pods model | head -n 1)
    k delete pod "$pod" --wait=false >/dev/null
    replaced
}

# Kubernetes forgets the pod at once; the node ends it without its grace period.
delete_one_by_force() {
    local pod
    pod=$(pods model | head -n 1)
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

# The last that is heard of a pod.
ENDING='{.metadata.name}|{.status.containerStatuses[*].state.terminated.exitCode}|{.metadata.deletionTimestamp}|'
ENDING+='{.status.containerStatuses[*].state.terminated.finishedAt}|{.metadata.deletionGracePeriodSeconds}{"\n"}'

scenario_drain() {
    local file=$folder/endings mode pod name code deadline finished grace left took
    declare -A gone=()
    follow "$file" pods "$ENDING" --selector app.kubernetes.io/part-of=elastic
    sleep 2
    for mode in "${MODES[@]}"; do
        pod=$(pods "$mode" | head -n 1)
        gone[$mode]=$pod
        k delete pod "$pod" --wait=false >/dev/null
    done
    for mode in "${MODES[@]}"; do
        within "$STEP_TIMEOUT" is_gone "${gone[$mode]}" || fail "${gone[$mode]} is still there $STEP_TIMEOUT s later"
    done
    sleep 1
    for mode in "${MODES[@]}"; do
        # The watch's first column is its own clock.
        IFS='|' read -r _ name code deadline finished grace < <(
            awk -F '|' -v pod="${gone[$mode]}" '$2 == pod && $3 != "" { last = $0 } END { print last }' "$file"
        )
        [[ -n ${name:-} && -n $finished ]] || {
            figure "$mode: the cluster never told how its container ended"
            continue
        }
        # The deletion's time is when the grace period is over.
        left=$((($(unix_ms "$deadline") - $(unix_ms "$finished")) / 1000))
        took=$((grace - left))
        [[ $code == 0 ]] || fail "$mode ended with exit code $code after $took s (137 is SIGKILL)"
        ((left >= 0)) || fail "$mode ended $((-left)) s after its grace period of $grace s"
        figure "$mode: exit code 0 after $took of $grace s"
    done
    grep -q 'exit code 0' "$folder/notes.drain" 2>/dev/null || skip "no container's end was told"
    for mode in "${MODES[@]}"; do rolled_out "$mode"; done
}

is_gone() {
    [[ -z $(k get pod "$1" --ignore-not-found --output name 2>/dev/null) ]]
}
