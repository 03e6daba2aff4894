#!/usr/bin/env bash
# Judges elastic on a real cluster; see --help. The scenarios are in scripts/test-cluster/.
# shellcheck disable=SC2034,SC2153,SC2154 # the parts share their variables with this file
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    cat <<'END'
Deploys elastic into a namespace of its own on the cluster that kubectl points at, plays every scenario,
prints a table and removes everything again.

    IMAGE=registry.example.com/elastic:v1 scripts/test-cluster.sh [--only a,b] [--list] [--help]

  --only a,b   play these scenarios alone, and the rollout
  --list       print the scenarios, one a line, and stop
  --help       print this and stop

It needs kubectl 1.27 or newer, bash 5 and GNU coreutils here, and nothing but the image in the cluster: no Docker,
no internet. Settings are environment variables:

  IMAGE              the image to judge [elastic:dev]; the nodes must have it or be able to pull it
  IMAGE_PULL_POLICY  IfNotPresent or Never [IfNotPresent]
  CONTEXT            the context of the kubeconfig to use [the current one]
  NAMESPACE          the namespace to make and to remove; it must not exist [elastic-test-RANDOM]
  TIMEOUT            seconds that everything may take together [1200]
  STEP_TIMEOUT       seconds that a single step, such as a rollout, may take [180]
  PACE_MS            milliseconds that a replica takes for an image [100]; makes its capacity known whatever the CPU
  LOAD_SECONDS       seconds of load while something is taken away or restarted [from how long a pod takes to start]
  ARTIFACTS          folder for reports, and for logs and descriptions of what failed [target/test-cluster]
  KEEP               1 leaves the namespace and says how to remove it [0]

Exit code: 0 every scenario passed (or was skipped, because the cluster lacks what it is about; the table says so),
1 one failed, 2 wrong usage.
END
}

# In the order in which they are played.
SCENARIOS=(restricted rollout classify rights scale found adopt kill rolling leader hpa drain after)
declare -A ABOUT=(
    [rollout]="every Deployment becomes available and no container starts twice"
    [restricted]="the namespace's pod security 'restricted' admits everything without a warning, and refuses a bad pod"
    [classify]="a photo gets its label through the Service, bad input a 4xx that says why"
    [rights]="the autoscaler's ServiceAccount may scale 'model' and nothing else"
    [scale]="up under load, down after it, and Events that say from, to and why"
    [found]="the dispatcher uses a new replica as soon as it is ready"
    [adopt]="someone else's 'kubectl scale' is taken as the new state"
    [kill]="a model pod deleted, then one deleted by force, under load: no request fails"
    [rolling]="rolling update of model and of dispatch under load: no request fails"
    [leader]="the autoscaler's leader goes or dies: another takes over, never two"
    [hpa]="an autoscaler refuses to start beside a HorizontalPodAutoscaler"
    [drain]="each mode's pod ends with exit code 0 within its grace period"
    [after]="everything is available again, and no container was started twice"
)

bad_usage() {
    echo "test-cluster.sh: $*; see scripts/test-cluster.sh --help" >&2
    exit 2
}

for part in lib setup load basics rights scaling disturb leader; do
    # shellcheck source=/dev/null
    source "scripts/test-cluster/$part.sh"
done

only=()
parse_arguments() {
    local name
    while (($#)); do
        case $1 in
        --help | -h)
            usage
            exit 0
            ;;
        --list)
            for name in "${SCENARIOS[@]}"; do printf '%-11s %s\n' "$name" "${ABOUT[$name]}"; done
            exit 0
            ;;
        --only)
            (($# >= 2)) || bad_usage "--only needs names, as in --only kill,rolling"
            IFS=, read -ra only <<<"$2"
            shift
            ;;
        --only=*) IFS=, read -ra only <<<"${1#--only=}" ;;
        *) bad_usage "unknown argument '$1'" ;;
        esac
        shift
    done
    for name in "${only[@]}"; do
        [[ -n ${ABOUT[$name]:-} ]] || bad_usage "there is no scenario '$name' (--list has them)"
    done
}

# Whether a scenario is to be played.
wanted() {
    local name
    ((${#only[@]})) || return 0
    [[ $1 != rollout ]] || return 0
    for name in "${only[@]}"; do [[ $name != "$1" ]] || return 0; done
    return 1
}

declare -A RESULT SPENT
failures=0
skipped=0
current=
playing=

# Plays one scenario in a shell of its own, where any failing command ends it. In the background, so that this shell
# hears at once when the time is over.
play() {
    local start=$SECONDS code=0
    current=$1
    say "$current: ${ABOUT[$current]}"
    (
        scenario=$current
        trap stop_background EXIT
        "scenario_$current"
    ) &
    playing=$!
    wait "$playing" || code=$?
    playing=
    SPENT[$current]=$((SECONDS - start))
    case $code in
    0) RESULT[$current]=passed ;;
    "$SKIPPED")
        RESULT[$current]=skipped
        skipped=$((skipped + 1))
        ;;
    *)
        RESULT[$current]=FAILED
        failures=$((failures + 1))
        grep -qs FAILED "$folder/notes.$current" ||
            note "$current" "FAILED: a command ended with exit code $code, see above and $folder"
        gather "$current"
        ;;
    esac
    say "$current: ${RESULT[$current]} in ${SPENT[$current]} s"
}

# What the watchdog's signal leads to.
out_of_time() {
    say "out of time: TIMEOUT is $TIMEOUT s"
    [[ -z $playing ]] || kill "$playing" 2>/dev/null || true
    if [[ -n $current ]]; then
        note "$current" "FAILED: out of time, TIMEOUT is $TIMEOUT s"
        RESULT[$current]=FAILED
        gather "$current"
    fi
    finished=1
    table
    exit 1
}

table() {
    local name text first
    printf '\n%-11s %-8s %7s  %s\n' scenario result seconds figures
    for name in "${SCENARIOS[@]}"; do
        [[ -n ${RESULT[$name]:-} ]] || continue
        first=1
        while IFS= read -r text || [[ $first == 1 ]]; do
            if [[ $first == 1 ]]; then
                printf '%-11s %-8s %7s  %s\n' "$name" "${RESULT[$name]}" "${SPENT[$name]:--}" "$text"
            else
                printf '%-28s  %s\n' '' "$text"
            fi
            first=0
        done < <(cat "$folder/notes.$name" 2>/dev/null)
    done
    echo
}

main() {
    parse_arguments "$@"
    check_settings
    prepare
    local name
    for name in "${SCENARIOS[@]}"; do
        wanted "$name" || continue
        if [[ ${RESULT[rollout]:-} == FAILED ]]; then
            RESULT[$name]="not run"
        else
            play "$name"
        fi
    done
    finished=1
    table
    if ((failures)); then
        echo "$failures failed; reports, logs and descriptions are in $folder"
        exit 1
    fi
    if ((skipped)); then
        echo "every scenario that this cluster can play passed; $skipped skipped, see the table"
    else
        echo "every scenario passed"
    fi
}

# A test reads the functions without playing anything.
if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    main "$@"
fi
