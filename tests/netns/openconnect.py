"""Stock openconnect, as Debian ships it, in a client namespace of a test bed."""

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.netns.bed import CACHE, PORT, SERVER4
from tests.netns.daemons import Certificate
from tests.netns.namespace import ROOT, Namespace
from tests.netns.process import Process

PEERS = CACHE / "peers"
SCRIPT = Path(__file__).with_name("vpnc-script")
CONNECT_S = 30.0  # openconnect waits up to 12 s for DTLS before it sets up the tunnel


def fetch_peers(*packages: str) -> None:
    """Download what is missing of Debian's programs that the tests talk to."""
    if not all((PEERS / f"{package}.done").exists() for package in packages):
        subprocess.run([ROOT / "tests/peers.sh", PEERS, *packages], check=True)


class OpenConnect:
    """One openconnect process and what it told its script."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self.folder = folder

    @classmethod
    def start(
        cls,
        namespace: Namespace,
        *,
        pins: Sequence[str],
        certificate: Certificate | None = None,
        user: str | None = None,
        passwords: Sequence[str] = (),
        dtls: bool = True,
        server: str = SERVER4,
        port: int = PORT,
        options: Sequence[str] = (),
    ) -> "OpenConnect":
        """Start it with a certificate, or with a user and one password for each prompt."""
        fetch_peers("openconnect")
        name = f"openconnect-{namespace.name}"
        folder = namespace.folder / name
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        host = f"[{server}]" if ":" in server else server
        argv = [str(PEERS / "bin/openconnect"), "--protocol=anyconnect", "--non-inter"]
        argv += ["--verbose", "--timestamp", "--interface=tun0", f"--script={SCRIPT}"]
        argv += [f"--servercert={pin}" for pin in pins]
        if certificate is not None:
            argv += [f"--certificate={certificate.p12}"]
            argv += [f"--key-password={certificate.password}"]
        if user is not None:
            argv += [f"--user={user}", "--passwd-on-stdin"]
        if not dtls:
            argv.append("--no-dtls")
        process = namespace.start(
            name,
            *argv,
            *options,
            f"https://{host}:{port}",
            stdin="".join(f"{password}\n" for password in passwords).encode(),
            env={"PYVPN_SCRIPT_DIR": str(folder)},
        )
        return cls(process, folder)

    def wait_connected(self, timeout_s: float = CONNECT_S) -> Mapping[str, str]:
        """Wait until the tunnel is set up and return the environment its script was given."""
        self.process.wait_for("vpnc-script: connect done", timeout_s=timeout_s)
        return self.environment("connect")

    def wait_dtls(self, *, since: int | None = None, timeout_s: float = CONNECT_S) -> str:
        """Wait until packets may travel over UDP and return the cipher suite."""
        established = r"Established DTLS connection.*Ciphersuite (.*)\."
        return self.process.wait_for(established, since=since, timeout_s=timeout_s)[1]

    def wait_reconnected(self, *, since: int, timeout_s: float = 60.0) -> None:
        """Wait until it came back by its cookie after it had lost its TLS channel."""
        self.process.wait_for("vpnc-script: reconnect done", since=since, timeout_s=timeout_s)

    def environment(self, reason: str) -> Mapping[str, str]:
        """Return the environment that its script was given for a reason."""
        pairs = (self.folder / f"{reason}.env").read_text().split("\0")
        return dict(pair.split("=", 1) for pair in pairs if pair)

    def disconnect(self) -> int:
        """Say good-bye (the cookie ends too) and return the exit status."""
        return self.process.stop(signal.SIGINT)

    def vanish(self) -> None:
        """Die without a word; the session stays resumable."""
        self.process.kill()
