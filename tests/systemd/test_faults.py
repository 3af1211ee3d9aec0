"""What goes wrong on a host: the unit says why in one line, and what to do; the rest goes on."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.netns.process import BedError, Process
from tests.systemd.system import System

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]
CONFIG = "/etc/pyvpn/server.toml"
UNIT = "pyvpn-server"
CLIENT = "pyvpn-client@phone"
BACK_S = 20.0


@pytest.fixture(scope="module")
def server(install: Callable[[str], System]) -> System:
    system = install("server")
    system.shell(f"systemctl enable --now {UNIT}")
    return system


@pytest.fixture(scope="module")
def client(server: System, install: Callable[[str], System]) -> System:
    system = install("client")
    server.shell("cd /root && vpnctl client add phone")
    system.put(server.path("/root/phone.toml"), "/etc/pyvpn/client/")
    system.shell(f"systemctl enable --now {CLIENT}")
    system.wait_journal("^connected", unit=CLIENT)
    return system


@pytest.fixture
def stopped(server: System) -> Iterator[System]:
    """A server that does not run; afterwards it runs again, whatever was done to it."""
    server.shell(f"systemctl stop {UNIT}")
    yield server
    server.shell(f"systemctl reset-failed; systemctl restart {UNIT}")


def complaint(system: System, pattern: str, unit: str = UNIT) -> str:
    """Start a unit, which must fail; return the line in the journal that says why."""
    since = system.cursor()
    assert system.run("systemctl", "start", unit, check=False).returncode, "it starts"
    line = system.wait_journal(rf"^vpnd: .*{pattern}.*$", since=since, unit=unit)[0]
    assert "Traceback" not in system.journal("-u", unit)
    print(line)
    return line


def has_given_up(system: System, unit: str, line: str) -> bool:
    """It failed with status 2, was not tried again, and its status shows the line."""
    shown = system.run("systemctl", "status", "--no-pager", unit, check=False).stdout
    assert line in shown
    facts = [
        system.property(unit, name) for name in ("ActiveState", "ExecMainStatus", "NRestarts")
    ]
    return facts == ["failed", "2", "0"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("s/^port = .*/port = 'https'/", "server.port"),
        ("s/^port = .*/prot = 443/", "did you mean port"),
        ("s/^port = .*/port = /", "not valid TOML"),
    ],
)
def test_a_broken_configuration_fails_once_and_says_where(
    stopped: System, bad: str, reason: str
) -> None:
    """Trying again would not help."""
    stopped.shell(f'cp {CONFIG} /root/kept.toml; sed -i "{bad}" {CONFIG}')
    try:
        line = complaint(stopped, re.escape(reason))
        assert CONFIG in line
        assert has_given_up(stopped, UNIT, line)
    finally:
        stopped.shell(f"cp /root/kept.toml {CONFIG}")


def test_a_broken_profile_fails_once_and_says_where(client: System) -> None:
    """As for the server."""
    client.write(
        "/etc/pyvpn/client/bad.toml",
        "[client]\nusr = 'x'\n[[remotes]]\naddress = '192.0.2.1'\n",
        0o600,
    )
    line = complaint(client, "did you mean user", "pyvpn-client@bad")
    assert "/etc/pyvpn/client/bad.toml" in line
    assert has_given_up(client, "pyvpn-client@bad", line)


def test_a_profile_that_is_not_there_is_named(client: System) -> None:
    """The instance is the file's name."""
    line = complaint(client, "no such file", "pyvpn-client@nobody")
    assert "/etc/pyvpn/client/nobody.toml" in line
    assert has_given_up(client, "pyvpn-client@nobody", line)


def test_a_port_that_is_taken_is_tried_again(stopped: System) -> None:
    """Whoever has it may end; until then the journal says what is wrong."""
    other = stopped.start("nc", "nc", "-l", "-p", "55555")
    try:
        stopped.wait_until("ss -Hltn | grep -q :55555")
        complaint(stopped, "55555")
    finally:
        since = stopped.cursor()
        other.kill()
    stopped.wait_journal("^vpnd is ready", since=since, unit=UNIT)


def test_a_host_without_tun_says_how_to_get_it(stopped: System) -> None:
    """Its module may not be loaded; once it is there nothing else need be restarted."""
    stopped.shell("mv /dev/net/tun /dev/net/gone")
    try:
        complaint(stopped, "modprobe tun")
    finally:
        stopped.shell("mv /dev/net/gone /dev/net/tun")
    stopped.shell(f"systemctl reset-failed {UNIT}; systemctl start {UNIT}")


