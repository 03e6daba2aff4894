# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# Scenarios: scale, found, adopt, hpa.

# Largest number in a file of follow() with COUNTS, by column.
most() {
    awk -F '|' -v column="$2" '$column + 0 > most { most = $column + 0 } END { print most + 0 }' "$1"
}

readonly COUNTS='{.spec.replicas}|{.status.readyReplicas}{"\n"}'

scenario_scale() {
    local before file=$folder/replicas.scale low=$((CAPACITY * 4 / 10)) down_from reached
    settled
    before=$(events Scaled | wc -l)
    follow "$file" deployments "$COUNTS" --field-selector metadata.name=model
    start_load up --schedule "ramp:$low..$RATE_HIGH" --duration 40s
    end_load up 40
    figure_load "ramp $low to $RATE_HIGH a second"
    [[ $failed == 0 ]] || fail "$failed requests of the ramp failed"
    holds "$shed <= $((sent / 20))" || fail "$shed of $sent requests of the ramp were refused, more than one in twenty"
    start_load steady --schedule "constant:$RATE_HIGH" --duration 20s --slo-p99 500ms --failed-max 1%
    end_load steady 20
    figure_load "then $RATE_HIGH a second"
    reached=$(most "$file" 2)
    down_from=$SECONDS
    [[ $valid == true ]] ||
        fail "the load generator itself lagged, p99 $(rounded "$lag") ms: the nodes are too busy to judge by"
    [[ $load_exit == 0 ]] || fail "the promise (p99 500 ms, 1 % failed or refused) did not hold at an even rate"
    # What the load needs at least, whatever the rule thinks beyond.
    ((reached > MIN && reached > RATE_HIGH / CAPACITY)) ||
        fail "$reached replicas at most, but $RATE_HIGH requests a second need more than $((RATE_HIGH / CAPACITY))"
    ((reached <= MAX)) || fail "$reached replicas, more than --replicas-max $MAX"
    figure "replicas $MIN to $reached (ready $(most "$file" 3))"
    settled
    figure "back to $MIN replicas $((SECONDS - down_from)) s after the load"
    events Scaled >"$folder/events.scale"
    (($(wc -l <"$folder/events.scale") > before)) || fail "no Event 'Scaled' tells of it"
    check_event_texts "$folder/events.scale"
    figure "$(wc -l <"$folder/events.scale") Events, as: $(tail -n 1 "$folder/events.scale" | cut -c 1-100)"
}

# Every note says from, to and a reason.
check_event_texts() {
    local line
    while IFS= read -r line; do
        [[ $line =~ [0-9]+.*[0-9]+ && ${#line} -gt 20 ]] ||
            fail "an Event does not say from, to and why: $line"
    done <"$1"
}

# When the dispatcher takes up a replica, beside when the replica itself and Kubernetes call it ready. The clocks are
# those of nodes; Kubernetes tells whole seconds.
scenario_found() {
    local pod address ready_at used itself late
    settled
    # The autoscaler's own last change is a while ago: this is not about whose number counts.
    sleep 3
    k scale deployment/model --replicas "$((MIN + 1))" >/dev/null
    within "$STEP_TIMEOUT" has_ready "$((MIN + 1))" || fail "one more replica is not ready within $STEP_TIMEOUT s"
    pod=$(pods model | tail -n 1)
    address=$(field "pod/$pod" '{.status.podIP}')
    ready_at=$(field "pod/$pod" '{.status.conditions[?(@.type=="Ready")].lastTransitionTime}')
    within 10 uses "$address" || fail "the dispatcher does not use $pod ($address), which is ready since $ready_at"
    late=$(($(unix_ms "$used") - $(unix_ms "$ready_at")))
    ((late <= 3000)) || fail "the new replica was used $(seconds "$late") s after it was ready"
    itself=$(k logs "$pod" --timestamps | awk '/replica ready/ && !found { print $1; found = 1 }')
    itself=$(($(unix_ms "$used") - $(unix_ms "$itself")))
    # The dispatcher looks at it itself, so that it may be before Kubernetes.
    ((late > 0)) || late=0
    figure "the new replica is used $(seconds "$itself") s after it said itself that it is ready," \
        "$(seconds "$late") s after the second in which Kubernetes did"
}

# Whether the dispatcher's log says that it uses the replica at an address, and since when.
uses() {
    used=$(k logs --selector app.kubernetes.io/name=dispatch --tail=-1 --timestamps | grep 'replica ready' |
        grep -F -e "//$1:" -e "//[$1]:" | tail -n 1 | cut -d ' ' -f 1)
    [[ -n $used ]]
}

has_ready() {
    (($(ready_replicas model) >= $1))
}

scenario_adopt() {
    local wanted=$((MIN + 2)) file=$folder/replicas.adopt set_at left_at
    settled
    ! events Adopted | grep "\b$wanted\b" >/dev/null || fail "there is an Event 'Adopted' about $wanted replicas already"
    follow "$file" deployments "$COUNTS" --field-selector metadata.name=model
    set_at=$(now_ms)
    k scale deployment/model --replicas "$wanted" >/dev/null
    within 15 has_adopted "$wanted" || fail "no Event 'Adopted' tells of $wanted replicas within 15 s"
    settled
    left_at=$(awk -F '|' -v since="$set_at" -v wanted="$wanted" '
        $1 < since { next }
        $2 == wanted { seen = 1 }
        seen && $2 != wanted { print $1; exit }' "$file")
    [[ -n $left_at ]] || fail "the number was never seen to be $wanted"
    # The hold is counted from when it was noticed, so less than that is a fight.
    ((left_at - set_at >= (HOLD_S - 1) * 1000)) ||
        fail "someone's $wanted replicas were changed after $(seconds $((left_at - set_at))) s; the hold is $HOLD_S s"
    figure "$wanted replicas kept for $(seconds $((left_at - set_at))) s (--hold ${HOLD_S}s)," \
        "Event: $(events Adopted | grep "\b$wanted\b" | sed -n 1p | cut -c 1-100)"
}

has_adopted() {
    events Adopted | grep "\b$1\b" >/dev/null
}

scenario_hpa() {
    local log=$folder/autoscale-beside-hpa.log code
    # Its bounds are where the fleet is, so that it moves nothing.
    settled
    k apply --filename - >/dev/null 2>"$folder/hpa.log" <<END || fail "no HPA: $(tail -n 1 "$folder/hpa.log")"
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: model}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: model}
  minReplicas: $MIN
  maxReplicas: $((MIN + 1))
  targetCPUUtilizationPercentage: 80
END
    # A pod that never restarts, with the account and the place in the network of the real ones.
    pod beside-hpa autoscale autoscale autoscale --monitor http://monitor:8090 --target deployment/model \
        --replicas-min "$MIN" --replicas-max "$MAX" | k apply --filename - >/dev/null
    within 60 has_ended beside-hpa || {
        k logs beside-hpa >"$log" 2>&1 || true
        fail "an autoscaler runs beside an HPA on the same Deployment; it said: $(tail -n 1 "$log")"
    }
    code=$(exit_code beside-hpa)
    k logs beside-hpa >"$log" 2>&1 || true
    k delete hpa model --wait=true >/dev/null
    k delete pod beside-hpa --wait=false >/dev/null
    [[ $code == 1 ]] || fail "exit code $code, not 1: $(tail -n 1 "$log")"
    grep -qi 'horizontalpodautoscaler' "$log" || fail "it does not say why: $(tail -n 1 "$log")"
    figure "exit code 1: $(grep -i 'horizontalpodautoscaler' "$log" | sed -n 1p | cut -c 1-160)"
}
