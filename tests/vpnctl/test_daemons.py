"""Which daemon `vpnctl status` and `vpnctl down` mean: the server, a client, or all there are."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.ipc.memory_backend import SESSION, STATUS, MemoryBackend
from tests.vpnctl.program import Daemon, serve_in_thread, vpnctl
from vpnctl import daemons
from vpnctl.commands import down
from vpnd.ipc.api import ConnectionStatus

CLIENT = replace(
    STATUS,
    role="client",
    listen=[],
    keys=None,
    interface="pyvpn10",
    client=ConnectionStatus(
        name="phone",
        state="connected",
        remote="vpn.example.org",
        routes=["0.0.0.0/0"],
        exclude=["192.168.1.0/24"],
        blocks_ipv6=True,
        refused=["route 127.0.0.0/8 refused: no network behind a server"],
        dns=["10.8.0.1"],
        attempt=3,
        next_try_s=7,
    ),
    sessions=[replace(SESSION, user="carol")],
)


class Leaving(MemoryBackend):
    """A client that is gone once it was asked to end."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(CLIENT)
        self._socket = run_dir / "vpnd.sock"

    async def disconnect(self) -> None:
        await super().disconnect()
        self._socket.rename(self._socket.with_name("gone"))


class Host:
    """Run directories of a server and of clients, and what answers there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack

    def serve(self, name: str, backend: MemoryBackend | None = None) -> Daemon:
        path = self._folder / name
        path.mkdir()
        serving = serve_in_thread(path, backend or Leaving(path))
        return self._stack.enter_context(serving)


@pytest.fixture
def host(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(daemons, "SERVER_RUN_DIR", run_dir / "pyvpn-server")
    with ExitStack() as stack:
        yield Host(run_dir, stack)


def test_status_shows_server_and_clients(host: Host) -> None:
    """A machine may be both; who looks wants to see it."""
    host.serve("pyvpn-server", MemoryBackend())
    host.serve("pyvpn-client-phone")
    shown = vpnctl("--table", "status")
    assert shown.returncode == 0
    assert "server" in shown.stdout
    assert "alice" in shown.stdout
    assert "carol" in shown.stdout
    found = json.loads(vpnctl("--json", "status").stdout)
    assert [each["role"] for each in found["daemons"]] == ["server", "client"]


def test_status_of_a_lone_client_is_its_own_object(host: Host) -> None:
    """The same schema as a server's, whoever else there is not."""
    host.serve("pyvpn-client-phone")
    assert json.loads(vpnctl("--json", "status").stdout)["client"]["name"] == "phone"
    assert json.loads(vpnctl("--json", "status", "phone").stdout)["role"] == "client"


@pytest.mark.parametrize("form", [["--table"], []])
def test_a_client_shows_what_matters_to_it(host: Host, form: list[str]) -> None:
    """State, server, routes, what was refused; nothing of users and listeners."""
    host.serve("pyvpn-client-phone")
    shown = vpnctl(*form, "status").stdout
    for text in (
        "phone",
        "connected",
        "vpn.example.org",
        "0.0.0.0/0",
        "192.168.1.0/24",
        "127.0.0.0/8 refused",
        "10.8.0.1",
        "pyvpn10",
    ):
        assert text in shown, text
    if form:
        assert "listening" not in shown
        assert "next in 7 s" in shown


def test_status_is_down_when_one_is(host: Host) -> None:
    """A script that asks once hears of any trouble."""
    host.serve("pyvpn-server", MemoryBackend())
    host.serve("pyvpn-client-phone", MemoryBackend(replace(CLIENT, state="down")))
    assert vpnctl("status").returncode == 1
    assert vpnctl("status", "tablet").returncode == 3
    said = vpnctl("status", "tablet").stderr
    assert "systemctl start pyvpn-client@tablet, or vpnctl up tablet" in said


def test_status_without_any_daemon_is_one_line(host: Host) -> None:
    """Also where a dead client left its socket."""
    done = vpnctl("status")
    assert done.returncode == 3
    assert "vpnd is not running" in done.stderr
    daemon = host.serve("pyvpn-client-phone")
    (daemon.run_dir / "vpnd.sock").unlink()
    (daemon.run_dir / "vpnd.sock").touch()
    assert vpnctl("status").returncode == 3


def test_down_ends_the_only_client(host: Host) -> None:
    """And waits until it is gone."""
    daemon = host.serve("pyvpn-client-phone")
    done = vpnctl("down")
    assert done.returncode == 0, done.stderr
    assert "phone is down" in done.stdout
    assert daemon.backend.disconnects == 1


def test_down_tells_programs(host: Host) -> None:
    """In one form with all commands."""
    host.serve("pyvpn-client-phone")
    assert json.loads(vpnctl("down", "--json").stdout) == {"name": "phone", "state": "down"}


def test_down_asks_which(host: Host) -> None:
    """Never the wrong one, and no traceback for none."""
    assert "0 clients are up" in vpnctl("down").stderr
    phone, tablet = (host.serve(f"pyvpn-client-{name}") for name in ("phone", "tablet"))
    done = vpnctl("down")
    assert done.returncode == 2
    assert "phone, tablet" in done.stderr
    assert vpnctl("down", "tablet").returncode == 0
    assert (phone.backend.disconnects, tablet.backend.disconnects) == (0, 1)


def test_down_says_when_it_does_not_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than wait for ever."""
    monkeypatch.setattr(down, "END_TIMEOUT_S", 0.1)
    host.serve("pyvpn-client-phone", MemoryBackend(CLIENT))
    done = vpnctl("down")
    assert done.returncode == 1
    assert "still runs" in done.stderr


@pytest.mark.parametrize("name", ["../pyvpn-server", "", "a/b", "x" * 65, "Phone"])
def test_a_name_is_no_path(host: Host, name: str) -> None:
    """It becomes part of one."""
    del host
    done = vpnctl("down", name)
    assert done.returncode == 2
    assert "no name of a client" in done.stderr


def test_up_of_a_profile_that_is_none_is_one_line(host: Host, tmp_path: Path) -> None:
    """Before any directory is made."""
    del host
    for profile in (str(tmp_path / "absent.toml"), "nobodys-name"):
        done = vpnctl("up", profile)
        assert done.returncode == 2
        assert "no such file" in done.stderr
        assert len(done.stderr.splitlines()) == 1
