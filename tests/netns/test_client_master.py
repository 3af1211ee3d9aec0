"""`vpnd client` on a real host and helper, with a worker that plays a scene instead of talking.

What it sets up, what it shows, what it leaves behind, and how it ends.
"""

import itertools
import json
import os
import pwd
import shutil
import signal
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
        return self.host.run(*PYTHON, "vpnctl", *at, *arguments, check=False).stdout

    def to(self, address: str, uid: int = 0) -> str:
        """Return the link over which a user reaches an address."""
        argv = ("ip", "-j", "route", "get", address, "uid", str(uid))
        link: str = json.loads(self.host.run(*argv).stdout)[0]["dev"]
        return link

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
    assert host.to("203.0.113.9") == "pyvpn10"
    assert host.to("203.0.113.9", pwd.getpwnam(USER).pw_uid) == "eth0"
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


HOSTILE = f"""
up = {LINK_UP.strip()}
from dataclasses import replace
for changes in (
    dict(address4="198.51.100.1"),
    dict(address4="192.0.2.2"),
    dict(address4="127.0.0.1"),
    dict(address4="10.8.0.2; reboot"),
    dict(split_include=["10.0.0.0/8"] * 10000),
):
    reply = await ask(replace(up, **changes))
    assert reply.refusal, changes
reply = await ask(replace(
    up, mtu=65535, banner="a\\x1b[2Jb", default_domain="x\\ny",
    split_include=["127.0.0.0/8", "198.51.100.0/24", "192.0.2.2/32", "10.9.0.0/16", "junk"],
))
assert reply.refusal == "", reply
tell(ClientState("connected", "", "192.0.2.2", 1, 0.0))
"""


def test_a_hostile_server_gets_what_is_its_own(host: Host) -> None:
    """This host's addresses, its networks, the gateway, loopback: refused with a reason."""
    vpnd = host.client(HOSTILE)
    vpnd.wait_for("INFO connected", timeout_s=WAIT_S)
    connection = host.status()["client"]
    assert connection["routes"] == ["10.8.0.0/24", "10.9.0.0/16"]
    told = "\n".join(connection["refused"])
    for text in ("MTU 65535", "127.0.0.0/8", "198.51.100.0/24", "192.0.2.2/32", "junk"):
        assert text in told
    assert host.to("198.51.100.2") == "eth1"
    assert host.to("10.9.1.1") == "pyvpn10"
    assert "\x1b" not in vpnd.text()
    assert vpnd.stop() == 0


