#!/usr/bin/env bash
# Stands for minikube, kind, docker, kubectl and elastic when scripts/cluster.sh is tested: writes down how it was
# called, and answers from the files in $FAKE.
set -euo pipefail
me=${0##*/}
echo "$me $*" >>"$FAKE/calls"

holds() {
    [[ -e $FAKE/$1 ]]
}

# The word after a flag.
after() {
    local wanted=$1 word found=
    shift
    for word in "$@"; do
        if [[ $found == next ]]; then
            echo "$word"
            return
        fi
        [[ $word != "$wanted" ]] || found=next
    done
}

minikube() {
    case "$*" in
    *" status "*) if holds running; then echo Running; else exit 7; fi ;;
    *" start "*) touch "$FAKE/running" ;;
    *" image ls"*) cat "$FAKE/images" ;;
    *" image build "*)
        (cd "${*: -1}" && find . -type f | LC_ALL=C sort) >"$FAKE/staged"
        # As the real one, it does not say by its exit code that a build failed.
        holds build-fails || echo "docker.io/library/$(after --tag "$@")" >>"$FAKE/images"
        ;;
    *" image load "*) echo "docker.io/library/${*: -1}" >>"$FAKE/images" ;;
    esac
}

kind() {
    case "$*" in
    "get clusters") cat "$FAKE/clusters" ;;
    "create cluster "*) after --name "$@" >>"$FAKE/clusters" ;;
    esac
}

docker() {
    case "$*" in
    info) ! holds no-engine ;;
    *NCPU*) cat "$FAKE/cpus" ;;
    *MemTotal*) cat "$FAKE/memory" ;;
    "image inspect --format "*) grep -qx "${*: -1}" "$FAKE/docker-images" && cat "$FAKE/image-id" ;;
    "image inspect "*) grep -qx "${*: -1}" "$FAKE/docker-images" ;;
    "build "*)
        holds build-fails && exit 1
        after --tag "$@" >>"$FAKE/docker-images"
        ;;
    esac
}

kubectl() {
    case "$*" in
    "version --client "*) printf '{\n  "clientVersion": {\n    "minor": "%s"\n  }\n}\n' "$(cat "$FAKE/kubectl-minor")" ;;
    "config current-context") cat "$FAKE/current-context" 2>/dev/null ;;
    "config get-contexts "*) cat "$FAKE/contexts" ;;
    "kustomize "*) cat "$FAKE/objects" ;;
    *"get --raw /version") ! holds unreachable ;;
    *" get customresourcedefinition "*) holds crd ;;
    *" apply "*) cat >"$FAKE/applied" ;;
    *" rollout status "*) if holds not-ready; then [[ "$*" != *"deployment/$(cat "$FAKE/not-ready") "* ]]; fi ;;
    *" get namespace elastic "*) cat "$FAKE/namespace" ;;
    *" port-forward "*) forward "${*: -1}" ;;
    esac
}

# Until it is told to end.
forward() {
    local here=${1%%:*} sleeping
    holds no-pods && { echo "error: no pods" >&2 && exit 1; }
    echo "Forwarding from 127.0.0.1:${here:-4$RANDOM} -> ${1##*:}"
    trap 'kill "$sleeping"; echo "forward ended" >>"$FAKE/calls"; exit 0' TERM
    sleep 60 &
    sleeping=$!
    wait "$sleeping"
}

elastic() {
    if holds started; then
        # The test waits at the other end.
        echo "elastic started" >"$FAKE/started"
        exec sleep 60
    fi
    exit "$(cat "$FAKE/verdict")"
}

"$me" "$@"
