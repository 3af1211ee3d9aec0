"""The VPNs that are measured: each sets a tunnel up across a link of its own.

`start` returns once packets can flow; then `target` is the server's address in the tunnel and
`pids` are the processes of both ends that carry packets.
"""

import os
import re
import shutil
from abc import ABC, abstractmethod
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.bench.link import Link
from tests.netns.bed import SERVER4
from tests.netns.client import Client, device_profile
from tests.netns.daemons import Daemons
from tests.netns.ocserv import TARGET as OCSERV_TARGET
from tests.netns.ocserv import Ocserv, certificate_of
from tests.netns.openconnect import PEERS, OpenConnect
from tests.netns.process import Process
from vpnd.pki.pins import server_pins

PASSWORD = "correct horse"
CONTROL = Path("/var/run/wireguard")  # of wireguard-go, for wg
INNER_CLIENT, INNER_SERVER = "10.99.0.2", "10.99.0.1"


def program(name: str) -> str | None:
    """Return the path of a peer's program: unpacked by tests/peers.sh, or installed."""
    unpacked = PEERS / "bin" / name
    if unpacked.exists():
        return str(unpacked)
    return shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")


class System(ABC):
    """One VPN across one link."""

    packages: tuple[str, ...] = ()
    """What Debian calls what it needs."""
    programs: tuple[str, ...] = ()

    def __init__(self, name: str, link: Link) -> None:
        self.name = name
        self.link = link
        self.target = INNER_SERVER

    @classmethod
    def missing(cls) -> str:
        """Return how to install what is missing, "" when nothing is."""
        if all(program(name) for name in cls.programs):
            return ""
        return f"apt-get install {' '.join(cls.packages)}"

    @abstractmethod
    def start(self) -> None:
        """Set the tunnel up."""

    @abstractmethod
    def processes(self) -> list[Process]:
        """Return the programs of both ends."""

    def version(self) -> str:
        """Return the version as the program tells it."""
        return ""

    def detail(self) -> str:
        """Return what is in use while the tunnel stands: channel, cipher."""
        return ""

    def pids(self) -> list[int]:
        """Return the processes that carry packets, children included."""
        return [pid for process in self.processes() for pid in _family(process.pid.number)]


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


class Bare(System):
    """No tunnel: what the link itself does."""

    def start(self) -> None:
        self.target = SERVER4

    def processes(self) -> list[Process]:
        return []


class Pyvpn(System):
    """Our client and our server."""

    python: tuple[str, ...] | None = None
    """Another interpreter, or another tree, than this one's."""

    def start(self) -> None:
        self.daemons = Daemons(self.link.server)
        if self.python:
            self.daemons.python = self.python
        self.daemons.prepare()
        self.daemons.start()
        self.target = next(a for a in self.daemons.addresses() if ":" not in a)
        self._connect()

    def _connect(self) -> None:
        self.client = Client(self.link.client)
        self.client.python = self.daemons.python
        self.client.prepare()
        self.client.start_helper()
        self.client.connect(device_profile(self.daemons, "bench"))
        self.client.wait_dtls()

    def processes(self) -> list[Process]:
        return [self.daemons.vpnd, self.client.vpnd]

    def detail(self) -> str:
        session = self.daemons.sessions()[0]
        return f"{session['channel']} {session['cipher']}"


class PyvpnStock(Pyvpn):
    """Stock openconnect on our server."""

    packages = ("openconnect",)
    programs = ("openconnect",)
    dtls = True

    def _connect(self) -> None:
        self.stock = OpenConnect.start(
            self.link.client,
            pins=self.daemons.pins(),
            certificate=self.daemons.add_client("bench"),
            dtls=self.dtls,
        )
        self.stock.wait_connected()
        if self.dtls:
            self.stock.wait_dtls()

    def processes(self) -> list[Process]:
        return [self.daemons.vpnd, self.stock.process]


class PyvpnStockTls(PyvpnStock):
    """The same without UDP."""

    dtls = False


class OcservStock(System):
    """Debian's ocserv and openconnect."""

    packages = ("ocserv", "openconnect")
    programs = ("ocserv", "openconnect")
    dtls = True

    def start(self) -> None:
        self.ocserv = Ocserv(self.link.server)
        self.ocserv.prepare()
        self.ocserv.add_user("bench", PASSWORD)
        self.ocserv.start()
        folder = self.ocserv.folder
        self.stock = OpenConnect.start(
            self.link.client,
            pins=server_pins(folder / "server.crt", folder / "no-next.pub"),
            user="bench",
            passwords=(PASSWORD,),
            dtls=self.dtls,
            server=f"{SERVER4}",
            port=443,
        )
        self.stock.wait_connected()
        if self.dtls:
            self._cipher = self.stock.wait_dtls()
        self.target = OCSERV_TARGET

    def processes(self) -> list[Process]:
        return [self.ocserv.process, self.stock.process]

    def version(self) -> str:
        said = self.link.server.run(str(program("ocserv")), "--version", check=False)
        return _first_version(said.stdout + said.stderr)

    def detail(self) -> str:
        return f"DTLS {self._cipher}" if self.dtls else "TLS"


