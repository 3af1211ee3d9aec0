#!/usr/bin/env bash
# The front door of a clone: try, test and run pyvpn without installing it. `./run.sh help`
set -euo pipefail
umask 022

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
PYTHON=${PYTHON:-/usr/bin/python3}
COPIES=/var/cache/pyvpn-dev # where the programs run from if user pyvpn cannot read the clone

# Where `server`, `client`, `vpnctl` and `clean` keep things.
ETC=${PYVPN_ETC:-/etc/pyvpn}
STATE=${PYVPN_STATE:-/var/lib/pyvpn}
CA=${PYVPN_CA:-/var/lib/pyvpn-ca}
RUN=${PYVPN_RUN:-/run/pyvpn-server}
HELPER_RUN=${PYVPN_HELPER_RUN:-/run/pyvpn-helper}
HELPER_SOCKET=${PYVPN_HELPER_SOCKET:-/run/pyvpn-helper.sock}
DEMO=/run/pyvpn-demo
DIST=${PYVPN_DIST:-$HERE/dist} # of deb

PROGRAM_PACKAGES=(python3 python3-venv iproute2 nftables ca-certificates)
CLONE_PACKAGES=(git iputils-ping) # iputils-ping for demo and tests
TEST_PACKAGES=(openssl gnutls-bin shellcheck)
BUILD_PACKAGES=(build-essential debhelper dh-python)
SYSTEM_PACKAGES=(systemd-container debootstrap) # for -m systemd
UNPRIVILEGED=(--clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all)
CAP_NET_ADMIN=12 CAP_SYS_ADMIN=21 # linux/capability.h

usage() {
    cat <<'USAGE'
usage: ./run.sh COMMAND

  demo [--keep]         three network namespaces, a server, a stock openconnect, a tunnel
  demo --stop           end a demo that was kept
  test [ARGUMENTS]      all tests, with the newest libraries, those of Debian 13, and the package;
                        with pytest arguments only those tests, with the newest libraries
  test -m systemd       the package on whole Debian systems, which it boots; minutes
  fuzz [TARGET] [--minutes N]
                        throw bytes at what reads bytes of strangers; all targets, a minute each
  bench [--quick]       measure this VPN beside openvpn, ocserv and wireguard-go, those that are
                        at hand; --quick ends within 120 s; `bench --help` names the rest
  server                run a server on this machine in the foreground; Ctrl-C ends it
  client PROFILE        connect this machine: a profile's file or https://HOST[:PORT], and what
                        else `vpnd client --help` names; Ctrl-C disconnects
  vpnctl [ARGUMENTS]    the command line tool, on that server
  deb [VERSION]         build the Debian package: dist/pyvpn_VERSION_all.deb
  clean                 put the network back, also after kill -9 of everything
  help                  this text

Settings (environment): PYTHON, and for server, client, vpnctl and clean PYVPN_NAME (the
server's name, asked for by clients), PYVPN_ETC, PYVPN_STATE, PYVPN_CA, PYVPN_RUN,
PYVPN_CLIENT_RUN, PYVPN_CLIENT_STATE, PYVPN_HELPER_RUN, PYVPN_HELPER_SOCKET; for deb
PYVPN_DIST (where it goes).
USAGE
}

say() { printf 'run.sh: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# --- what the machine must have ---------------------------------------------------------------

need_root() {
    ((EUID == 0)) || die "'$1' changes network settings and needs root: sudo ./run.sh $1"
}

need_capability() { # NUMBER NAME
    local effective
    effective=$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status 2>/dev/null) ||
        die "/proc is not mounted: mount -t proc proc /proc"
    ((0x$effective >> $1 & 1)) ||
        die "this root lacks $2 (a container?): start the container with --cap-add=${2#CAP_}"
}

need_network_rights() {
    need_capability "$CAP_NET_ADMIN" CAP_NET_ADMIN
    [[ -c /dev/net/tun ]] ||
        die "there is no /dev/net/tun: modprobe tun, or give the container the host's /dev/net/tun"
    { : <>/dev/net/tun; } 2>/dev/null ||
        die "/dev/net/tun cannot be opened: modprobe tun, and allow the device in the container"
}

need_packages() { # PACKAGE...: install what is missing
    local package missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) == *' installed' ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "missing packages: sudo apt-get install ${missing[*]}"
    command -v apt-get >/dev/null || die "install these first: ${missing[*]} (no apt-get here)"
    say "installing ${missing[*]}"
    local log
    log=$(mktemp /tmp/pyvpn-apt.XXXXXX)
    if ! install_packages "${missing[@]}" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "apt-get could not install ${missing[*]}: read $log"
    fi
    rm -f "$log"
}

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq || true # an unreachable extra source need not matter
    apt-get install -y -q --no-install-recommends "$@" </dev/null
}

