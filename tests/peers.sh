#!/usr/bin/env bash
# Fetch programs that tests and demo talk to, without installing them:
#     tests/peers.sh FOLDER PACKAGE...
# Each package and those libraries of it that the system lacks are unpacked below FOLDER/root;
# FOLDER/bin/NAME starts the unpacked program. No service is started, no package is configured.
set -euo pipefail
umask 022

folder=$1
shift
mkdir -p "$folder"
folder=$(cd "$folder" && pwd -P)
export LC_ALL=C

apt_get() { apt-get -o Acquire::http::Timeout=30 -o Acquire::Retries=3 "$@"; } # never hang

say() { printf 'peers: %s\n' "$*" >&2; }

# Print the package and the libraries that apt would newly install with it ("Inst NAME (VERSION"
# is new, "Inst NAME [OLD] (VERSION" an upgrade of what is already there).
packages_for() {
    local plan
    plan=$(apt-get -s install --no-install-recommends "$1") || return 1
    { echo "$1" && sed -nE 's/^Inst (lib[^ ]+) \(.*/\1/p' <<<"$plan"; } | sort -u
}

write_starter() { # PROGRAM-PATH LIBRARY-FOLDERS
    local starter
    starter=$folder/bin/$(basename "$1")
    mkdir -p "$folder/bin"
    cat >"$starter" <<STARTER
#!/bin/sh
export LD_LIBRARY_PATH="$2"
exec "$1" "\$@"
STARTER
    chmod 0755 "$starter"
}

download() { # what $names holds, for $package
    (cd "$folder/debs-$package" && apt_get -o APT::Sandbox::User=root download "${names[@]}")
}

for package in "$@"; do
    [[ -e $folder/$package.done ]] && continue
    log=$folder/$package.log
    say "fetching $package and its libraries (not installed, kept in $folder)"
    if ! names=$(packages_for "$package" 2>"$log"); then
        apt_get update -qq >>"$log" 2>&1 || true
        names=$(packages_for "$package" 2>>"$log") || {
            say "apt-get does not find $package: see $log"
            exit 1
        }
    fi
    mkdir -p "$folder/debs-$package" "$folder/root"
    mapfile -t names <<<"$names"
    # lists older than the mirror name versions that are gone
    download >>"$log" 2>&1 || { apt_get update -qq && download; } >>"$log" 2>&1 || {
        say "cannot download $package: see $log"
        exit 1
    }
    for deb in "$folder/debs-$package"/*.deb; do
        dpkg -x "$deb" "$folder/root"
    done
    # some libraries keep a part of themselves in a folder of their own
    libraries=$(find "$folder/root" -name '*.so*' -printf '%h\n' | sort -u | paste -s -d :)
    for program in "$folder/root"/{,usr/}{,s}bin/*; do
        [[ -f $program ]] && write_starter "$program" "$libraries"
    done
    rm -rf "$folder/debs-$package"
    touch "$folder/$package.done"
done
