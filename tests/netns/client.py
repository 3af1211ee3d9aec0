"""Our own client in a client namespace of a test bed: vpnd, and a helper of its own."""

import json
import os
import pwd
import re
import shutil
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli_w

from tests.netns.bed import PORT, SERVER4
from tests.netns.daemons import SERVER_NAME, Daemons
from tests.netns.namespace import PYTHON, ROOT, Namespace
from tests.netns.process import BedError, Process

USER = "pyvpn-client"
INTERFACE = "pyvpn10"
READY_S = 20.0
CONNECT_S = 30.0
POLL_S = 0.2  # between two looks at the status: nobody tells when it changes
Profile = dict[str, Any]


def endpoint(address: str, port: int = PORT) -> str:
    """Return "HOST:PORT" as profiles say it."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def device_profile(
    daemons: Daemons, name: str, *, user: str = "", server: str = SERVER4
) -> Profile:
    """Make a client with a certificate; return its profile, aimed at an address: no DNS here."""
    folder = daemons.folder / "profiles"
    daemons.vpnctl("client", "add", name, "--output", str(folder), "--user", user or name)
    profile = tomllib.loads((folder / f"{name}.toml").read_text())
    for remote in profile["remotes"]:
        remote["address"] = endpoint(server)
    return profile


def person_profile(daemons: Daemons, user: str) -> Profile:
    """Return the profile of a user who logs in by password."""
    pins = list(daemons.pins())
    remote = {"address": endpoint(SERVER4), "server_name": SERVER_NAME, "pins": pins}
    return {"client": {"user": user}, "remotes": [remote]}


class Client:
    """`vpnd client` and the helper it asks, on folders of their own."""

    helper: Process
    vpnd: Process
    python: Sequence[str] = PYTHON
    """The interpreter both run in; a benchmark compares several."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.folder = namespace.folder / f"pyvpn-{namespace.name}"
        self.run_dir = self.folder / "run"
        self.state_dir = self.folder / "state"
        self.socket = self.folder / "helper.sock"
        self.profile = self.folder / "profile.toml"

    def prepare(self) -> None:
        """Make the folders."""
        self._account = pwd.getpwnam(USER)
        self.folder.mkdir(mode=0o755)
        (self.folder / "helper").mkdir(mode=0o700)
        self.run_dir.mkdir(mode=0o755)
        self.state_dir.mkdir(mode=0o700)
        for folder in (self.run_dir, self.state_dir):
            os.chown(folder, self._account.pw_uid, self._account.pw_gid)
        shutil.copy(ROOT / "etc/pyvpn/helper.toml", self.folder / "helper.toml")

    def start_helper(self) -> None:
        """Start pyvpn-helper and wait for its socket."""
        self.socket.unlink(missing_ok=True)
        self.helper = self.namespace.start(f"helper-{self.folder.name}", *self._helper_argv())
        self.helper.wait_for_path(self.socket, timeout_s=READY_S)

    def undo(self) -> None:
        """What `./run.sh clean` does when everything was killed."""
        self.namespace.run(*self._helper_argv(), "--undo")

    def wait_undone(self) -> None:
        """Wait until the helper has undone everything its journals name."""
        journals = self.folder / "helper"
        self.helper.wait_until(
            lambda: None if any(journals.glob("pyvpn*.json")) else True,
            watched=journals,
            what="an empty journal",
            timeout_s=READY_S,
        )

    def start(
        self, profile: Mapping[str, Any], *arguments: str, passwords: Sequence[str] = ()
    ) -> None:
        """Start vpnd with a profile; passwords are its answers, one after the other."""
        helper = {"socket": str(self.socket), **profile.get("helper", {})}
        self.profile.write_text(tomli_w.dumps({**profile, "helper": helper}))
        self.profile.chmod(0o600)
        os.chown(self.profile, self._account.pw_uid, self._account.pw_gid)
        secrets = ("--password-fd", "0") if passwords else ()
        argv = (
            *self.python,
            "vpnd",
            "client",
            str(self.profile),
            f"--run-dir={self.run_dir}",
            f"--state-dir={self.state_dir}",
            f"--interface={INTERFACE}",
            *secrets,
            *arguments,
        )
        self._launch(argv, "".join(f"{password}\n" for password in passwords).encode())

    def _launch(self, argv: Sequence[str], stdin: bytes) -> None:
        name = f"vpnd-{self.folder.name}"
        self.vpnd = self.namespace.start(name, *argv, user=USER, stdin=stdin)

    def connect(self, profile: Mapping[str, Any], *, passwords: Sequence[str] = ()) -> None:
        """Start vpnd and wait until packets flow."""
        self.start(profile, passwords=passwords)
        self.wait_connected()

    def wait_connected(
        self, *, since: int | None = None, timeout_s: float = CONNECT_S
    ) -> Mapping[str, Any]:
        """Wait until it says so (again, since a mark); return the status."""
        self.vpnd.wait_for(r"INFO connected\b", since=since, timeout_s=timeout_s)
        return self.status()

    def wait_state(self, *states: str, timeout_s: float = CONNECT_S) -> Mapping[str, Any]:
        """Wait until its status names one of these states; return what it tells of it."""
        self.vpnd.wait_for("vpnd is ready", timeout_s=READY_S)
        deadline = time.monotonic() + timeout_s
        while (connection := self.connection)["state"] not in states:
            if time.monotonic() > deadline or not self.vpnd.is_alive:
                raise BedError(f"{self.vpnd.name}: not {' or '.join(states)}: {self.vpnd.log}")
            time.sleep(POLL_S)
        return connection

    def wait_dtls(self, *, timeout_s: float = CONNECT_S) -> None:
        """Wait until packets travel over UDP."""
        self._wait_channel("DTLS", timeout_s)

    def wait_tls(self, *, timeout_s: float = CONNECT_S) -> None:
        """Wait until packets travel over TCP."""
        self._wait_channel("TLS", timeout_s)

    def _wait_channel(self, channel: str, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.session()["channel"] != channel:
            if time.monotonic() > deadline or not self.vpnd.is_alive:
                raise BedError(f"{self.vpnd.name}: no packets over {channel}: {self.vpnd.log}")
            time.sleep(POLL_S)

    def stop(self) -> int:
        """End vpnd as Ctrl-C does; return its exit status."""
        return self.vpnd.stop()

    def vpnctl(self, *arguments: str, check: bool = True) -> str:
        """Run vpnctl on this client."""
        at = f"--run-dir={self.run_dir}"
        return self.namespace.run(*self.python, "vpnctl", at, *arguments, check=check).stdout

    def status(self) -> dict[str, Any]:
        """Return what `vpnctl --json status` says."""
        status: dict[str, Any] = json.loads(self.vpnctl("--json", "status", check=False))
        return status

    @property
    def connection(self) -> dict[str, Any]:
        """State, reason, attempt... of the status."""
        connection: dict[str, Any] = self.status()["client"]
        return connection

    def session(self) -> dict[str, Any]:
        """Return the session of the status; a channel of "" when there is none."""
        sessions: list[dict[str, Any]] = self.status()["sessions"]
        return sessions[0] if sessions else {"channel": ""}

    def link(self) -> dict[str, Any]:
        """Return the interface as `ip` shows it: `mtu`, and its addresses as `inner`."""
        shown = self.namespace.run("ip", "-j", "addr", "show", INTERFACE).stdout
        (link,) = json.loads(shown)
        addresses = (a for a in link["addr_info"] if a["scope"] != "link")
        inner = {f"{address['local']}/{address['prefixlen']}" for address in addresses}
        return {**link, "inner": inner}

    def link_is_up(self) -> bool:
        """Whether the interface is there, set up or not."""
        return self.namespace.run("ip", "link", "show", INTERFACE, check=False).returncode == 0

    def cpu_s(self) -> float:
        """Return the seconds of CPU that vpnd has taken, its worker included."""
        pids = [self.vpnd.pid.number]
        children = Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split()
        ticks = 0
        for pid in (*pids, *map(int, children)):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime, proc(5)
        return ticks / os.sysconf("SC_CLK_TCK")

    def device_to(self, address: str, *, user: str = "root") -> str:
        """Return the link that packets of a user to an address leave by."""
        uid = str(pwd.getpwnam(user).pw_uid)
        found = self.namespace.run("ip", "-j", "route", "get", address, "uid", uid).stdout
        device: str = json.loads(found)[0]["dev"]
        return device

    def logins(self) -> int:
        """Return how often it has logged in since it was started."""
        return len(re.findall(r"INFO logging-in\b", self.vpnd.text()))

    def _helper_argv(self) -> tuple[str, ...]:
        options = ["--socket", str(self.socket), "--run-dir", str(self.folder / "helper")]
        return (*self.python, "helper", *options, "--policy", str(self.folder / "helper.toml"))


def new_client(namespace: Namespace) -> Client:
    """Return a client that is ready to be started."""
    client = Client(namespace)
    client.prepare()
    client.start_helper()
    return client
