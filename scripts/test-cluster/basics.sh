# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# Scenarios: rollout, restricted, classify, after.

readonly MODES=(monitor model dispatch autoscale)

# Containers that were started more than once: "NAME TIMES".
restarted() {
    k get pods --selector app.kubernetes.io/part-of=elastic --output \
        'jsonpath={range .items[*]}{.metadata.name}{"\t"}{.status.containerStatuses[*].restartCount}{"\n"}{end}' |
        awk -F '\t' '$2 > 0 { printf "%s%s (%s times)", sep, $1, $2; sep = ", " }'
}

scenario_rollout() {
    local mode start=$SECONDS again
    for mode in "${MODES[@]}"; do
        rolled_out "$mode"
        say "  $mode is available"
    done
    again=$(restarted)
    [[ -z $again ]] || fail "started again: $again"
    # The least is the autoscaler's doing: the manifest has no number.
    within "$STEP_TIMEOUT" is_settled || fail "the autoscaler has not brought model to $MIN replicas"
    slowest_start >"$folder/start_s"
    figure "all four available in $((SECONDS - start)) s; the slowest pod took $(cat "$folder/start_s") s to be ready"
}

# Seconds from creation to readiness of the slowest pod of model and dispatch, in whole seconds as the API tells them.
slowest_start() {
    local template='{range .items[*]}{.metadata.creationTimestamp}{"|"}'
    template+='{.status.conditions[?(@.type=="Ready")].lastTransitionTime}{"\n"}{end}'
    local created ready most=1 took
    while IFS='|' read -r created ready; do
        [[ -n $created && -n $ready ]] || continue
        took=$((($(unix_ms "$ready") - $(unix_ms "$created")) / 1000))
        ((took <= most)) || most=$took
    done < <(k get pods --selector 'app.kubernetes.io/name in (model, dispatch)' --output "jsonpath=$template")
    echo "$most"
}

scenario_restricted() {
    local level count
    level=$(k get namespace "$NAMESPACE" --output \
        'jsonpath={.metadata.labels.pod-security\.kubernetes\.io/enforce}')
    [[ $level == restricted ]] || fail "the namespace's label says '$level'"
    if grep -i 'warning' "$folder/apply.warnings"; then
        fail "the API server warned about the manifests; the first: $(grep -i -m 1 warning "$folder/apply.warnings")"
    fi
    count=$(grep -c . "$folder/apply.log")
    # The other way round: the check itself must be able to fail.
    if bad_pod | k apply --dry-run=server --filename - >"$folder/bad.log" 2>&1; then
        ((server_minor >= 25)) ||
            skip "$count objects applied without a warning, but Kubernetes 1.$server_minor lets a privileged pod in:" \
                "pod security is on by default from 1.23"
        fail "a privileged pod is admitted: this cluster does not enforce pod security"
    fi
    grep -q 'violates PodSecurity' "$folder/bad.log" ||
        fail "a privileged pod is refused, but not by pod security: $(tail -n 1 "$folder/bad.log")"
    figure "$count objects admitted without a warning, a privileged pod refused"
}

bad_pod() {
    cat <<END
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec:
  containers:
    - name: bad
      image: "$IMAGE"
      securityContext: {privileged: true}
END
}

# Sends a file to /predict through the Service: by way of the API server, or, where that cannot reach pods, of a port
# that is forwarded to a pod behind the Service.
ask() {
    if [[ -n $service_path ]]; then
        http POST "$api" "$service_path/predict" "$@"
        [[ $status == 000 || $status == 50[0-9] ]] && grep -q '"kind": *"Status"' "$reply" || return 0
        say "  the API server does not reach the Service ($status); forwarding a port instead"
        forward service/dispatch 8080 || fail "no port can be forwarded to service/dispatch"
        service_path=
        way="a forwarded port"
    fi
    http POST "$opened" /predict "$@"
}

scenario_classify() {
    local service_path=/api/v1/namespaces/$NAMESPACE/services/dispatch:http/proxy way="the API server's way" api best work_ms
    api_port || fail "kubectl proxy does not start"
    api=$opened
    ask tests/photos/goldfish.jpg image/jpeg
    [[ $status == 200 ]] || fail "a photo is answered $status: $(head -c 300 "$reply")"
    best=$(sed -n 's/.*"predictions":\[{"label":"\([^"]*\)".*/\1/p' "$reply")
    [[ $best == goldfish ]] || fail "the goldfish is called '$best': $(head -c 300 "$reply")"
    work_ms=$(sed -n 's/.*"decode":\([0-9.]*\),"infer":\([0-9.]*\)}.*/\1 \2/p' "$reply" | awk '{ print $1 + $2 }')
    figure "goldfish through the Service ($way), $(rounded "$work_ms") ms of work"
    can_keep_pace "$work_ms"
    printf 'this is no image' >"$folder/text"
    ask "$folder/text" image/jpeg
    must_refuse "what is no image" "400|415|422"
    ask /dev/null image/jpeg
    must_refuse "an empty body" "400|415|422"
    # Through the Service as clients reach it, by its name and address: eight photos, all must be answered.
    start_load few --schedule constant:4 --duration 2s
    end_load few 2
    [[ $sent == 8 && $failed == 0 && $shed == 0 ]] ||
        fail "of $sent photos sent to http://dispatch:8080 from a pod $failed failed and $shed were refused"
    figure "8 of 8 photos answered from a pod at http://dispatch:8080; bad input refused"
}

# Whether the nodes' CPUs are fast enough for the capacity that the judge reckons with.
can_keep_pace() {
    local busy_m
    holds "$1 <= $PACE_MS" ||
        fail "an image takes $1 ms here, more than PACE_MS=$PACE_MS: the CPUs are too slow for it; try PACE_MS=150"
    busy_m=$(awk -v ms="$1" -v rate="$RATE_HIGH" 'BEGIN { print int(ms * rate) }')
    ((busy_m <= CPU_M / 2)) ||
        say "  $RATE_HIGH requests a second take ${busy_m}m of ${CPU_M}m CPU: latencies may be the nodes' doing"
}

# Whether the last answer is a refusal in our words: must_refuse WHAT STATUSES.
must_refuse() {
    [[ $status =~ ^($2)$ ]] || fail "$1 is answered $status instead of 4xx: $(head -c 300 "$reply")"
    grep -q '"error"' "$reply" || fail "$1 is refused without saying why: $(head -c 300 "$reply")"
}

scenario_after() {
    local mode again
    for mode in "${MODES[@]}"; do rolled_out "$mode"; done
    again=$(restarted)
    [[ -z $again ]] || fail "started again: $again"
    settled
    figure "all available, no container was started twice"
}
