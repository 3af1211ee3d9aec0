#!/usr/bin/env bash
# Make a Debian system that the tests boot, unless it is there already, and print its folder:
#     tests/systemd/root.sh SUITE CACHE DEPENDENCY...
# CACHE/SUITE-KEY/bare is a fresh installation whose package cache holds the dependencies, so
# that installing our package needs no network; in CACHE/SUITE-KEY/ready they are installed.
set -euo pipefail
umask 022
export LC_ALL=C

suite=$1
cache=$2
shift 2
# What a Debian system usually has, and what the tests look at it with.
packages=(
    systemd systemd-sysv dbus libpam-systemd kmod procps iproute2 iputils-ping
    ca-certificates curl netcat-openbsd tcpdump
)
fetched=("$@" openconnect iperf3 lintian)

exec 3>&2 # where people look, while the steps write to their logs
say() { printf 'root.sh: %s\n' "$*" >&3; }

sources() { # the mirrors that this machine's own apt uses
    { cat /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null || true; } |
        awk '/^URIs:/ {print $2} /^deb / {for (i = 2; i <= NF; i++) if ($i ~ /^https?:/) {print $i; break}}'
}
mirror=${PYVPN_MIRROR:-$(sources | awk '!/security/ && !n++')}
[[ $mirror ]] || { say "this machine's apt names no mirror: set PYVPN_MIRROR" && exit 1; }
security=${PYVPN_SECURITY_MIRROR:-$(sources | awk '/security/ && !n++')}
security=${security:-${mirror%/}-security}

key=$(sha256sum <<<"$suite $mirror ${packages[*]} ${fetched[*]} $(<"${BASH_SOURCE[0]}")")
folder=$cache/$suite-${key:0:12}

in_root() { # FOLDER COMMAND...
    local root=$1
    shift
    chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive "$@" </dev/null
}

install_in() { # FOLDER apt-get's arguments...
    in_root "$1" apt-get -y -q -o APT::Keep-Downloaded-Packages=true \
        -o Dpkg::Use-Pty=0 install --no-install-recommends "${@:2}"
}

make_bare() { # FOLDER
    say "installing $suite (debootstrap)"
    debootstrap --variant=minbase --include=ca-certificates "$suite" "$1" "$mirror"
    printf 'deb %s %s main\n' "$mirror" "$suite" "$mirror" "$suite-updates" \
        "$security" "$suite-security" >"$1/etc/apt/sources.list"
    cp --remove-destination /etc/resolv.conf "$1/etc/resolv.conf"
    printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d" # no service starts while we build
    chmod 0755 "$1/usr/sbin/policy-rc.d"
    in_root "$1" apt-get update -q
    in_root "$1" apt-get -y -q -o Dpkg::Use-Pty=0 full-upgrade
    install_in "$1" "${packages[@]}"
    in_root "$1" apt-get clean
    say "downloading what pyvpn depends on"
    install_in "$1" --download-only "${fetched[@]}"
    finish "$1"
}

finish() { # FOLDER: as a machine that was booted before, without what only makes noise here
    rm -f "$1/usr/sbin/policy-rc.d" "$1/etc/hostname" "$1/etc/resolv.conf"
    : >"$1/etc/resolv.conf"
    : >"$1/etc/machine-id" # empty; without the file every unit would be preset
    mkdir -p "$1/var/log/journal"
    # apt has no network here: what is missing shall be missed at once
    printf 'Acquire::Retries "0";\nAcquire::http::Timeout "2";\nAPT::Keep-Downloaded-Packages "true";\n' \
        >"$1/etc/apt/apt.conf.d/01pyvpn-test"
    local unit
    for unit in console-getty.service apt-daily.timer apt-daily-upgrade.timer; do
        ln -sf /dev/null "$1/etc/systemd/system/$unit"
    done
}


step() { # NAME COMMAND...: make $folder/NAME, whole or not at all
    local name=$1 log=$cache/$suite-$1.log
    shift
    [[ -d $folder/$name ]] && return
    rm -rf --one-file-system "${folder:?}/$name.new"
    if ! "$@" "$folder/$name.new" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        say "$suite could not be made: read $log"
        exit 1
    fi
    mv "$folder/$name.new" "$folder/$name"
}

dependencies=("$@")
make_ready() { # FOLDER
    say "installing what pyvpn depends on"
    cp -a --reflink=auto "$folder/bare" "$1"
    install_in "$1" "${dependencies[@]}"
}

mkdir -p "$folder"
exec 9>"$cache/lock" # one run makes them, others wait
flock 9
step bare make_bare
step ready make_ready
# roots of other times: as large, and not used again
find "$cache" -mindepth 1 -maxdepth 1 -type d -name "$suite-*" ! -path "$folder" -mtime +6 \
    -exec rm -rf --one-file-system {} +
printf '%s\n' "$folder"
