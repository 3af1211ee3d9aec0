"""The user's story, on freshly installed systems, in the order and with the words of the README.

Each test goes on where the one before it ended.
"""

from pathlib import Path

import pytest

from tests.netns.bed import WEB4, WEB6
from tests.systemd.bed import Bed
from tests.systemd.system import System

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]
SERVER4, SERVER6 = "203.0.113.2", "2001:db8:2::2"


@pytest.fixture(scope="module")
def server(bed: Bed, roots: Path) -> System:
    return bed.add("server", roots / "bare")


@pytest.fixture(scope="module")
def client(bed: Bed, server: System, roots: Path, package: Path) -> System:
    del server  # has the first address
    system = bed.add("client", roots / "ready")
    system.install(package)
    return system


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
    client.shell("systemctl enable --now pyvpn-client@phone")
    client.wait_journal("^connected", unit="pyvpn-client@phone")
    assert client.shell(f"curl -s http://{WEB4}/").strip() == SERVER4
    assert client.shell(f"curl -s http://[{WEB6}]/").strip() == SERVER6
