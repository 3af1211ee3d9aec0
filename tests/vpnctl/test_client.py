"""`vpnctl client` against a daemon in a process of its own, over its real socket."""

import argparse
import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, pkcs12

from tests.ipc.memory_backend import MemoryBackend
from vpnctl.commands import client
from vpnctl.connection import DaemonAbsent, Refused, call
from vpnctl.homes import Home
from vpnctl.pki_init import initialise
from vpnd.errors import ConfigError, VpnError
from vpnd.ipc.api import Client, Profile
from vpnd.ipc.server import serve
from vpnd.pki.certificates import parse_client_identity, serial_text
from vpnd.pki.child import Account
from vpnd.pki.keys import is_same_key
from vpnd.pki.reading import not_after

DAY = 86400
CA = Account("the CA's user", 64321, 64322) if os.geteuid() == 0 else Account.current()


class Place:
    """A host with a PKI and a running daemon, all in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.out = root / "out"
        self.out.mkdir()
        (root / "run").mkdir()
        made = self.make_pki("ca", "state")
        self.pins: list[str] = made["pins"]
        self.profile = Profile(
            server_name="vpn.example.org",
            remotes=["vpn.example.org:55555", "192.0.2.1:443"],
            pins=self.pins,
            ca_pem=(root / "state" / "ca.crt").read_text(),
        )

    def make_pki(self, ca: str, state: str) -> dict[str, list[str]]:
        return initialise(
            ["vpn.example.org"],
            "p256",
            ca_home=Home(self.root / ca, CA),
            server_home=Home(self.root / state, Account.current()),
        )

    def args(self, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        client.register(parser)
        given = vars(parser.parse_args(words))
        fixed: dict[str, object] = {
            "run_dir": str(self.root / "run"),
            "ca_dir": str(self.root / "ca"),
        }
        fixed |= {"json": False, "table": False}
        return argparse.Namespace(**(fixed | given))

    def add(self, *words: str) -> None:
        args = self.args("add", "--output", str(self.out), *words)
        assert client.add(args, CA) == 0

    def clients(self) -> list[Client]:
        return call(self.args("list"), lambda daemon: daemon.list_clients())

    def files(self) -> set[str]:
        return {path.name for path in self.out.iterdir()}


class Backend(MemoryBackend):
    """The daemon of a `Place`."""

    def __init__(self, profile: Profile) -> None:
        super().__init__()
        self.profile = profile

    async def get_profile(self) -> Profile:
        return self.profile


def run_daemon(path: Path, profile: Profile, ready: int) -> None:
    async def main() -> None:
        server = await serve(path, Backend(profile))
        os.close(ready)
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        await stopped.wait()
        server.close()
        await server.wait_closed()

    asyncio.run(main())


@pytest.fixture
def place() -> Iterator[Place]:
    """The daemon is forked, not a thread: the commands fork, which threads do not survive."""
    root = Path(tempfile.mkdtemp(prefix="pyvpn-t-"))
    root.chmod(0o755)
    made = Place(root)
    socket = root / "run" / "vpnd.sock"
    listening, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            run_daemon(socket, made.profile, ready)
        finally:
            os._exit(0)
    os.close(ready)
    os.read(listening, 1)  # its end; the socket is there before it is listened on
    os.close(listening)
    yield made
    os.kill(pid, signal.SIGTERM)
    os.waitpid(pid, 0)
    shutil.rmtree(root)


def test_files_are_private_and_agree_with_the_store(place: Place) -> None:
    """Profile, bundle and store name one certificate, and only the caller can read its key."""
    place.add("laptop", "--user", "alice")
    assert place.files() == {"laptop.toml", "laptop.p12"}
    for path in place.out.iterdir():
        found = path.lstat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.geteuid(), 0o600)
    profile = tomllib.loads((place.out / "laptop.toml").read_text())
    assert profile["client"] == {"user": "alice", "name": "laptop"}
    assert profile["remotes"] == [
        {"address": address, "server_name": "vpn.example.org", "pins": place.pins}
        for address in ("vpn.example.org:55555", "192.0.2.1:443")
    ]
    leaf = x509.load_pem_x509_certificate(profile["tls"]["certificate"].encode())
    key = load_pem_private_key(profile["tls"]["key"].encode(), None)
    assert is_same_key(key.public_key(), leaf.public_key())
    assert parse_client_identity(leaf) == ("alice", "laptop")
    known = place.clients()[0]
    assert (known.user, known.name, known.serial) == ("alice", "laptop", serial_text(leaf))
    assert known.not_after == not_after(leaf).timestamp()
    assert abs(known.not_after - time.time() - 90 * DAY) < 3600


def test_openssl_accepts_the_profile(place: Place) -> None:
    """The chain in the profile is enough for a server that knows only the root."""
    place.add("laptop")
    profile = tomllib.loads((place.out / "laptop.toml").read_text())["tls"]
    (place.out / "chain").write_text(profile["certificate"])
    (place.out / "ca").write_text(profile["ca"])
    said = subprocess.run(
        ["openssl", "verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", "ca",
         "-untrusted", "chain", "chain"],
        cwd=place.out, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "chain: OK\n"


def test_password_is_shown_once_and_opens_the_bundle(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is in the output and in no file."""
    place.add("laptop")
    out = capsys.readouterr().out
    password = next(line.split()[1] for line in out.splitlines() if line.startswith("password"))
    bundle = pkcs12.load_pkcs12((place.out / "laptop.p12").read_bytes(), password.encode())
    assert bundle.cert is not None
    assert parse_client_identity(bundle.cert.certificate) == ("laptop", "laptop")
    assert len(bundle.additional_certs) == 2
    assert password not in (place.out / "laptop.toml").read_text()
    command = next(line for line in out.splitlines() if line.startswith("connect"))
    assert all(f"--servercert {pin}" in command for pin in place.pins)
    assert password not in command