def children(process: Process) -> list[int]:
    """Return the numbers of its children; a bare machine has no `pgrep`."""
    number = process.pid.number
    return [int(c) for c in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def test_what_was_to_go_inside_waits_while_there_is_no_server(host: Host) -> None:
    """Neither a lost connection nor a dead worker opens the way past the tunnel."""
    lost = 'tell(ClientState("reconnecting", "no answer", "192.0.2.2", 1, 0.0))\n'
    vpnd = host.client(CONNECT + lost)
    vpnd.wait_for("INFO reconnecting", timeout_s=WAIT_S)
    status = host.status()
    assert status["state"] == "down"
    assert status["client"]["reason"] == "no answer"
    assert host.to("203.0.113.9") == "pyvpn10"
    for pid in children(vpnd):
        os.kill(pid, signal.SIGKILL)
    vpnd.wait_for("worker died", timeout_s=WAIT_S)
    assert host.to("203.0.113.9") == "pyvpn10"
    assert vpnd.stop() == 0


def test_kill_9_of_vpnd_is_undone_by_the_helper(host: Host) -> None:
    """The connection stands for the state: without vpnd there is no tunnel to wait for."""
    vpnd = host.client(CONNECT)
    vpnd.wait_for("INFO connected", timeout_s=WAIT_S)
    vpnd.kill()
    host.helper.wait_until(
        lambda: None if host.journals() else True,
        watched=host.run_dir,
        what="an empty journal",
        timeout_s=WAIT_S,
    )


def test_a_helper_that_was_killed_is_asked_again(host: Host) -> None:
    """Traffic goes on meanwhile; afterwards the new one knows what to undo."""
    vpnd = host.client(CONNECT)
    vpnd.wait_for("INFO connected", timeout_s=WAIT_S)
    host.helper.kill()
    assert host.to("203.0.113.9") == "pyvpn10"
    host.start()
    vpnd.wait_for("helper is back", timeout_s=WAIT_S)
    assert host.to("203.0.113.9") == "pyvpn10"
    assert vpnd.stop() == 0


def test_an_end_that_the_server_means_ends_the_program(host: Host) -> None:
    """With the reason and the exit status that the worker gives."""
    vpnd = host.client(CONNECT + 'tell(Ended("your certificate is revoked", 1))\n')
    assert vpnd.wait(WAIT_S) == 1
    assert "revoked" in vpnd.text()


def test_a_wrong_password_and_then_a_right_one_from_a_descriptor(host: Host) -> None:
    """Neither reaches the log, nor the environment and arguments of any process."""
    scene = """
fields = [FormInput("username", "text", "User"), FormInput("password", "password", "Password")]
reply = await ask(Prompt("Log in", None, fields))
assert reply.values == {"username": "bob", "password": "wrong-one"}, "first"
reply = await ask(Prompt("Log in", "Login failed", fields[1:]))
assert reply.values == {"password": "right-one"}, "second"
"""
    secrets = b"wrong-one\nright-one\n"
    arguments = ("--password-fd", "0", "--user", "bob")
    vpnd = host.client(scene + CONNECT, *arguments, stdin=secrets)
    vpnd.wait_for("INFO connected", timeout_s=WAIT_S)
    for pid in (vpnd.pid.number, *children(vpnd)):
        for name in ("cmdline", "environ"):
            assert b"-one" not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert "-one" not in vpnd.text()
    assert vpnd.stop() == 0


def test_two_clients_have_interfaces_of_their_own(host: Host) -> None:
    """The first that is free, unless the profile says which."""
    first = host.client("")
    first.wait_for("vpnd is ready.*pyvpn10", timeout_s=WAIT_S)
    other = host.folder / "other"
    other.mkdir()
    shutil.chown(other, USER)
    second = host.client("", "--run-dir", str(other))
    second.wait_for("vpnd is ready.*pyvpn11", timeout_s=WAIT_S)
    third = host.client("", "--interface", "pyvpn11", "--run-dir", str(other))
    assert third.wait(WAIT_S) == 1
    assert first.stop() == second.stop() == 0


def test_a_script_replaces_the_helper_for_addresses_and_routes(host: Host) -> None:
    """It gets the environment; the helper makes the interface and nothing more."""
    out = host.folder / "client" / "out"
    script = host.folder / "script"
    script.write_text(
        f'#!/bin/sh\necho "$reason $TUNDEV $INTERNAL_IP4_ADDRESS" >>{out}\n'
        f"id -un >{out}.user\ngrep -h ^Cap /proc/self/status >>{out}.user\n"
    )
    script.chmod(0o755)
    vpnd = host.client(CONNECT, "--script", str(script))
    vpnd.wait_for("INFO connected", timeout_s=WAIT_S)
    assert host.to("203.0.113.9") == "eth0"
    assert vpnd.stop() == 0
    assert out.read_text().splitlines() == [
        "pre-init pyvpn10 ",
        "connect pyvpn10 10.8.0.2",
        "disconnect pyvpn10 10.8.0.2",
    ]
    user, *capabilities = Path(f"{out}.user").read_text().splitlines()
    assert user == USER
    assert {int(line.split()[1], 16) for line in capabilities} == {0}


def test_a_script_that_needs_privileges_is_told_that_it_has_none(host: Host) -> None:
    """A stock vpnc-script changes the network itself: that ends with a sentence, not half done."""
    script = host.folder / "script"
    script.write_text('#!/bin/sh\n[ "$reason" = pre-init ] || exec ip link set "$TUNDEV" up\n')
    script.chmod(0o755)
    refused = f"reply = await ask({LINK_UP.strip()})\ntell(Ended(reply.refusal, 1))\n"
    vpnd = host.client(refused, "--script", str(script))
    assert vpnd.wait(WAIT_S) == 1
    vpnd.wait_for("Operation not permitted")
    vpnd.wait_for("for good:.*it runs without privileges.*go without --script")
