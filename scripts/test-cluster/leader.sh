# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# Scenario: leader. Two autoscalers share a Lease; the one that holds it goes, is killed, and is robbed of it.

readonly LEASE='{.spec.holderIdentity}|{.spec.leaseTransitions}{"\n"}'

holder() {
    field lease/autoscale '{.spec.holderIdentity}'
}

# Whether one of the autoscalers that run holds the Lease, and not the one named.
has_other_holder() {
    local now
    now=$(holder)
    [[ -n $now && $now != "$1" ]] && pods autoscale | grep -x "$now" >/dev/null
}

# Waits for another holder than $1; how long it took since $2, milliseconds, is in $took.
handed_over() {
    within 60 has_other_holder "$1" || fail "nobody has taken the Lease from $1 within 60 s"
    # When the Lease changed hands as it was seen, not when this loop looked.
    took=$(awk -F '|' -v old="$1" -v since="$2" '
        $2 == old { seen = 1 }
        seen && $1 >= since && $2 != "" && $2 != old { print $1 - since; exit }' "$leases")
    took=${took:-$(($(now_ms) - $2))}
}

two_autoscalers() {
    k scale deployment/autoscale --replicas 2 >/dev/null
    rolled_out autoscale
    within 30 two_are_ready || fail "there are not two autoscalers"
    within 30 has_other_holder nobody || fail "none of the autoscalers holds the Lease 'autoscale'"
}

two_are_ready() {
    [[ $(pods autoscale | wc -l) == 2 && $(ready_replicas autoscale) == 2 ]]
}

scenario_leader() {
    local leases=$folder/leases at old took autoscalers lease_s
    autoscalers=$(field deployment/autoscale '{.spec.replicas}')
    two_autoscalers
    lease_s=$(field lease/autoscale '{.spec.leaseDurationSeconds}')
    follow "$leases" leases "$LEASE" --field-selector metadata.name=autoscale

    old=$(holder)
    at=$(now_ms)
    k delete pod "$old" --wait=false >/dev/null
    handed_over "$old" "$at"
    ((took < lease_s * 1000)) || fail "a leader that goes was followed after $(seconds "$took") s only"
    figure "the leader's pod deleted: another holds the Lease after $(seconds "$took") s"
    within "$STEP_TIMEOUT" two_are_ready || fail "there are not two autoscalers again"

    old=$(holder)
    at=$(now_ms)
    k delete pod "$old" --grace-period 0 --force >/dev/null 2>&1
    handed_over "$old" "$at"
    ((took <= 15000)) || fail "a leader deleted by force was followed after $(seconds "$took") s; 15 s are allowed"
    figure "the leader's pod deleted by force: another after $(seconds "$took") s"
    within "$STEP_TIMEOUT" two_are_ready || fail "there are not two autoscalers again"

    dead_holder
    one_at_a_time
    k scale deployment/autoscale --replicas "${autoscalers:-1}" >/dev/null
    rolled_out autoscale
}

# Writes a holder into the Lease that never renews it: what is left of a node that lost its power. Meanwhile the load
# rises, and nobody may act on it before the Lease has run out; then somebody must.
dead_holder() {
    local file=$folder/replicas.leader at patch transitions grown early low=$((CAPACITY * 4 / 10))
    settled
    follow "$file" deployments "$COUNTS" --field-selector metadata.name=model
    start_load step --schedule "step:$low,$RATE_HIGH" --duration 60s
    # The rate steps up after 30 s.
    sleep 25
    transitions=$(field lease/autoscale '{.spec.leaseTransitions}')
    patch='{"spec":{"holderIdentity":"nobody-any-more","leaseDurationSeconds":%s,"leaseTransitions":%s,'
    patch+='"acquireTime":"%s","renewTime":"%s"}}'
    at=$(now_ms)
    local now
    now=$(date --utc +%Y-%m-%dT%H:%M:%S.%6NZ)
    # shellcheck disable=SC2059 # the format is above
    k patch lease autoscale --type merge --patch \
        "$(printf "$patch" "$lease_s" "$((${transitions:-0} + 1))" "$now" "$now")" >/dev/null
    handed_over nobody-any-more "$at"
    end_load step 60
    figure_load "a dead leader while the rate steps from $low to $RATE_HIGH a second"
    grown=$(awk -F '|' -v since="$at" -v least="$MIN" '
        $1 > since && $2 > least { print $1 - since; exit }' "$file")
    [[ -n $grown ]] || fail "nobody scaled after the leader had died"
    # Until it has tried to renew, the old leader cannot know that it is none any more.
    early=$(awk -F '|' -v from="$((at + 4000))" -v to="$((at + took))" -v least="$MIN" '
        $1 > from && $1 < to && $2 > least { print $1 - from; exit }' "$file")
    [[ -z $early ]] || fail "the fleet was changed while nobody had the Lease"
    ((took >= (lease_s - 1) * 1000)) ||
        fail "the Lease was taken after $(seconds "$took") s; it was good for $lease_s s"
    ((took <= 15000)) || fail "a dead leader was followed after $(seconds "$took") s; 15 s are allowed"
    ((grown <= 20000)) || fail "the fleet grew only $(seconds "$grown") s after the leader had died"
    figure "a dead leader: another holds the Lease after $(seconds "$took") s," \
        "the fleet grows after $(seconds "$grown") s"
    settled
}

# The whole history of the Lease, by the clock here: whoever takes it from somebody waits until it has run out, or until
# it was given up.
one_at_a_time() {
    local at who transitions before='' before_at=0 before_transitions=0 expired=0 waited
    while IFS='|' read -r at who transitions; do
        transitions=${transitions:-0}
        if [[ -n $before && -n $who && $who != "$before" && $who != nobody-any-more ]]; then
            expired=$((expired + 1))
            waited=$((at - before_at))
            ((transitions > before_transitions)) ||
                fail "$who holds the Lease after $before, but it counts no change of hands"
            ((waited >= (lease_s - 1) * 1000)) ||
                fail "$who took the Lease $(seconds "$waited") s after $before renewed it; it is good for $lease_s s"
        fi
        before=$who
        before_at=$at
        before_transitions=$transitions
    done <"$leases"
    figure "never two: $(cut -d '|' -f 2 "$leases" | uniq | grep -c .) holders in a row," \
        "$expired of them after the Lease had run out"
}
