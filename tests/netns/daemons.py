"""pyvpn's two programs in a namespace, set up and driven through their real command lines."""

import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from tests.netns.namespace import PYTHON, ROOT, Namespace
from tests.netns.process import BedError, Process
from vpnd.pki.pins import server_pins

USER, CA_USER = "pyvpn", "pyvpn-ca"
SERVER_NAME = "vpn.example"  # in the certificate; clients come by address and check the pin
READY_S = 20.0
Config = Mapping[str, Mapping[str, object]]


@dataclass(frozen=True)
class Certificate:
    """A client's certificate and key as stock clients take it."""

    p12: Path
    password: str


class Daemons:
    """pyvpn-helper (root) and vpnd (user pyvpn) on folders of their own."""

    helper: Process
    vpnd: Process
    python: Sequence[str] = PYTHON
    """The interpreter both run in; a benchmark compares several."""

    def __init__(self, namespace: Namespace, config: Config | None = None) -> None:
        self.namespace = namespace
        self.folder = namespace.folder
        self.config_file = self.folder / "etc/server.toml"
        self.socket = self.folder / "helper.sock"
        self.config = config or {}

    def prepare(self) -> None:
        """Make folders, configuration and PKI."""
        for name, owner, mode in (
            ("etc", None, 0o755),
            ("helper", None, 0o700),
            ("profiles", None, 0o700),
            ("state", USER, 0o700),
            ("run", USER, 0o755),
            ("ca", CA_USER, 0o700),
        ):
            _make_folder(self.folder / name, owner, mode)
        self.configure(self.config)
        shutil.copy(ROOT / "etc/pyvpn/helper.toml", self.folder / "etc/helper.toml")
        self.vpnctl("pki", "init", "--name", SERVER_NAME)

    def configure(self, config: Config) -> None:
        """Write server.toml: the given tables, with the helper's socket added."""
        helper = {"socket": str(self.socket), **config.get("helper", {})}
        self.config_file.write_text(tomli_w.dumps({**config, "helper": helper}))

    def start(self) -> None:
        """Start both and wait until vpnd is ready."""
        self.start_helper()
        self.start_vpnd()

    def start_helper(self) -> None:
        """Start pyvpn-helper and wait for its socket."""
        self.socket.unlink(missing_ok=True)
        self.helper = self.namespace.start("helper", *self._helper_argv())
        self.helper.wait_for_path(self.socket, timeout_s=READY_S)

    def wait_undone(self) -> None:
        """Wait until the helper has undone everything its journals name."""
        journals = self.folder / "helper"
        self.helper.wait_until(
            lambda: None if any(journals.glob("pyvpn*.json")) else True,
            watched=journals,
            what="an empty journal",
            timeout_s=READY_S,
        )

    def undo(self) -> None:
        """What `./run.sh clean` does when everything was killed."""
        self.namespace.run(*self._helper_argv(), "--undo")

    def start_vpnd(self, *, wait: bool = True) -> None:
        """Start vpnd as user pyvpn without any privilege and wait until it is ready."""
        self.vpnd = self.namespace.start("vpnd", *self._vpnd_argv(), user=USER)
        if wait:
            self.vpnd.wait_for("vpnd is ready", timeout_s=READY_S)

    def stop(self) -> None:
        """Stop vpnd, then the helper, as `./run.sh server` does on Ctrl-C."""
        self.vpnd.stop()
        self.helper.stop()

    def vpnctl(
        self,
        *arguments: str,
        stdin: str | None = None,
        check: bool = True,
        user: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run vpnctl on this bed's folders."""
        folders = [f"--{name}-dir={self.folder / name}" for name in ("run", "state", "ca")]
        return self.namespace.run(
            *self.python, "vpnctl", *folders, *arguments, stdin=stdin, check=check, user=user
        )

    def status(self) -> dict[str, Any]:
        """Return what `vpnctl --json status` says."""
        status: dict[str, Any] = json.loads(self.vpnctl("--json", "status").stdout)
        return status

    def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions of the status."""
        sessions: list[dict[str, Any]] = self.status()["sessions"]
        return sessions

    def add_user(self, name: str, password: str) -> None:
        """Add a user who logs in by password."""
        self.vpnctl("user", "add", name, "--password-stdin", stdin=f"{password}\n")

    def add_client(self, name: str, *arguments: str) -> Certificate:
        """Make a client and its certificate for stock clients."""
        folder = self.folder / "profiles"
        to = ("--output", str(folder))
        said = self.vpnctl("--json", "client", "add", name, "--foreign", *to, *arguments)
        made = json.loads(said.stdout)
        return Certificate(Path(made["bundle"]), made["bundle_password"])

    def pins(self) -> tuple[str, ...]:
        """Return the server's pins, of the key in use and of the next one."""
        state = self.folder / "state"
        return server_pins(state / "server.crt", state / "server-next.pub")

    def addresses(self) -> list[str]:
        """Return the server's own addresses in the tunnel, without prefix length."""
        return [address.partition("/")[0] for address in self.status()["addresses"]]

    def _helper_argv(self) -> tuple[str, ...]:
        options = ["--socket", str(self.socket), "--run-dir", str(self.folder / "helper")]
        return (*self.python, "helper", *options, "--policy", str(self.folder / "etc/helper.toml"))

    def _vpnd_argv(self) -> tuple[str, ...]:
        folders = [f"--{name}-dir={self.folder / name}" for name in ("run", "state")]
        return (*self.python, "vpnd", "server", f"--config={self.config_file}", *folders)


def _make_folder(path: Path, owner: str | None, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)
    if owner is not None:
        try:
            account = pwd.getpwnam(owner)
        except KeyError:
            raise BedError(f"there is no user {owner}: start this through ./run.sh") from None
        os.chown(path, account.pw_uid, account.pw_gid)
