#!/usr/bin/env bash
# Deploys elastic to minikube, or removes it again: scripts/minikube.sh up|down
#
# Settings: CPUS (12) and MEMORY (14g) of a cluster that is started here, MINIKUBE_PROFILE (minikube),
# ROLLOUT_TIMEOUT (300s).
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${MINIKUBE_PROFILE:-minikube}
image=elastic:dev
staging=

fail() {
    echo "minikube.sh: $*" >&2
    exit 1
}

need() {
    command -v "$1" >/dev/null || fail "$1 is not installed; $2"
}

# Always this cluster, whatever kubectl's current context is.
cluster() {
    kubectl --context "$profile" "$@"
}

running() {
    [[ $(minikube --profile "$profile" status --format '{{.APIServer}}' 2>/dev/null || true) == Running ]]
}

# minikube sends the whole folder to the node, so it gets one with only what the Dockerfile needs. It exits with
# 0 also when the build failed: only a tag of this very build shows that it did not.
build_image() {
    local built images
    built="$image-$(date +%s)"
    staging=$(mktemp -d)
    trap 'rm -rf "$staging"' EXIT
    cp -R Dockerfile .dockerignore Cargo.toml Cargo.lock LICENSE src weights "$staging"
    minikube --profile "$profile" image build --build-env DOCKER_BUILDKIT=1 --tag "$built" "$staging"
    images=$(minikube --profile "$profile" image ls)
    [[ $images == *"/$built"* ]] || fail "the image was not built; see above"
    minikube --profile "$profile" image tag "$built" "$image"
    minikube --profile "$profile" image rm "$built"
}

# The tag is always the same: pods that run an older image under it must be started again to get the new one.
deploy() {
    local before=$1 mode
    cluster apply --kustomize deploy/base
    for mode in monitor model dispatch autoscale; do
        if grep -q "deployment.apps/$mode\$" <<<"$before"; then
            cluster --namespace elastic rollout restart "deployment/$mode"
        fi
    done
    for mode in monitor model dispatch autoscale; do
        cluster --namespace elastic rollout status "deployment/$mode" --timeout "${ROLLOUT_TIMEOUT:-300s}" ||
            fail "$mode is not ready; see: kubectl --context $profile --namespace elastic describe pods"
    done
}

up() {
    need docker "minikube needs it, see https://docs.docker.com/engine/install"
    docker info >/dev/null 2>&1 || fail "no Docker engine answers; start it, or may you not use it (group docker)?"
    need minikube "see https://minikube.sigs.k8s.io/docs/start"
    need kubectl "see https://kubernetes.io/docs/tasks/tools"
    running || minikube --profile "$profile" start --driver docker --cpus "${CPUS:-12}" --memory "${MEMORY:-14g}"
    build_image
    deploy "$(cluster --namespace elastic get deployments --output name 2>/dev/null || true)"
    cat <<END

elastic runs. From here:
  kubectl --context $profile --namespace elastic port-forward service/dispatch 8080
  kubectl --context $profile --namespace elastic port-forward service/monitor 8090
then classify with POST http://127.0.0.1:8080/predict and look at http://127.0.0.1:8090/ .
END
}

down() {
    need minikube "there is nothing to remove without it"
    need kubectl "see https://kubernetes.io/docs/tasks/tools"
    running || fail "cluster $profile is not running; there is nothing to remove"
    cluster delete --kustomize deploy/base --ignore-not-found
    echo "removed; 'minikube --profile $profile stop' stops the cluster itself"
}

case "${1:-}" in
up) up ;;
down) down ;;
*) fail "say up or down" ;;
esac
