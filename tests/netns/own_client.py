"""pyvpn's own client in a client namespace of a bed, through its real command line."""

import json
import os
import pwd
import shutil
from pathlib import Path
from typing import Any

from tests.netns.namespace import PYTHON, ROOT, Namespace
from tests.netns.process import Process

USER = "pyvpn-client"
READY_S = 20.0
CONNECTED = "INFO connected"


class OwnClient:
    """A helper (root) and `vpnd client` (user pyvpn-client) on folders of their own."""

    helper: Process
    vpnd: Process

    def __init__(self, namespace: Namespace, name: str = "own") -> None:
        self.namespace = namespace
        self.name = f"{namespace.name.rpartition('-')[2]}-{name}"
        self.folder = namespace.folder / self.name
        self.socket = self.folder / "helper.sock"
        self.run_dir = self.folder / "run"

    def prepare(self) -> None:
        """Make the folders."""
        self.folder.mkdir(mode=0o755)
        self.run_dir.mkdir(mode=0o755)
        account = pwd.getpwnam(USER)
        os.chown(self.run_dir, account.pw_uid, account.pw_gid)
        shutil.copy(ROOT / "etc/pyvpn/helper.toml", self.folder / "helper.toml")

    def start_helper(self) -> None:
        """Start the helper and wait for its socket."""
        self.socket.unlink(missing_ok=True)
        self.helper = self.namespace.start(
            f"{self.name}-helper", *PYTHON, "helper", "--socket", str(self.socket),
            "--run-dir", str(self.folder / "helper"), "--policy", str(self.folder / "helper.toml"),
        )  # fmt: skip
        self.helper.wait_for_path(self.socket, timeout_s=READY_S)

    def start(
        self, profile: str | Path, *arguments: str, password: str = "", wait: bool = True
    ) -> Process:
        """Start `vpnd client` with a profile that user pyvpn-client gets to read, or a URL."""
        if isinstance(profile, Path):
            copy = self.folder / profile.name
            shutil.copy(profile, copy)
            shutil.chown(copy, USER)
        else:
            copy = Path(profile)
        options = ["--run-dir", str(self.run_dir), "--helper-socket", str(self.socket)]
        if password:
            options += ["--password-fd", "0"]
        self.vpnd = self.namespace.start(
            f"{self.name}-vpnd", *PYTHON, "vpnd", "client",
            profile if isinstance(profile, str) else str(copy), *options, *arguments,
            user=USER, stdin=password.encode() or None,
        )  # fmt: skip
        if wait:
            self.vpnd.wait_for(CONNECTED, timeout_s=READY_S)
        return self.vpnd

    def status(self) -> dict[str, Any]:
        """Return what `vpnctl --json status` says."""
        where = ("--run-dir", str(self.run_dir))
        said = self.namespace.run(*PYTHON, "vpnctl", *where, "--json", "status", check=False)
        status: dict[str, Any] = json.loads(said.stdout)
        return status

    def stop(self) -> None:
        """End the client, then its helper."""
        self.vpnd.stop()
        self.helper.stop()
