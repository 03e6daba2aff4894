#!/usr/bin/env bash
# Starts a replica, asks it with the clients that people have, and holds its document against it.
#
# Usage: scripts/test-clients.sh [further arguments of `schemathesis run`]
# Settings: ELASTIC  path of the executable (target/debug/elastic)
#           CLIENTS  virtual environment for the clients, made if it is not there (target/clients)
set -euo pipefail
cd "$(dirname "$0")/.."

elastic=${ELASTIC:-target/debug/elastic}
clients=${CLIENTS:-target/clients}
scratch=$(mktemp -d "${TMPDIR:-/tmp}/elastic-clients.XXXXXX")
server_pid=
dispatch_pid=

fail() {
    echo "test-clients: $*" >&2
    exit 1
}

# shellcheck disable=SC2329 # the trap below calls it
cleanup() {
    local status=$?
    trap - EXIT INT TERM
    # A child of --child drains when its standard input closes.
    exec 3>&- || true
    if [[ -n $dispatch_pid ]]; then
        kill -TERM "$dispatch_pid" 2>/dev/null || true
        wait "$dispatch_pid" 2>/dev/null || true
    fi
    if [[ -n $server_pid ]]; then
        wait "$server_pid" 2>/dev/null || true
    fi
    if [[ $status -ne 0 ]]; then
        tail -n 20 "$scratch/server.log" >&2 || true
    fi
    cd /
    rm -rf "$scratch"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

[[ -x $elastic ]] || fail "$elastic is not there; run 'cargo build' first"
if ! cmp --silent scripts/clients-requirements.txt "$clients/requirements.txt"; then
    python3 -m venv "$clients"
    "$clients/bin/pip" install --quiet --disable-pip-version-check --requirement scripts/clients-requirements.txt
    cp scripts/clients-requirements.txt "$clients/requirements.txt"
fi

# The pipes tie the server to this script: it says where it listens, and ends with us however we end.
mkfifo "$scratch/in" "$scratch/out"
"$elastic" serve-model --child --port 0 --model efficientnet_lite0 <"$scratch/in" >"$scratch/out" 2>"$scratch/server.log" &
server_pid=$!
exec 3>"$scratch/in"
read -r -t 60 ready <"$scratch/out" || fail "the server did not start"
url=$(sed -n 's/.*"ready":"\([^"]*\)".*/\1/p' <<<"$ready")
[[ -n $url ]] || fail "the server does not say where it listens: $ready"

"$elastic" dispatch --port 0 --replica "$url" --deadline 10s --log info >/dev/null 2>"$scratch/dispatch.log" &
dispatch_pid=$!
for ((tries = 0; tries < 100; tries++)); do
    door=$(sed -n 's/.*dispatching.*url="\([^"]*\)".*/\1/p' "$scratch/dispatch.log")
    [[ -z $door ]] || break
    sleep 0.1
done
[[ -n $door ]] || fail "the dispatcher did not start"

echo "straight to the replica"
"$clients/bin/python" scripts/clients.py "$url" tests/photos/goldfish.jpg goldfish
echo "through the dispatcher"
"$clients/bin/python" scripts/clients.py "$door" tests/photos/goldfish.jpg goldfish
# In the scratch folder, since it keeps notes where it runs.
root=$PWD
clients=$(realpath "$clients")
cd "$scratch"
for server in "$url" "$door"; do
    PYTHONPATH="$root/scripts" "$clients/bin/schemathesis" --config-file "$root/scripts/schemathesis.toml" \
        run "$@" "$server/openapi.json"
done
