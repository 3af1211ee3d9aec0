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

say() { printf 'peers: %s\n' "$*" >&2; }

# Print the package and the libraries that apt would newly install with it ("Inst NAME (VERSION"
# is new, "Inst NAME [OLD] (VERSION" an upgrade of what is already there).
packages_for() {
    local plan
    plan=$(apt-get -s install --no-install-recommends "$1") || return 1
    { echo "$1" && sed -nE 's/^Inst (lib[^ ]+) \(.*/\1/p' <<<"$plan"; } | sort -u
}

write_starter() { # PROGRAM-PATH: a starter that adds our library folders
    local starter
    starter=$folder/bin/$(basename "$1")
    mkdir -p "$folder/bin"
    cat >"$starter" <<STARTER
#!/bin/sh
export LD_LIBRARY_PATH="$libraries"
exec "$1" "\$@"
STARTER
    chmod 0755 "$starter"
}

multiarch=$(dpkg-architecture -q DEB_HOST_MULTIARCH 2>/dev/null ||
    find /usr/lib -maxdepth 1 -name '*-linux-gnu*' -printf '%f\n' | head -n 1)
libraries=$folder/root/usr/lib/$multiarch:$folder/root/lib/$multiarch

for package in "$@"; do
    [[ -e $folder/$package.done ]] && continue
    log=$folder/$package.log
    say "fetching $package and its libraries (not installed, kept in $folder)"
    if ! names=$(packages_for "$package" 2>"$log"); then
        apt-get update -qq >>"$log" 2>&1 || true
        names=$(packages_for "$package" 2>>"$log") || {
            say "apt-get does not find $package: see $log"
            exit 1
        }
    fi
    mkdir -p "$folder/debs-$package" "$folder/root"
    mapfile -t names <<<"$names"
    if ! (cd "$folder/debs-$package" &&
        apt-get -o APT::Sandbox::User=root download "${names[@]}") >>"$log" 2>&1; then
        # a list older than the mirror names versions that are gone
        { apt-get update -qq && cd "$folder/debs-$package" &&
            apt-get -o APT::Sandbox::User=root download "${names[@]}"; } >>"$log" 2>&1 || {
            say "cannot download $package: see $log"
            exit 1
        }
    fi
    for deb in "$folder/debs-$package"/*.deb; do
        dpkg -x "$deb" "$folder/root"
    done
    for program in "$folder/root"/usr/{,s}bin/*; do
        [[ -f $program ]] && write_starter "$program"
    done
    rm -rf "$folder/debs-$package"
    touch "$folder/$package.done"
done
