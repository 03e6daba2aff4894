#!/usr/bin/env bash
# Runs elastic on a Kubernetes cluster: scripts/cluster.sh up|load|down
#   up    starts the cluster if need be, brings the image there, deploys and waits until everything is ready
#   load  replays workload.txt through port-forwards and judges the promise; the verdict is the exit code
#   down  removes elastic; the cluster stays
#
# Settings: CLUSTER   minikube (default); kind; or current, whatever cluster kubectl's current context is
#           IMAGE     with current: an image that the cluster can pull. Else one that Docker here has already; without
#                     it the image is built from this checkout, unless the cluster has the one of these very sources
#           OVERLAY   folder in deploy/overlays: minikube (default) or production
#           CPUS (12), MEMORY (14g), DRIVER (docker)  of a minikube that is started here
#           MINIKUBE_PROFILE (minikube), KIND_CLUSTER (elastic)  which cluster
#           ROLLOUT_TIMEOUT (300s)  how long each Deployment may take to be ready
# and for load: SPEED     replay faster by this factor (1)
#           WORKLOAD  file of requests per second (workload.txt)
#           DISPATCH_PORT, MONITOR_PORT, AUTOSCALE_PORT  local ports (free ones)
#           LAG_MAX   how late the load generator may be itself (50ms): it may share the machine with the cluster
#           REPORT    where the report goes as a page (target/cluster-report.html); the JSON is beside it
#           ELASTIC   path of the executable (target/release/elastic)
set -euo pipefail
cd "$(dirname "$0")/.."

kind_of_cluster=${CLUSTER:-minikube}
overlay=${OVERLAY:-minikube}
profile=${MINIKUBE_PROFILE:-minikube}
kind_cluster=${KIND_CLUSTER:-elastic}
driver=${DRIVER:-docker}
modes=(monitor dispatch model autoscale)
context=
image=
scratch=
children=()

say() {
    echo "cluster.sh: $*" >&2
}

fail() {
    say "$*"
    exit 1
}

# shellcheck disable=SC2317,SC2329 # the trap below calls it
cleanup() {
    local status=$? pid
    trap - EXIT INT TERM
    for pid in ${children[@]+"${children[@]}"}; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    [[ -z $scratch ]] || rm -rf "$scratch"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Always this cluster, whatever kubectl's current context is or becomes.
cluster() {
    kubectl --context "$context" "$@"
}

# Whether a text has this line. (A pipe to `grep -q` fails when grep is done before the other side is.)
has_line() {
    [[ $'\n'$2$'\n' == *$'\n'"$1"$'\n'* ]]
}

# --- What has to be installed -------------------------------------------------------------------------------------

# Says all that is missing at once. Arguments: the tools that are needed.
check_tools() {
    local tool minor missing=()
    for tool in "$@"; do
        if command -v "$tool" >/dev/null; then continue; fi
        case $tool in
        kubectl) missing+=("kubectl is not installed, see https://kubernetes.io/docs/tasks/tools") ;;
        minikube) missing+=("minikube is not installed, see https://minikube.sigs.k8s.io/docs/start") ;;
        kind) missing+=("kind is not installed, see https://kind.sigs.k8s.io/docs/user/quick-start") ;;
        docker) missing+=("docker is not installed, see https://docs.docker.com/engine/install") ;;
        *) missing+=("$tool is not there; run 'make build' first") ;;
        esac
    done
    if command -v kubectl >/dev/null; then
        minor=$(kubectl version --client --output json 2>/dev/null | sed -n 's/.*"minor": *"\([0-9]*\).*/\1/p' |
            head -n 1 || true)
        if ((${minor:-27} < 27)); then
            missing+=("kubectl is version 1.$minor, too old for these manifests: 1.27 or newer is needed")
        fi
    fi
    if [[ " $* " == *" docker "* ]] && command -v docker >/dev/null && ! docker info >/dev/null 2>&1; then
        missing+=("no Docker engine answers: start it, or may you not use it (group docker)?")
    fi
    if ((${#missing[@]} > 0)); then
        for tool in "${missing[@]}"; do say "$tool"; done
        exit 1
    fi
}

# The tools that the kind of cluster needs; with `image` also those that bring an image there.
tools() {
    case $kind_of_cluster in
    minikube) if [[ $driver == docker ]]; then echo minikube kubectl docker; else echo minikube kubectl; fi ;;
    kind) echo kind kubectl docker ;;
    current) echo kubectl ;;
    *) fail "CLUSTER=$kind_of_cluster is unknown: minikube, kind or current" ;;
    esac
}

# --- The cluster --------------------------------------------------------------------------------------------------