need_python() {
    command -v "$PYTHON" >/dev/null || die "there is no $PYTHON: set PYTHON=/path/to/python3"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$PYTHON is older than Python 3.11: set PYTHON=/path/to/a newer python3"
}

need_users() {
    local user
    for user in pyvpn pyvpn-ca pyvpn-client; do
        getent passwd "$user" >/dev/null && continue
        say "creating system user $user"
        useradd --system --user-group --no-create-home --home-dir /nonexistent \
            --shell /usr/sbin/nologin "$user"
    done
    if ! getent group pyvpn-admin >/dev/null; then
        say "creating group pyvpn-admin (its members may use vpnctl)"
        groupadd --system pyvpn-admin
    fi
}

# --- the copy for a clone that user pyvpn cannot read -----------------------------------------

as_pyvpn() { setpriv --reuid=pyvpn --regid=pyvpn "${UNPRIVILEGED[@]}" -- "$@"; }

files_of_clone() { # NUL-separated, without what git ignores
    if [[ -e $HERE/.git ]]; then
        git -c safe.directory="$HERE" -C "$HERE" ls-files -z -co --exclude-standard
    else
        (cd "$HERE" && find . -name '.[!.]*' -prune -o -type f -print0)
    fi
}

# Go on from a world-readable copy when the clone lies, say, below /root (mode 0700). Nothing of
# the clone is changed.
run_readable() { # the arguments of this script
    as_pyvpn test -r "$HERE/vpnd/__init__.py" -a -x "$HERE/vpnd" && return
    local copy file mode
    copy=$COPIES/$(sha256sum <<<"$HERE" | cut -c 1-12)
    say "user pyvpn cannot read $HERE: running from the copy $copy"
    mkdir -p "$copy"
    while IFS= read -r -d '' file; do
        [[ -f $HERE/$file ]] || continue
        printf '%s\0' "$file"
        mode=0644
        [[ -x $HERE/$file ]] && mode=0755
        # no process for a file that is the same: there are hundreds
        [[ $HERE/$file -nt $copy/$file || $HERE/$file -ot $copy/$file ]] ||
            [[ -x $copy/$file && $mode == 0644 ]] || [[ ! -x $copy/$file && $mode == 0755 ]] ||
            continue
        install -D -p -m "$mode" "$HERE/$file" "$copy/$file"
    done < <(files_of_clone) >"$copy/.files.new"
    if [[ -e $copy/.files ]]; then # what the clone no longer has
        comm -z -13 <(sort -z "$copy/.files.new") <(sort -z "$copy/.files") |
            (cd "$copy" && xargs -0 -r rm -f --)
    fi
    mv "$copy/.files.new" "$copy/.files"
    exec "$copy/run.sh" "$@"
}

# --- libraries ----------------------------------------------------------------------------------

requirements() { # EXTRA...: what pyproject.toml asks for
    "$PYTHON" - "$HERE/pyproject.toml" "$@" <<'PY'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
print(*project["dependencies"], sep="\n")
for extra in sys.argv[2:]:
    print(*project["optional-dependencies"][extra], sep="\n")
PY
}