def test_a_host_without_ipv6_is_served_on_ipv4(stopped: System) -> None:
    """Half of the world switches it off."""
    switch = (
        "sysctl -q -w net.ipv6.conf.all.disable_ipv6={0} net.ipv6.conf.default.disable_ipv6={0}"
    )
    stopped.shell(switch.format(1))
    try:
        stopped.shell(f"systemctl start {UNIT}; vpnctl status")
    finally:
        stopped.shell(f"{switch.format(0)}; networkctl reconfigure host0")


def test_a_read_only_etc_is_no_hindrance(stopped: System) -> None:
    """Nothing of ours is written there."""
    stopped.shell("mount --bind /etc /etc && mount -o remount,bind,ro /etc")
    try:
        stopped.shell(f"systemctl start {UNIT}; vpnctl status")
        stopped.shell("cd /root && rm -f ro.*; vpnctl client add ro && vpnctl client revoke ro")
    finally:
        stopped.shell("umount /etc")


def test_a_full_disk_at_the_first_start_leaves_nothing_half_made(
    install: Callable[[str], System],
) -> None:
    """With space the same command works."""
    system = install("fresh")
    for user in ("pyvpn", "pyvpn-ca"):
        options = f"size=4k,mode=0700,uid={user},gid={user}"
        system.shell(f"mount -t tmpfs -o {options} full /var/lib/{user}")
    assert system.run("systemctl", "start", UNIT, check=False).returncode
    said = system.journal("-u", UNIT, "-u", "pyvpn-pki")
    print(said)
    assert re.search("No space left on device|disk is full", said)
    assert "Traceback" not in said
    assert system.shell("find /var/lib/pyvpn /var/lib/pyvpn-ca -type f -size +0") == ""
    system.shell("umount /var/lib/pyvpn /var/lib/pyvpn-ca; systemctl reset-failed")
    system.shell(f"systemctl start {UNIT}; vpnctl status")


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_traffic_goes_on_without_the_helper_which_comes_back(
    server: System, client: System, end: str
) -> None:
    """Killed or stopped: vpnd asks again, and its socket starts it."""
    for system, unit in ((server, UNIT), (client, CLIENT)):
        since, before = system.cursor(), system.property("pyvpn-helper", "MainPID")
        with traffic(client):
            system.shell(
                "systemctl kill --signal=KILL pyvpn-helper.service"
                if end == "kill"
                else "systemctl stop pyvpn-helper.service"
            )
            system.wait_journal("^the helper is back", since=since, unit=unit, timeout_s=BACK_S)
        assert system.property("pyvpn-helper", "MainPID") not in {before, "0"}
        assert "pyvpn" in system.shell("nft list ruleset; ip -4 address; ip route show table all")


def test_nothing_is_lost_when_networkd_restarts(server: System, client: System) -> None:
    """It takes away what it does not know, unless it is told to keep its hands off."""
    before = [routing(system) for system in (server, client)]
    with traffic(client):
        for system in (server, client):
            system.shell("systemctl restart systemd-networkd")
            system.wait_until("networkctl status host0 | grep -q 'routable (configured)'")
            assert "unmanaged" in system.shell("networkctl --no-legend list 'pyvpn*'")
            assert len(system.shell("ip rule").splitlines()) == (3 if system is server else 4)
    assert [routing(system) for system in (server, client)] == before


def routing(system: System) -> list[str]:
    """Return what decides where packets go, without what counts down."""
    families = (f"ip -{v} rule; ip -{v} route show table all; ip -{v} -o address" for v in (4, 6))
    said = system.shell("; ".join(families))
    return sorted(
        re.sub(r" expires \d+sec| valid_lft.*| metric \d+| pref \w+", "", line)
        for line in said.splitlines()
    )


@contextmanager
def traffic(client: System) -> Iterator[Process]:
    """Let packets flow through the tunnel meanwhile; at most one of them is lost."""
    ping = client.start("ping", "ping", "-i", "0.1", "10.8.0.1")
    ping.wait_for("icmp_seq=3 ")
    yield ping
    mark = ping.mark()
    ping.wait_for("icmp_seq=", since=mark)
    client.shell("pkill -INT -x ping")  # in a system of its own
    ping.wait()
    found = re.search(r"(\d+) packets transmitted, (\d+) received", ping.text())
    if found is None or int(found[1]) - int(found[2]) > 1:
        raise BedError(f"packets were lost: {ping.text()[-300:]}")
