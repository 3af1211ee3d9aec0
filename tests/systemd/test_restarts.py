"""Restarts that nobody notices, with systemd itself: what it keeps, and when it lets go of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.process import Process
from tests.systemd.system import System

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]
SERVER, CLIENT = "pyvpn-server", "pyvpn-client@phone"
BACK_S = 9.0  # three times what is promised
WATCHDOG = "[Service]\nWatchdogSec=4\n"
ECHO = """
import socket
with socket.create_server(("10.8.0.1", 7000)) as listener:
    print("ready", flush=True)
    while True:
        sock, _ = listener.accept()
        while data := sock.recv(4096):
            sock.sendall(data)
"""
TALK = """
import socket, time
sock = socket.create_connection(("10.8.0.1", 7000), timeout=60)
for number in range(1 << 30):
    sock.sendall(b"%8d" % number)
    assert int(sock.recv(8, socket.MSG_WAITALL)) == number
    print("echo", number, flush=True)
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def server(install: Callable[[str], System]) -> System:
    system = install("server")
    for unit in (SERVER, "pyvpn-client@"):
        system.write(f"/etc/systemd/system/{unit}.service.d/watchdog.conf", WATCHDOG)
    system.shell(f"systemctl daemon-reload; systemctl enable --now {SERVER}")
    return system


@pytest.fixture(scope="module")
def client(server: System, install: Callable[[str], System]) -> System:
    system = install("client")
    server.shell("cd /root && vpnctl client add phone")
    system.put(server.path("/root/phone.toml"), "/etc/pyvpn/client/")
    system.write("/etc/systemd/system/pyvpn-client@.service.d/watchdog.conf", WATCHDOG)
    system.shell(f"systemctl daemon-reload; systemctl enable --now {CLIENT}")
    system.wait_journal("^connected", unit=CLIENT)
    return system


@pytest.fixture(scope="module")
def talk(server: System, client: System) -> Iterator[Process]:
    """A TCP connection inside the tunnel, on which something is said 20 times a second."""
    echo = server.start("echo", "python3", "-c", ECHO)
    echo.wait_for("ready")
    talk = client.start("talk", "python3", "-c", TALK)
    talk.wait_for("^echo 5$")
    yield talk
    for process in (talk, echo):
        process.kill()


def session(server: System) -> dict[str, Any]:
    (found,) = json.loads(server.shell("vpnctl status --json"))["sessions"]
    assert isinstance(found, dict)
    return found


def standing(server: System, client: System) -> list[Any]:
    """Return what a restart must not change."""
    links = [
        json.loads(system.shell(f"ip -j addr show {name}"))[0]
        for system, name in ((server, "pyvpn0"), (client, "pyvpn10"))
    ]
    inner = session(server)
    indices = [(link["ifindex"], [a["local"] for a in link["addr_info"]]) for link in links]
    return [inner["id"], inner["address4"], inner["address6"], indices]


@pytest.mark.parametrize("unit", [SERVER, CLIENT])
@pytest.mark.parametrize(
    "how",
    [
        "systemctl restart {unit}",
        "systemctl kill --kill-whom=main --signal=KILL {unit}",
        "systemctl kill --kill-whom=main --signal=STOP {unit}",
        "systemctl restart pyvpn-helper {unit}",
    ],
    ids=["restart", "kill -9", "watchdog", "with the helper"],
)
def test_nobody_notices_a_restart(
    server: System, client: System, talk: Process, unit: str, how: str
) -> None:
    """The TCP connection inside goes on, over the same interfaces and the same session."""
    system = server if unit == SERVER else client
    before = standing(server, client)
    pid, since = system.property(unit, "MainPID"), client.cursor()
    system.shell(how.format(unit=unit))
    system.wait_until(
        f"test $(systemctl show -P MainPID {unit}) != {pid} && systemctl -q is-active {unit}"
    )
    mark = talk.mark()
    talk.wait_for("^echo", since=mark, timeout_s=BACK_S)
    assert standing(server, client) == before
    logged = client.journal("-u", CLIENT, f"--after-cursor={since}")
    assert "logging-in" not in logged
    assert talk.is_alive


def test_nobody_notices_an_upgrade(
    server: System, client: System, talk: Process, newer_package: Path
) -> None:
    """apt replaces the files and restarts what runs, one program after the other."""
    for unit, system in ((SERVER, server), (CLIENT, client)):
        before, since = standing(server, client), client.cursor()
        pid = system.property(unit, "MainPID")
        system.install(newer_package)
        assert system.property(unit, "MainPID") not in {pid, "0"}
        mark = talk.mark()
        talk.wait_for("^echo", since=mark, timeout_s=BACK_S)
        assert standing(server, client) == before
        assert "logging-in" not in client.journal("-u", CLIENT, f"--after-cursor={since}")


def test_a_client_that_is_stopped_says_good_bye(
    server: System, client: System, talk: Process
) -> None:
    """systemd says that it is no restart; the session is over and nothing is left."""
    talk.kill()
    since = server.cursor()
    client.shell(f"systemctl stop {CLIENT}")
    server.wait_journal("^session closed", unit=SERVER, since=since)
    assert "pyvpn10" not in client.shell("ip link")
    client.shell(f"systemctl start {CLIENT}")
    client.wait_journal("^connected", unit=CLIENT)


def test_a_server_that_is_stopped_leaves_nothing_and_its_clients_come_back(
    server: System, client: System
) -> None:
    """The interface, the ports and the rules go; the sessions are in the database."""
    before = session(server)
    since = client.cursor()
    server.shell(f"systemctl stop {SERVER}")
    server.wait_until("! ip link show pyvpn0")
    assert "pyvpn" not in server.shell("nft list tables")
    server.shell(f"systemctl start {SERVER}")
    client.wait_journal("^connected", unit=CLIENT, since=since)
    after = session(server)
    assert [after[key] for key in ("id", "address4")] == [
        before[key] for key in ("id", "address4")
    ]


def test_the_status_is_what_systemctl_shows(server: System, client: System) -> None:
    """It is kept current, and names where it serves."""
    server.wait_until(
        f"systemctl show -P StatusText {SERVER} | grep -q '^serving on .*:55555, 1 connected$'"
    )
    assert client.property(CLIENT, "StatusText").startswith("connected ")