make_venv() { # FOLDER "EXTRA..." [pip arguments]: exists afterwards, with what pyproject.toml asks for
    local folder=$1 extras=$2 stamp wanted made log
    shift 2
    stamp=$folder/.made-for-${extras:-run}
    # shellcheck disable=SC2086 # extras are words
    wanted=$(requirements $extras && "$PYTHON" -VV && cat "$HERE/tests/constraints-debian13.txt")
    [[ -e $stamp && $(<"$stamp") == "$wanted" ]] && "$folder/bin/python" -c '' && return
    made=$("$folder/bin/python" -VV 2>/dev/null || true)
    [[ $made == "$("$PYTHON" -VV)" ]] || rm -rf "$folder"
    say "making ${folder##*/} for $("$PYTHON" -V), may take a minute"
    [[ -x $folder/bin/python ]] || "$PYTHON" -m venv "$folder"
    log=$folder/pip.log
    # shellcheck disable=SC2086
    if ! requirements $extras | "$folder/bin/python" -m pip install --upgrade \
        --disable-pip-version-check --no-input "$@" -r /dev/stdin >"$log" 2>&1; then
        grep -E '^ERROR' "$log" >&2 || tail -n 5 "$log" >&2
        return 1
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

locked() { # COMMAND...: one run.sh builds at a time
    mkdir -p "$HERE/.cache"
    (flock 9 && "$@" 9>&-) 9>"$HERE/.cache/lock"
}

need_venv() { # EXTRA...
    locked make_venv "$HERE/.venv" "$*" ||
        die "pip could not install the libraries: read $HERE/.venv/pip.log"
}

python() { PYTHONPATH=$HERE PYTHONUNBUFFERED=1 "$HERE/.venv/bin/python" -P "$@"; }

# --- processes of `server` and `client`, remembered by number and start time ------------------------------------

start_time() { sed -nE 's/^.*\) (\S+ ){19}([0-9]+) .*/\2/p' "/proc/$1/stat" 2>/dev/null; }

remember() { printf '%s %s\n' "$2" "$(start_time "$2")" >"$HELPER_RUN.$1.pid"; } # NAME PID

still_runs() { # NAME: print the number of the process that was remembered, if it is still that one
    local number started
    read -r number started 2>/dev/null <"$HELPER_RUN.$1.pid" || return 1
    [[ -n $started && $(start_time "$number") == "$started" ]] && printf '%s\n' "$number"
}

end_process() { # NAME: TERM, after 10 s KILL
    local number i
    if ! number=$(still_runs "$1"); then
        rm -f "$HELPER_RUN.$1.pid"
        return 0 # said, since in a trap a bare one returns the status of before the trap
    fi
    kill -TERM "$number" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do
        still_runs "$1" >/dev/null || break
        sleep 0.1
    done
    if still_runs "$1" >/dev/null; then
        say "$1 ($number) does not end: killing it"
        kill -KILL "$number" 2>/dev/null || true
    fi
    rm -f "$HELPER_RUN.$1.pid"
}

helper() {
    python -m helper --socket "$HELPER_SOCKET" --run-dir "$HELPER_RUN" \
        --policy "$ETC/helper.toml" "$@"
}

vpnctl() { python -m vpnctl --run-dir "$RUN" --state-dir "$STATE" --ca-dir "$CA" "$@"; }

# --- commands -----------------------------------------------------------------------------------

prepare() { # COMMAND EXTRA... -- ARGUMENTS: everything root's commands have in common
    local command=$1 extras=()
    shift
    while [[ $1 != -- ]]; do
        extras+=("$1")
        shift
    done
    shift
    need_root "$command"
    need_packages "${PROGRAM_PACKAGES[@]}" "${CLONE_PACKAGES[@]}"
    need_python
    need_users
    run_readable "$command" "$@"
    need_venv "${extras[@]}"
}

run_server() {
    need_root server
    need_network_rights
    prepare server -- "$@"
    local number
    number=$(still_runs vpnd) && die "a server runs already (vpnd $number): end it first"
    set_up_server
    trap 'stop vpnd' EXIT
    trap 'exit 0' INT TERM HUP
    need_helper
    local log
    exec {log}> >(trap '' INT && show_until_ready)
    readonly SHOWING=$!
    PYTHONPATH=$HERE PYTHONUNBUFFERED=1 setsid setpriv --reuid=pyvpn --regid=pyvpn \
        "${UNPRIVILEGED[@]}" -- "$HERE/.venv/bin/python" -P -m vpnd server \
        --config "$ETC/server.toml" --state-dir "$STATE" --run-dir "$RUN" 2>&"$log" {log}>&- &
    remember vpnd $!
    exec {log}>&-
    wait_for_vpnd $!
}

run_client() {
    (($#)) || die "which server? ./run.sh client PROFILE, or client https://HOST[:PORT]"
    need_root client
    need_network_rights
    prepare client -- "$@"
    local profile=$1 name run state number given=()
    shift
    name=$(client_name "$profile") || exit 2
    readonly CLIENT=client-$name
    run=${PYVPN_CLIENT_RUN:-/run/pyvpn-$CLIENT}
    number=$(still_runs "$CLIENT") && die "this client runs already (vpnd $number): end it first"
    set_up_file helper.toml
    install -d -m 0755 -o pyvpn-client -g pyvpn-client "$run"
    state=${PYVPN_CLIENT_STATE:-/var/lib/pyvpn-client}
    install -d -m 0700 -o pyvpn-client -g pyvpn-client "$state"
    if [[ $profile != *://* ]]; then # opened here: it is root's, and vpnd is not root
        local fd
        exec {fd}<"$profile"
        given=(--profile-fd "$fd")
    fi
    trap 'stop "$CLIENT"' EXIT
    trap 'exit 0' INT TERM HUP
    need_helper
    # No setsid: vpnd may ask for a password on this terminal.
    PYTHONPATH=$HERE PYTHONUNBUFFERED=1 setpriv --reuid=pyvpn-client --regid=pyvpn-client \
        "${UNPRIVILEGED[@]}" -- "$HERE/.venv/bin/python" -P -m vpnd client "$profile" \
        --run-dir "$run" --state-dir "$state/$name" --helper-socket "$HELPER_SOCKET" \
        "${given[@]}" "$@" <&0 &
    remember "$CLIENT" $!
    wait_for_vpnd $!
}

wait_for_vpnd() { # PID: end as it does
    local status=0
    wait "$1" 2>/dev/null || status=$? # bash itself would tell of a kill -9 with the whole command
    ((status == 0)) && return
    ((status > 128)) && die "vpnd was killed (signal $((status - 128)))"
    [[ -z ${SHOWING:-} ]] || wait "$SHOWING" || true # its lines come first
    say "vpnd ended with $status: its last line above says why"
    exit "$status"
}

client_name() { # PROFILE: print the name it gives the client; one line and 2 when it is none
    python - "$1" <<'PY'
import sys
from urllib.parse import urlsplit
from vpnd.config.load_profile import device_name, load_profile
from vpnd.errors import VpnError
try:
    url = "://" in sys.argv[1]
    print(device_name(urlsplit(sys.argv[1]).hostname or "") if url else load_profile(sys.argv[1]).client.name)
except (VpnError, ValueError) as exc:
    sys.exit(f"run.sh: {exc}")
PY
}

need_helper() { # one helper serves the server and all clients; it ends with the last of them
    still_runs helper >/dev/null && return
    helper --undo # what programs that were killed left behind
    rm -f "$HELPER_SOCKET"
    # setsid: Ctrl-C is for this script, which ends vpnd before the helper
    PYTHONPATH=$HERE setsid "$HERE/.venv/bin/python" -P -m helper --socket "$HELPER_SOCKET" \
        --run-dir "$HELPER_RUN" --policy "$ETC/helper.toml" &
    remember helper $!
    until [[ -S $HELPER_SOCKET ]]; do
        still_runs helper >/dev/null || die "the helper ended: its last line above says why"
        sleep 0.1
    done
}

remembered() { # print the names of the processes that were remembered, the helper's last
    local file name
    for file in "$HELPER_RUN".*.pid; do
        name=${file#"$HELPER_RUN".}
        name=${name%.pid}
        [[ -e $file && $name != helper ]] && printf '%s\n' "$name"
    done
    printf 'helper\n'
}

set_up_file() { # NAME: write a sample where there is no file
    [[ -e $ETC/$1 ]] && return
    install -d -m 0755 "$ETC"
    say "writing $ETC/$1 (every option with its default)"
    install -m 0644 "$HERE/etc/pyvpn/$1" "$ETC/$1"
}

set_up_server() {
    set_up_file server.toml
    set_up_file helper.toml
    install -d -m 0700 -o pyvpn -g pyvpn "$STATE"
    install -d -m 0755 -o pyvpn -g pyvpn "$RUN"
    install -d -m 0700 -o pyvpn-ca -g pyvpn-ca "$CA"
    if [[ ! -e $STATE/server.crt ]]; then
        say "making the certificate authority ($CA) and the server's keys ($STATE)"
        vpnctl pki init --name "${PYVPN_NAME:-$(own_address)}"
    fi
}

own_address() { # the address this host uses towards the internet, else its name
    ip -o route get 192.0.2.1 2>/dev/null | sed -nE 's/.* src ([^ ]+).*/\1/p' | grep . || hostname
}

show_until_ready() { # pass vpnd's log on; once it is ready say how to go on
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line" >&2
        [[ $line == *"vpnd is ready"* ]] || continue
        how_to_connect || true
        cat >&2
    done
}

how_to_connect() {
    say "add a client (as root, in another terminal):"
    say "    ./run.sh vpnctl client add NAME --foreign      or a password: vpnctl user add NAME"
    say "connect it (as root, on the client; with a password leave --certificate out):"
    say "    $(openconnect_line)"
    say "Ctrl-C ends the server and leaves the network as it was"
}

openconnect_line() {
    python - "$ETC/server.toml" "$STATE" <<'PY'
import sys
from pathlib import Path
from vpnd.config.load import load_server
from vpnd.pki.certificates import load_chain, server_names
from vpnd.pki.pins import server_pins
config, state = load_server(Path(sys.argv[1])), Path(sys.argv[2])
certificate = config.tls.certificate_file(state)
pins = server_pins(certificate, state / "server-next.pub")
remotes = config.server.remotes_for(server_names(load_chain(certificate)[0])[0])
print("openconnect", *(f"--servercert {pin}" for pin in pins), "--certificate NAME.p12", f"https://{remotes[0]}")
PY
}

stop() { # NAME: end it, and the helper when nothing else needs it
    trap '' INT TERM HUP
    end_process "$1"
    local other
    while read -r other; do
        [[ $other != helper ]] && still_runs "$other" >/dev/null && return 0
    done < <(remembered)
    end_process helper
    helper --undo || say "the network may not be as it was: ./run.sh clean"
}

run_clean() {
    prepare clean -- "$@"
    local name
    while read -r name; do
        end_process "$name"
    done < <(remembered)
    if [[ -e $DEMO ]]; then
        python -m tests.netns.teardown "$DEMO"
    fi
    python -m tests.netns.teardown --dead
    helper --undo
    say "the network is as it was"
}

run_demo() {
    need_root demo
    need_network_rights
    need_capability "$CAP_SYS_ADMIN" CAP_SYS_ADMIN
    prepare demo -- "$@"
    [[ ${1:-} == --stop ]] || locked "$HERE/tests/peers.sh" "$HERE/.cache/peers" openconnect
    python -m tests.netns.demo "$@"
}

run_tests() {
    local only="not systemd and not bench"
    if ((EUID == 0)); then
        need_network_rights
        need_capability "$CAP_SYS_ADMIN" CAP_SYS_ADMIN
        need_packages "${PROGRAM_PACKAGES[@]}" "${CLONE_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
        [[ " $* " != *" systemd "* ]] || need_packages "${BUILD_PACKAGES[@]}" "${SYSTEM_PACKAGES[@]}"
        prepare test test -- "$@"
        locked "$HERE/tests/peers.sh" "$HERE/.cache/peers" openconnect ocserv \
            zsh zsh-common fish fish-common mandoc
    else
        say "not root: without the tests on network namespaces, and those that change users skip" \
            "themselves (sudo ./run.sh test for all)"
        only+=" and not netns"
        need_packages python3 python3-venv git openssl
        need_python
        need_venv test
    fi
    cd "$HERE"
    export PYTHONPATH=$HERE
    if (($#)); then
        [[ " $* " != *" systemd "* ]] || make_systems
        exec .venv/bin/python -m pytest -m "$only" "$@"
    fi
    test_all "$only"
}

# Side by side: these tests wait more than they compute, and their namespaces are their own.
test_all() { # MARKERS
    local status=0 beside systems=""
    if [[ $1 == *"not netns"* ]]; then
        : # said above
    elif unshare --mount true 2>/dev/null; then
        need_packages "${BUILD_PACKAGES[@]}" "${SYSTEM_PACKAGES[@]}"
        systems=yes
    else
        say "not tested: the package on whole systems, which cannot be booted from within a chroot"
    fi
    trap 'kill "${BESIDE[@]}" 2>/dev/null || true' EXIT
    trap 'exit 130' INT TERM HUP
    if "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 14))'; then
        say "not tested: Debian 13's libraries, of which there are no packages for $("$PYTHON" -V)"
    else
        make_debian13 ||
            die "pip could not install Debian 13's libraries: read $HERE/.venv-debian13/pip.log"
        test_beside debian13 "the libraries of Debian 13" .venv-debian13 "not once and $1"
    fi
    [[ -z $systems ]] || test_beside systems "the package on Debian 13 systems" .venv systemd
    # Marked `once` is what another generation would only repeat, since no library of it has a hand
    # in it: the linters, and the tests that start run.sh and so the programs of .venv.
    test_beside once "what the libraries do not change" .venv "once and $1"
    announce "the newest libraries" .venv
    .venv/bin/python -m pytest -m "not once and $1" || status=1
    for beside in "${!BESIDE[@]}"; do
        wait "${BESIDE[$beside]}" || status=1
        unset "BESIDE[$beside]"
        cat "$HERE/.cache/test-$beside.log"
    done
    ((status == 0)) || say "tests failed: each of the runs above ends in a summary"
    return "$status"
}

make_systems() { # before the tests, whose time is limited: they download, once
    .venv/bin/python -c '
from tests.systemd import bed, conftest
bed.root(conftest.SUITE)'
}

declare -A BESIDE=() # runs of pytest in the background, by name

test_beside() { # NAME WHAT VENV MARKERS
    say "at the same time, shown afterwards: tests with $2"
    {
        [[ $1 != systems ]] || make_systems
        announce "$2" "$3"
        exec "$3/bin/python" -m pytest -m "$4"
    } >"$HERE/.cache/test-$1.log" 2>&1 &
    BESIDE[$1]=$!
}

run_fuzz() {
    need_packages python3 python3-venv git
    need_python
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 14))' ||
        die "there is no atheris for $("$PYTHON" -V): set PYTHON=/path/to/python3.13 or older"
    locked make_venv "$HERE/.venv-fuzz" "test fuzz" ||
        die "pip could not install the fuzzer: read $HERE/.venv-fuzz/pip.log"
    cd "$HERE"
    PYTHONPATH=$HERE exec .venv-fuzz/bin/python -m tests.fuzz "$@"
}

run_bench() {
    need_root bench
    need_network_rights
    need_capability "$CAP_SYS_ADMIN" CAP_SYS_ADMIN
    need_packages iperf3
    prepare bench -- "$@"
    local package other=()
    for package in openconnect ocserv openvpn wireguard-tools wireguard-go; do # each may be absent
        locked "$HERE/tests/peers.sh" "$HERE/.cache/peers" "$package" || true
    done
    if "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 14))' && make_debian13; then
        other=(--debian13 "$HERE/.venv-debian13/bin/python")
    else
        say "not measured: with Debian 13's libraries"
    fi
    python -m tests.bench "${other[@]}" "$@"
}

make_debian13() { # .venv-debian13 exists afterwards
    locked make_venv "$HERE/.venv-debian13" test --only-binary=cryptography,numpy \
        --constraint "$HERE/tests/constraints-debian13.txt"
}

run_deb() { # [VERSION]
    local work wheel log version file
    need_packages "${BUILD_PACKAGES[@]}" "${PROGRAM_PACKAGES[@]}" git
    need_python
    wheel=$(locked vendored_wheel) || die "pip could not fetch what packaging/debian/vendor.txt names"
    work=$(mktemp -d /tmp/pyvpn-deb.XXXXXX)
    # shellcheck disable=SC2064 # this folder, whatever $work is then
    trap "rm -rf '$work'" EXIT
    log=$work/build.log
    mkdir "$work/source"
    files_of_clone | while IFS= read -r -d '' file; do # git names what was just deleted too
        [[ ! -f $HERE/$file ]] || printf '%s\0' "$file"
    done | tar -C "$HERE" --null --files-from=- -c | tar -x -C "$work/source"
    cd "$work/source"
    cp -r packaging/debian debian
    mkdir debian/vendor
    cp "$wheel" debian/vendor/
    (($# == 0)) || sed -i "1s/([^)]*)/($1)/" debian/changelog
    version=$(dpkg-parsechangelog -S Version)
    say "building pyvpn $version"
    if ! dpkg-buildpackage --build=binary --no-sign >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        cp "$log" "$HERE/.cache/deb.log"
        die "the package could not be built: read $HERE/.cache/deb.log"
    fi
    mkdir -p "$DIST"
    cp "$work/pyvpn_${version}_all.deb" "$DIST/"
    printf '%s\n' "$DIST/pyvpn_${version}_all.deb"
}

vendored_wheel() { # print the file: what vendor.txt names, by its hash
    local folder=$HERE/.cache/vendor pinned=$HERE/packaging/debian/vendor.txt wheel
    wheel=$(find "$folder" -name '*.whl' -newer "$pinned" 2>/dev/null | head -n 1)
    if [[ -z $wheel ]]; then
        [[ -x $HERE/.venv/bin/pip ]] || make_venv "$HERE/.venv" "" >&2 || return 1
        rm -rf "$folder"
        "$HERE/.venv/bin/python" -m pip download --quiet --disable-pip-version-check --no-input \
            --no-deps --only-binary=:all: --require-hashes -r "$pinned" -d "$folder" >&2 || return 1
        wheel=$(find "$folder" -name '*.whl' -exec touch {} + -print)
    fi
    printf '%s\n' "$wheel"
}

announce() { # WHAT VENV
    say "testing with $1: $("$2/bin/python" -c '
from importlib.metadata import version
print(*(f"{name} {version(name)}" for name in ("cryptography", "pyopenssl", "pyroute2", "numpy", "h11")), sep=", ")')"
}

main() {
    local command=${1:-help}
    shift || true
    case $command in
    demo) run_demo "$@" ;;
    test) run_tests "$@" ;;
    server) run_server "$@" ;;
    client) run_client "$@" ;;
    vpnctl)
        ((EUID)) || prepare vpnctl -- "$@" # others than root use what root has prepared
        vpnctl "$@"
        ;;
    fuzz) run_fuzz "$@" ;;
    bench) run_bench "$@" ;;
    deb) run_deb "$@" ;;
    clean) run_clean "$@" ;;
    help | -h | --help) usage ;;
    *)
        say "unknown command '$command'"
        usage >&2
        exit 2
        ;;
    esac
}

main "$@"
