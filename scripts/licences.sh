#!/bin/sh
# Prints the licences of all crates that the executable is made of, each text once, as those licences ask for.
#
# Usage: scripts/licences.sh [arguments of `cargo tree`, as --target or --no-default-features]
# The crates' sources must be there (`cargo fetch --locked`).
set -eu

sources=${CARGO_HOME:-$HOME/.cargo}/registry/src
texts=$(mktemp -d)
trap 'rm -rf "$texts"' EXIT

echo "The crates that elastic is made of, and their licences; the texts follow. That of Apache-2.0 is in LICENSE too."
echo
# NAME vVERSION|LICENCE; procedural macros run while it is built and are no part of it.
cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}|{l}' "$@" | sed 's/ (\*)$//' | sort -u |
    while IFS='|' read -r crate licence; do
        name=${crate%% *}
        version=${crate#* v}
        version=${version%% *}
        if [ "$name" = elastic ]; then continue; fi
        echo "$name $version: $licence"
        for file in "$sources"/*/"$name-$version"/LICEN[SC]E* "$sources"/*/"$name-$version"/COPYING* \
            "$sources"/*/"$name-$version"/NOTICE*; do
            # Of several to choose from it is MIT where that has a file of its own.
            case $licence/$file in
            *" OR "*/*[aA][pP][aA][cC][hH][eE]* | *" OR "*/*LICENSE-0BSD* | *" OR "*/*LICENSE-ZLIB* | *" OR "*/*UNLICENSE*)
                if ls "$sources"/*/"$name-$version"/LICENSE*MIT* >/dev/null 2>&1; then continue; fi
                ;;
            esac
            if [ -f "$file" ]; then
                # The same text with other line breaks is the same text.
                sum=$(tr -s '[:space:]' ' ' <"$file" | sha256sum | cut -c 1-64)
                if [ ! -f "$texts/$sum.text" ]; then cp "$file" "$texts/$sum.text"; fi
                echo "$name $version" >>"$texts/$sum.crates"
            fi
        done
    done
for crates in "$texts"/*.crates; do
    printf '\n%s\n' "--------------------------------------------------------------------------------"
    sort -u "$crates" | tr '\n' ',' | sed 's/,$//; s/,/, /g'
    printf '\n\n'
    cat "${crates%.crates}.text"
done
