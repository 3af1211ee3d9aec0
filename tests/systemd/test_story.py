"""The user's story, on freshly installed systems, in the order and with the words of the README.

Each test goes on where the one before it ended.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.netns.bed import WEB4, WEB6
from tests.systemd.bed import Bed
from tests.systemd.conftest import NEWER
from tests.systemd.system import System

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]
SERVER4, SERVER6 = "203.0.113.2", "2001:db8:2::2"
CLIENT = "pyvpn-client@phone"
BACKUPS = {f"/etc/{name}" for name in ("passwd-", "shadow-", "group-", "gshadow-", ".pwd.lock")}


@pytest.fixture(scope="module")
def server(bed: Bed, roots: Path) -> System:
    return bed.add("server", roots / "bare")


@pytest.fixture(scope="module")
def client(bed: Bed, server: System, roots: Path, package: Path) -> System:
    del server  # has the first address
    system = bed.add("client", roots / "ready")
    system.write("/root/before", files(system))
    system.install(package)
    return system


def files(system: System) -> str:
    """Return all names there are, sorted, but of what changes by itself."""
    places = ("/proc", "/sys", "/dev", "/run", "/tmp", "/root", "/var/cache", "/var/log")
    pruned = " -o ".join(f"-path {place}" for place in (*places, "/var/lib/apt", "/var/tmp"))
    return system.shell(f"find / \\( {pruned} \\) -prune -o -print | LC_ALL=C sort")


def status(system: System) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(system.shell("vpnctl status --json", check=False))
    return said


def session(system: System) -> dict[str, Any]:
    (found,) = status(system)["sessions"]
    assert isinstance(found, dict)
    return found


def goes_through(client: System) -> None:
    """Both families reach the internet, which sees the server."""
    assert client.shell(f"curl -s --max-time 10 --retry 3 http://{WEB4}/").strip() == SERVER4
    assert client.shell(f"curl -s --max-time 10 --retry 3 http://[{WEB6}]/").strip() == SERVER6


def test_five_commands_and_the_server_runs(server: System, package: Path) -> None:
    """Nothing else is done first, and each of them works."""
    server.put(package, "/root/pyvpn.deb")
    server.run("apt", "install", "-y", "/root/pyvpn.deb", timeout_s=300)
    server.shell("systemctl enable --now pyvpn-server")
    assert "state\tup" in server.shell("vpnctl status")
    server.shell("vpnctl rotate-keys")
    assert "vpnd is ready" in server.shell("journalctl -u pyvpn-server")


def test_a_profile_carried_over_connects_a_client(server: System, client: System) -> None:
    """Three commands, and everything goes through the server."""
    server.shell("cd /root && vpnctl client add phone")
    client.put(server.path("/root/phone.toml"), "/etc/pyvpn/client/")
    client.shell(f"systemctl enable --now {CLIENT}")
    client.wait_journal("^connected", unit=CLIENT)
    goes_through(client)


def test_the_server_reaches_the_client_too(server: System, client: System) -> None:
    """A tunnel has two ends."""
    for address in (session(server)["address4"], session(server)["address6"]):
        server.run("ping", "-c", "2", "-i", "0.2", "-W", "5", address)
    assert session(client)["channel"] == "DTLS"


def test_new_keys_are_shown_on_both_sides(server: System, client: System) -> None:
    """`vpnctl rotate-keys` says who has new ones, and both ends say how old theirs are."""
    server.wait_until("vpnctl status --json | grep -Eq '\"keys_age_s\": ([2-9]|[0-9]{2})'")
    since = client.cursor()
    row = server.shell("vpnctl rotate-keys").splitlines()[-1].split("\t")
    assert "yes" in row, row
    assert "without a break" in row, row
    client.wait_journal("^session keys changed", unit=CLIENT, since=since)
    assert session(server)["keys_age_s"] <= session(client)["keys_age_s"] + 5
    assert session(server)["keys_age_s"] < status(server)["uptime_s"]


def test_a_restart_keeps_the_session(server: System, client: System) -> None:
    """The address is the same, and nobody is asked for anything."""
    before = session(server)
    server.shell("systemctl restart pyvpn-server")
    client.run("ping", "-c", "1", "-w", "20", "10.8.0.1")
    assert session(server)["address4"] == before["address4"]
    goes_through(client)


def test_an_upgrade_keeps_configuration_and_session(
    server: System, client: System, newer_package: Path
) -> None:
    """What runs is the new program afterwards, with the operator's configuration."""
    server.shell("sed -i 's/^dns = .*/dns = [\"192.0.2.53\"]/' /etc/pyvpn/server.toml")
    before = session(server), server.property("pyvpn-server", "MainPID")
    helper = server.property("pyvpn-helper", "MainPID")
    for system in (server, client):
        system.install(newer_package)
        assert f"Version: {NEWER}" in system.shell("dpkg -s pyvpn")
    assert server.property("pyvpn-server", "MainPID") not in {before[1], "0"}
    assert server.property("pyvpn-helper", "MainPID") not in {helper, "0"}
    client.run("ping", "-c", "1", "-w", "20", "10.8.0.1")
    assert session(server)["address4"] == before[0]["address4"]
    assert "192.0.2.53" in server.shell("cat /etc/pyvpn/server.toml")
    goes_through(client)