def test_foreign_client_lives_two_years(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """It says so, to people and to programs."""
    args = place.args("add", "phone", "--foreign", "--output", str(place.out))
    args.json = True
    assert client.add(args, CA) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["foreign"] is True
    assert abs(shown["not_after"] - time.time() - 730 * DAY) < 3600
    assert shown["not_after"] == place.clients()[0].not_after
    assert shown["openconnect"][:3] == ["openconnect", "--certificate", shown["bundle"]]


def test_existing_file_stops_everything(place: Place) -> None:
    """A profile holds a key: overwriting one would lock a device out."""
    (place.out / "laptop.p12").write_text("mine")
    with pytest.raises(VpnError, match=r"laptop\.p12: exists and will not be overwritten"):
        place.add("laptop")
    assert place.files() == {"laptop.p12"}
    assert place.clients() == []


def test_refused_registration_leaves_no_file(place: Place) -> None:
    """A certificate that the store does not know must not lie around."""
    place.add("laptop")
    other = place.root / "other"
    other.mkdir()
    place.out = other
    with pytest.raises(Refused, match="'laptop' exists already"):
        place.add("laptop")
    assert place.files() == set()
    assert len(place.clients()) == 1


def test_absent_daemon_leaves_no_file(place: Place) -> None:
    """Exit status 3 and one helpful line."""
    args = place.args("add", "laptop", "--output", str(place.out))
    args.run_dir = str(place.root / "nowhere")
    with pytest.raises(DaemonAbsent, match="vpnd is not running"):
        client.add(args, CA)
    assert place.files() == set()


def test_ca_of_another_server_is_noticed(place: Place) -> None:
    """Two instances on one host, and their directories mixed up."""
    place.make_pki("ca2", "state2")
    with pytest.raises(VpnError, match="not the CA that the running server trusts"):
        place.add("laptop", "--ca-dir", str(place.root / "ca2"))
    assert (place.files(), place.clients()) == (set(), [])


@pytest.mark.parametrize("words", [("../x",), ("Laptop",), ("laptop", "--user", "a/b")])
def test_bad_names_are_refused(place: Place, words: tuple[str, ...]) -> None:
    """Names become files and parts of a URI."""
    with pytest.raises(ConfigError, match="cannot be used as a name"):
        place.add(*words)
    assert place.files() == set()


def test_missing_ca_or_output_is_explained(place: Place) -> None:
    """Each sentence names the remedy."""
    with pytest.raises(VpnError, match="there is no CA yet; make it with vpnctl pki init"):
        place.add("laptop", "--ca-dir", str(place.root / "none"))
    place.out = place.root / "none"
    with pytest.raises(VpnError, match="no such directory; create it or name another with"):
        place.add("laptop")


def test_list_and_revoke_follow_the_store(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """One verb ends a device, and the list keeps it for the record."""
    place.add("laptop", "--user", "alice")
    place.add("phone", "--foreign")
    capsys.readouterr()
    assert client.run(place.args("list")) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["USER", "CLIENT", "STATE", "UNTIL", "SESSIONS", "SERIAL"]
    assert first.split()[:3] == ["alice", "laptop", "valid"]
    assert second.split()[:3] == ["phone", "phone", "foreign"]
    assert client.run(place.args("revoke", "laptop")) == 0
    assert capsys.readouterr().out == "client laptop is revoked; 1 session ended\n"
    args = place.args("list")
    args.json = True
    assert client.run(args) == 0
    assert json.loads(capsys.readouterr().out)["clients"][0]["revoked_at"] is not None
    with pytest.raises(Refused, match="there is no client 'nobody'"):
        client.run(place.args("revoke", "nobody"))