running() {
    case $kind_of_cluster in
    minikube) [[ $(minikube --profile "$profile" status --format '{{.APIServer}}' 2>/dev/null || true) == Running ]] ;;
    kind) has_line "$kind_cluster" "$(kind get clusters 2>/dev/null || true)" ;;
    current) return 0 ;;
    esac
}

# Which context is meant; said once, and used for every call.
find_context() {
    case $kind_of_cluster in
    minikube) context=$profile ;;
    kind) context=kind-$kind_cluster ;;
    current)
        context=$(kubectl config current-context 2>/dev/null) ||
            fail "kubectl has no current context; set KUBECONFIG, or choose one with 'kubectl config use-context'"
        ;;
    esac
    if ! has_line "$context" "$(kubectl config get-contexts --output name)"; then
        case $kind_of_cluster in
        minikube) minikube --profile "$profile" update-context ;;
        kind) kind export kubeconfig --name "$kind_cluster" ;;
        esac
    fi
    cluster --request-timeout 20s get --raw /version >/dev/null ||
        fail "the cluster of context $context does not answer; see above"
    say "cluster: $kind_of_cluster, context $context"
}

# 14g or 2048m as mebibytes.
mebibytes() {
    case $1 in
    *[gG] | *[gG][bB] | *Gi) echo $((${1%%[gG]*} * 1024)) ;;
    *[mM] | *[mM][bB] | *Mi) echo "${1%%[mM]*}" ;;
    *) echo "$1" ;;
    esac
}

# Asks for what the machine has where nothing else was said, and says so where it has less than what was said.
start_minikube() {
    local cpus=${CPUS:-12} memory cpus_here memory_here
    [[ $cpus =~ ^[0-9]+$ ]] || fail "CPUS=$cpus is no number of CPUs"
    [[ ${MEMORY:-14g} =~ ^[0-9]+([gGmM][bB]?|[GM]i)?$ ]] || fail "MEMORY=$MEMORY is no size: write 14g or 8192m"
    memory=$(mebibytes "${MEMORY:-14g}")
    if [[ $driver == docker ]]; then
        # What Docker has, which is less than the machine where Docker runs in a virtual one.
        cpus_here=$(docker info --format '{{.NCPU}}')
        memory_here=$(($(docker info --format '{{.MemTotal}}') / 1048576))
    else
        cpus_here=$(getconf _NPROCESSORS_ONLN)
        memory_here=$memory
    fi
    if ((cpus_here < cpus)); then
        [[ -z ${CPUS:-} ]] || fail "CPUS=$cpus is more than the $cpus_here of this machine; ask for fewer"
        say "this machine has $cpus_here CPUs, fewer than the $cpus that all ten replicas can use; taking those"
        cpus=$cpus_here
    fi
    if ((memory_here < memory)); then
        [[ -z ${MEMORY:-} ]] || fail "MEMORY=$MEMORY is more than the ${memory_here}m of this machine; ask for less"
        # Some is left to what else runs here.
        memory=$((memory_here * 8 / 10))
        say "this machine has ${memory_here}m of memory, less than 14g; taking ${memory}m"
    fi
    minikube --profile "$profile" start --driver "$driver" --cpus "$cpus" --memory "${memory}m"
}

start() {
    if running; then return; fi
    case $kind_of_cluster in
    minikube) start_minikube ;;
    kind) kind create cluster --name "$kind_cluster" ;;
    esac
}

# --- The image ----------------------------------------------------------------------------------------------------

# What the Dockerfile may copy, as .dockerignore lists it, in a folder of its own: minikube sends the whole folder to
# the node, and its tag is a hash of exactly this.
stage() {
    local path
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/elastic-cluster.XXXXXX")
    cp Dockerfile .dockerignore "$scratch"
    if [[ ! -f weights/mobilenet_v2.safetensors ]]; then
        say "no weights/mobilenet_v2.safetensors: EfficientNet-Lite0 will run; 'make weights' gets MobileNetV2's"
    fi
    while read -r path; do
        # Not there, as weights that nobody fetched: the Dockerfile knows what it can do without.
        if [[ -e $path ]]; then
            mkdir -p "$scratch/$(dirname "$path")"
            cp -R "$path" "$scratch/$(dirname "$path")"
        fi
    done < <(sed -n 's/^!//p' .dockerignore)
}

sha256() {
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi
}

# Twelve digits that stand for the files' names and contents.
hash_of_sources() {
    (
        cd "$scratch"
        find . -type f -print | LC_ALL=C sort | while read -r file; do
            echo "$file"
            cat "$file"
        done
    ) | sha256 | cut -c 1-12
}