class OcservStockTls(OcservStock):
    """The same without UDP."""

    dtls = False


class OpenVpn(System):
    """OpenVPN in userspace over UDP."""

    packages = ("openvpn",)
    programs = ("openvpn",)

    def start(self) -> None:
        openvpn, folder = str(program("openvpn")), self.link.folder / "openvpn"
        folder.mkdir()
        prints = [_self_signed(folder, end) for end in ("server", "client")]
        common = ["--dev", "tun0", "--proto", "udp", "--port", "1194", "--topology", "subnet"]
        common += ["--data-ciphers", "AES-256-GCM", *self._no_dco(openvpn)]
        self._server = self.link.server.start(
            "openvpn-server", openvpn, *common, "--server", "10.99.0.0", "255.255.255.0",
            "--dh", "none",
            *_own(folder, "server"), "--peer-fingerprint", prints[1],
        )  # fmt: skip
        self._server.wait_for("Initialization Sequence Completed")
        self._client = self.link.client.start(
            "openvpn-client", openvpn, *common, "--client", "--remote", SERVER4, "--nobind",
            *_own(folder, "client"), "--peer-fingerprint", prints[0],
        )  # fmt: skip
        self._client.wait_for("Initialization Sequence Completed")

    def _no_dco(self, openvpn: str) -> tuple[str, ...]:
        said = self.link.server.run(openvpn, "--help", check=False).stdout
        return ("--disable-dco",) if "--disable-dco" in said else ()

    def processes(self) -> list[Process]:
        return [self._server, self._client]

    def version(self) -> str:
        said = self.link.server.run(str(program("openvpn")), "--version", check=False).stdout
        return _first_version(said)

    def detail(self) -> str:
        return "UDP AES-256-GCM"


class WireGuardGo(System):
    """wireguard-go, in the version that is at hand."""

    packages = ("wireguard-go", "wireguard-tools")
    programs = ("wireguard-go", "wg")
    path: str | None = None
    """Another binary than the one found."""

    def start(self) -> None:
        wg, folder = str(program("wg")), self.link.folder / "wireguard"
        folder.mkdir(mode=0o700)
        CONTROL.mkdir(mode=0o755, exist_ok=True)  # to be watched
        self._running = []
        public = {}
        # The control sockets of all namespaces lie in one folder: the names must differ.
        names = {"server": f"wgs{os.getpid()}", "client": f"wgc{os.getpid()}"}
        for end in names:
            private = self.link.server.run(wg, "genkey").stdout
            (folder / end).write_text(private)
            public[end] = self.link.server.run(wg, "pubkey", stdin=private).stdout.strip()
        for end, peer, own in (
            ("server", "client", INNER_SERVER),
            ("client", "server", INNER_CLIENT),
        ):
            namespace, link = getattr(self.link, end), names[end]
            go = self.path or str(program("wireguard-go"))
            process = namespace.start(f"wireguard-{end}", go, "-f", link)
            process.wait_for_path(CONTROL / f"{link}.sock")
            self._running.append(process)
            other = INNER_CLIENT if end == "server" else INNER_SERVER
            to = ("endpoint", f"{SERVER4}:51820") if end == "client" else ()
            port = ("listen-port", "51820") if end == "server" else ()
            namespace.run(
                wg, "set", link, *port, "private-key", str(folder / end),
                "peer", public[peer], *to, "allowed-ips", f"{other}/32",
            )  # fmt: skip
            namespace.ip(f"address add {own}/24 dev {link}", f"link set {link} up")

    def processes(self) -> list[Process]:
        return self._running

    def version(self) -> str:
        go = self.path or str(program("wireguard-go"))
        return _first_version(self.link.server.run(go, "--version", check=False).stdout)

    def detail(self) -> str:
        return "UDP ChaCha20-Poly1305"


def _first_version(said: str) -> str:
    found = re.search(r"\d+(\.\d+)+", said)
    return found[0] if found else "unknown"


def _self_signed(folder: Path, name: str) -> str:
    """Make NAME.crt and NAME.key; return the fingerprint as OpenVPN wants it."""
    key = ec.generate_private_key(ec.SECP256R1())
    made: x509.Certificate = certificate_of(name, key, issuer_key=key)
    (folder / f"{name}.crt").write_bytes(made.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / f"{name}.key").write_bytes(private)
    return made.fingerprint(hashes.SHA256()).hex(":").upper()


def _own(folder: Path, name: str) -> tuple[str, ...]:
    return ("--cert", str(folder / f"{name}.crt"), "--key", str(folder / f"{name}.key"))