def test_a_downgrade_does_too(server: System, client: System, package: Path) -> None:
    """Whoever does not like the new version goes back."""
    before = session(server)
    server.shell("apt-get install -y --allow-downgrades /root/pyvpn.deb", timeout_s=300)
    client.run("ping", "-c", "1", "-w", "20", "10.8.0.1")
    assert session(server)["address4"] == before["address4"]
    assert "192.0.2.53" in server.shell("cat /etc/pyvpn/server.toml")
    assert package.name.split("_")[1] in server.shell("dpkg -s pyvpn")


def test_a_client_that_reboots_comes_back(server: System, client: System) -> None:
    """It was enabled."""
    before = session(server)
    client.reboot()
    client.wait_journal("^connected", unit=CLIENT)
    assert session(server)["address4"] == before["address4"]
    goes_through(client)


def test_a_server_that_reboots_has_its_clients_back(server: System, client: System) -> None:
    """Keys, users and leases are on its disk."""
    before, since = session(server), client.cursor()
    server.reboot()
    client.wait_journal("^connected", unit=CLIENT, since=since, timeout_s=90)
    assert session(server)["address4"] == before["address4"]
    goes_through(client)


def test_removal_stops_everything_and_keeps_the_data(server: System, package: Path) -> None:
    """Keys and users are there when it is installed again."""
    authority = server.path("/var/lib/pyvpn-ca").stat()
    server.apt("remove", "pyvpn")
    assert server.shell("pgrep -u pyvpn || true") == ""
    assert "pyvpn" not in server.shell("ip link; nft list ruleset; ip rule")
    assert server.shell("systemctl list-units --no-legend --state=active,failed 'pyvpn*'") == ""
    assert server.path("/var/lib/pyvpn-ca").stat() == authority
    server.install(package)
    server.shell("systemctl start pyvpn-server")
    assert "phone" in server.shell("vpnctl client list")


def test_a_client_started_by_hand_ends_with_the_package(client: System) -> None:
    """`vpnctl up` needs no unit, and systemd knows nothing of it."""
    client.shell(f"systemctl disable --now {CLIENT}")
    client.shell("vpnctl up phone </dev/null")
    goes_through(client)
    client.apt("remove", "pyvpn")
    assert client.shell("pgrep -u pyvpn-client || true") == ""
    assert "pyvpn" not in client.shell(
        "ip link; nft list ruleset; ip rule; ip route show table all"
    )


def test_a_purge_leaves_nothing_but_the_users(server: System, client: System) -> None:
    """Not a file, not a unit; users stay, as Debian has it."""
    for system in (server, client):
        system.apt("purge", "pyvpn")
        assert "pyvpn" in system.shell("getent passwd pyvpn")
        assert system.shell("systemctl --failed --no-legend") == ""
        assert "pyvpn" not in files(system).replace("01pyvpn-test", "")
        assert "pyvpn" not in system.shell("ls -R /run /var/log")
    client.write("/root/after", files(client))
    new = client.shell("LC_ALL=C comm -13 /root/before /root/after")
    assert [line for line in new.splitlines() if line not in BACKUPS] == []


def test_traffic_is_outside_again(client: System) -> None:
    """The host is as it was before."""
    assert client.shell(f"curl -s --max-time 5 http://{WEB4}/").strip() == "203.0.113.3"