# The tag says what is in the image: pods start anew when that changed, and only then.
on_minikube() {
    local images
    # Without the registry that it would have been from: docker.io/library, or localhost.
    images=$(minikube --profile "$profile" image ls | sed 's|.*/||')
    has_line "$1" "$images"
}

build_image() {
    stage
    image=elastic:$(hash_of_sources)
    case $kind_of_cluster in
    minikube)
        if on_minikube "$image"; then
            say "$image is there already"
            return
        fi
        # It exits with 0 also when the build failed.
        minikube --profile "$profile" image build --build-env DOCKER_BUILDKIT=1 --tag "$image" "$scratch"
        on_minikube "$image" || fail "the image was not built; see above"
        ;;
    kind)
        if docker image inspect "$image" >/dev/null 2>&1; then
            say "$image was built already"
        else
            DOCKER_BUILDKIT=1 docker build --tag "$image" "$scratch" || fail "the image was not built; see above"
        fi
        kind load docker-image "$image" --name "$kind_cluster"
        ;;
    esac
}

# An image that Docker here has. Its tag may have been another image's before, so it gets one of its own.
load_image() {
    local id
    id=$(docker image inspect --format '{{.Id}}' "$IMAGE" 2>/dev/null) ||
        fail "Docker here has no image $IMAGE; build it with 'make image', or leave IMAGE out"
    id=${id#sha256:}
    image=elastic:${id:0:12}
    docker tag "$IMAGE" "$image"
    case $kind_of_cluster in
    minikube)
        minikube --profile "$profile" image load "$image"
        on_minikube "$image" || fail "$IMAGE was not loaded; see above"
        ;;
    kind) kind load docker-image "$image" --name "$kind_cluster" ;;
    esac
}

# --- The objects --------------------------------------------------------------------------------------------------

# The overlay with the image in it; one that the cluster pulls is not `Never` pulled. Without the objects of Prometheus'
# operator where it is not installed.
render() {
    local policy=Never objects drop=-
    if [[ $kind_of_cluster == current ]]; then policy=IfNotPresent; fi
    objects=$(kubectl kustomize "deploy/overlays/$overlay")
    if [[ $objects == *"kind: ServiceMonitor"* ]] &&
        ! cluster get customresourcedefinition servicemonitors.monitoring.coreos.com >/dev/null 2>&1; then
        say "no Prometheus operator here: leaving its ServiceMonitor out"
        drop=ServiceMonitor
    fi
    sed -e "s|^\( *\(- \)\{0,1\}image:\) .*|\1 $image|" -e "s|\(imagePullPolicy:\) .*|\1 $policy|" <<<"$objects" |
        awk -v drop="$drop" '
            function flush() { if (object != "" && !dropped) printf "%s---\n", object; object = ""; dropped = 0 }
            /^---$/ { flush(); next }
            $0 == "kind: " drop { dropped = 1 }
            { object = object $0 "\n" }
            END { flush() }'
}

deploy() {
    local mode objects
    objects=$(render)
    cluster apply --filename - <<<"$objects"
    for mode in "${modes[@]}"; do
        if ! cluster --namespace elastic rollout status "deployment/$mode" --timeout "${ROLLOUT_TIMEOUT:-300s}"; then
            cluster --namespace elastic get pods >&2 || true
            say "$mode is not ready. What keeps it is in:"
            say "  kubectl --context $context --namespace elastic describe pods --selector app.kubernetes.io/name=$mode"
            say "  kubectl --context $context --namespace elastic logs deployment/$mode"
            exit 1
        fi
    done
}

up() {
    local tools same=
    tools=$(tools)
    # shellcheck disable=SC2086 # a list of words
    check_tools $tools
    [[ -d deploy/overlays/$overlay ]] || fail "OVERLAY=$overlay is unknown: minikube or production"
    if [[ $kind_of_cluster == current ]]; then
        [[ -n ${IMAGE:-} ]] || fail "CLUSTER=current needs IMAGE=..., an image that the cluster can pull (make image)"
    fi
    [[ ${IMAGE:-} =~ ^[A-Za-z0-9./:@_-]*$ ]] || fail "IMAGE=$IMAGE is no name of an image"
    start
    find_context
    if [[ $kind_of_cluster == current ]]; then
        image=$IMAGE
    elif [[ -n ${IMAGE:-} ]]; then
        load_image
    else
        build_image
    fi
    deploy
    [[ $kind_of_cluster == minikube ]] || same=" CLUSTER=$kind_of_cluster"
    cat <<END

elastic runs. Its front door and the live page, from here:
  kubectl --context $context --namespace elastic port-forward service/dispatch 8080
  kubectl --context $context --namespace elastic port-forward service/monitor 8090
then, in another terminal:
  curl --data-binary @tests/photos/goldfish.jpg http://127.0.0.1:8080/predict
and http://127.0.0.1:8090/ in a browser. 'make minikube-load$same' replays the workload, 'make minikube-down$same'
removes it all.
END
}

