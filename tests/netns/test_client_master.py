"""`vpnd client` on a real host and helper, with a worker that plays a scene instead of talking.

What it sets up, what it shows, what it leaves behind, and how it ends.
"""

import itertools
import json
import os
import pwd
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from tests.netns.helper_host import HelperHost
from tests.netns.namespace import PYTHON, ROOT
from tests.netns.process import Process
from tests.netns.snapshot import differences, snapshot

pytestmark = pytest.mark.netns
numbers = itertools.count(700)
USER = "pyvpn-client"
PIN = "pin-sha256:" + "A" * 43 + "="
REMOTE = {"address": "192.0.2.2:55555", "pins": [PIN]}
LINK_UP = """
LinkUp(address4="10.8.0.2", prefix4=24, address6="", prefix6=0, mtu=1400,
       split_include=[], split_exclude=[], dns=["10.8.0.1"], default_domain="example.org",
       remote="192.0.2.2:55555", banner="")
"""
CONNECT = f"""
tell(ClientState("connecting", "", "192.0.2.2:55555", 1, 0.0))
reply = await ask({LINK_UP.strip()})
assert reply.refusal == "", reply
tell(ClientState("connected", "", "192.0.2.2:55555", 1, 0.0))
"""
PROGRAM = """
import sys
sys.executable = sys.argv.pop(1)
from vpnd.main import main
sys.exit(main())
"""
WAIT_S = 20.0


class Host(HelperHost):
    """A host with a helper, where `vpnd client` runs."""

    def prepare(self) -> None:
        shutil.copy(ROOT / "etc/pyvpn/helper.toml", self.folder / "helper.toml")
        account = pwd.getpwnam(USER)
        self.run_folder = self.folder / "client"
        self.run_folder.mkdir(mode=0o755)
        os.chown(self.run_folder, account.pw_uid, account.pw_gid)
        self.host.ip("route add default via 192.0.2.2", "route add default via 2001:db8:1::2")

    def profile(self, **tables: Any) -> Path:
        """Write a profile; return its file."""
        helper = {"socket": str(self.socket)}
        path = self.folder / "phone.toml"
        path.write_text(tomli_w.dumps({"remotes": [REMOTE], "helper": helper} | tables))
        return path

    def client(
        self, scene: str, *arguments: str, stdin: bytes | None = None, **tables: Any
    ) -> Process:
        """Start `vpnd client` with a worker that plays `scene`."""
        play, worker = self.folder / "scene.py", self.folder / "worker"
        play.write_text(scene)
        script = ROOT / "tests/client/scripted_worker.py"
        worker.write_text(f'#!/bin/sh\nexec {sys.executable} -P {script} {play} "$@"\n')
        worker.chmod(0o755)
        return self.host.start(
            "vpnd", sys.executable, "-P", "-c", PROGRAM, str(worker), "client",
            str(self.profile(**tables)), "--run-dir", str(self.run_folder), *arguments,
            user=USER, stdin=stdin,
        )  # fmt: skip

    def vpnctl(self, *arguments: str) -> str:
        at = ("--run-dir", str(self.run_folder))
        return self.host.run(*PYTHON, "vpnctl", *at, *arguments).stdout

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.vpnctl("--json", "status"))
        return status


@pytest.fixture
def host() -> Iterator[Host]:
    """A host whose network is afterwards what it was before."""
    host = Host(next(numbers))
    try:
        host.build()
        host.prepare()
        before = snapshot(host.host)
        host.start()
        yield host
        host.helper.stop()
        assert differences(before, snapshot(host.host)) == []
        assert host.journals() == []
    finally:
        host.close()


def test_what_the_server_gives_is_set_up_shown_and_taken_back(host: Host) -> None:
    """Address, MTU, default route; the status of a client; Ctrl-C leaves nothing behind."""
    vpnd = host.client(CONNECT)
    vpnd.wait_for("INFO connected", timeout_s=WAIT_S)
    shown = host.host.run("ip", "-j", "addr", "show", "pyvpn10").stdout
    (link,) = json.loads(shown)
    assert link["mtu"] == 1400
    assert [a["local"] for a in link["addr_info"] if a["family"] == "inet"] == ["10.8.0.2"]
    to = host.host.run("ip", "-j", "route", "get", "203.0.113.9", "uid", "0").stdout
    assert json.loads(to)[0]["dev"] == "pyvpn10"
    outside = str(pwd.getpwnam(USER).pw_uid)
    to = host.host.run("ip", "-j", "route", "get", "203.0.113.9", "uid", outside).stdout
    assert json.loads(to)[0]["dev"] == "eth0"
    status = host.status()
    assert (status["role"], status["state"]) == ("client", "up")
    assert status["interface"] == "pyvpn10"
    assert status["client"]["state"] == "connected"
    assert status["client"]["routes"] == ["0.0.0.0/0"]
    assert status["client"]["blocks_ipv6"] is True
    assert status["client"]["dns"] == ["10.8.0.1"]
    assert status["sessions"][0]["key_exchange_group"] == "X25519MLKEM768"
    assert vpnd.stop() == 0


def test_vpnctl_can_end_it(host: Host) -> None:
    """`vpnctl down` is asked over the socket, and the program ends by itself."""
    vpnd = host.client(CONNECT)
    vpnd.wait_for("INFO connected", timeout_s=WAIT_S)
    host.vpnctl("down")
    assert vpnd.wait(WAIT_S) == 0
    assert "disconnected by vpnctl" in vpnd.text()