# --- Load ---------------------------------------------------------------------------------------------------------

# Opens a port of a Service and sets `forwarded` to its URL here. kubectl chooses a free port and says which.
forward() {
    local service=$1 port=$2 here=$3 log=$scratch/$1.log tries line pid
    # Before kubectl writes to it, it is read already.
    : >"$log"
    # Not through `cluster`: the shell in between would be killed in kubectl's place.
    kubectl --context "$context" --namespace elastic port-forward --address 127.0.0.1 "service/$service" \
        "$here:$port" >"$log" 2>&1 &
    pid=$!
    children+=("$pid")
    for ((tries = 0; tries < 300; tries++)); do
        line=$(sed -n 's/^Forwarding from 127\.0\.0\.1:\([0-9]*\) .*/\1/p' "$log" | head -n 1)
        if [[ -n $line ]]; then
            forwarded=http://127.0.0.1:$line
            return
        fi
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
    done
    cat "$log" >&2
    fail "cannot reach $service in the cluster; was 'make minikube-up' run?"
}

# Bounded: the workload has an end, and every request a time-out.
load() {
    local elastic=${ELASTIC:-target/release/elastic} report=${REPORT:-target/cluster-report.html}
    local workload=${WORKLOAD:-workload.txt} forwarded dispatch monitor autoscale verdict=0 tools pid
    tools=$(tools)
    # shellcheck disable=SC2086 # a list of words
    check_tools $tools "$elastic"
    [[ -f $workload ]] || fail "$workload is not there; name a file of requests per second in WORKLOAD"
    running || fail "the cluster is not running; 'make minikube-up' starts it"
    find_context
    scratch=$(mktemp -d "${TMPDIR:-/tmp}/elastic-cluster.XXXXXX")
    forward dispatch 8080 "${DISPATCH_PORT:-}"
    dispatch=$forwarded
    forward monitor 8090 "${MONITOR_PORT:-}"
    monitor=$forwarded
    forward autoscale 8083 "${AUTOSCALE_PORT:-}"
    autoscale=$forwarded
    echo "live page, as long as the load lasts: $monitor/"
    mkdir -p "$(dirname "$report")"
    rm -f "$report"
    # In the background, so that a signal ends it at once and not after the whole workload.
    "$elastic" load --workload "$workload" --speed "${SPEED:-1}" --slo-p99 500ms --lag-max "${LAG_MAX:-50ms}" \
        --target "$dispatch" --monitor "$monitor" --autoscaler "$autoscale" \
        --html "$report" --json "${report%.html}.json" &
    pid=$!
    children+=("$pid")
    wait "$pid" || verdict=$?
    if [[ -f $report ]]; then echo "report: $report, and as JSON ${report%.html}.json"; fi
    case $verdict in
    0) echo "the promise held" ;;
    *) echo "the promise was not shown to hold (exit code $verdict); see the report above" ;;
    esac
    return "$verdict"
}

# --- Removal ------------------------------------------------------------------------------------------------------

# All that is ours is in the namespace: also what the autoscaler made there.
down() {
    local part tools
    tools=$(tools)
    # What builds and starts is not needed to remove.
    # shellcheck disable=SC2086 # a list of words
    check_tools ${tools% docker}
    if ! running; then
        echo "the cluster is not running: there is nothing to remove"
        return
    fi
    find_context
    part=$(cluster get namespace elastic --ignore-not-found \
        --output 'jsonpath={.metadata.labels.app\.kubernetes\.io/part-of}{"."}')
    case $part in
    '') echo "there is no namespace elastic: nothing to remove" ;;
    elastic.)
        cluster delete namespace elastic --timeout 120s
        case $kind_of_cluster in
        minikube) echo "removed; 'minikube --profile $profile stop' stops the cluster, 'delete' deletes it" ;;
        kind) echo "removed; 'kind delete cluster --name $kind_cluster' deletes the cluster" ;;
        current) echo "removed" ;;
        esac
        ;;
    *) fail "the namespace elastic of context $context was not made here (no label part-of): left alone" ;;
    esac
}

case "${1:-}" in
up) up ;;
load) load ;;
down) down ;;
*) fail "say up, load or down; the settings are at the top of scripts/cluster.sh" ;;
esac
