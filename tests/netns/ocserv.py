"""Debian's ocserv, unpacked and not installed, in the server namespace of a test bed."""

import json
import signal
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

from tests.netns.bed import SERVER4
from tests.netns.namespace import Namespace
from tests.netns.openconnect import PEERS, fetch_peers
from tests.netns.process import Pid, Process

PORT = 443
NAME = "ocserv.example"
TARGET = "10.77.0.1"  # an address behind it, for transfers
# What Debian's ocserv.conf says where it matters to a peer; the rest are folders.
STOCK = {
    "auth": "plain[passwd={folder}/passwd]",
    "enable-auth": "certificate",
    "tcp-port": str(PORT),
    "udp-port": str(PORT),
    "run-as-user": "root",  # the sandbox wants a user and a chroot of its own
    "run-as-group": "root",
    "isolate-workers": "false",
    "socket-file": "{folder}/socket",
    "occtl-socket-file": "{folder}/occtl",
    "use-occtl": "true",
    "pid-file": "{folder}/pid",
    "server-cert": "{folder}/server.crt",
    "server-key": "{folder}/server.key",
    "ca-cert": "{folder}/ca.crt",
    "cert-user-oid": "2.5.4.3",
    "max-clients": "16",
    "max-same-clients": "2",
    "rate-limit-ms": "100",
    "keepalive": "32400",
    "dpd": "90",
    "mobile-dpd": "1800",
    "switch-to-tcp-timeout": "25",
    "try-mtu-discovery": "false",
    "tls-priorities": (
        "NORMAL:%SERVER_PRECEDENCE:%COMPAT:-VERS-SSL3.0:-VERS-TLS1.0:-VERS-TLS1.1:-VERS-TLS1.3"
    ),
    "auth-timeout": "240",
    "min-reauth-time": "300",
    "max-ban-score": "80",
    "cookie-timeout": "300",
    "deny-roaming": "false",
    "rekey-time": "172800",
    "rekey-method": "ssl",
    "device": "vpns",
    "predictable-ips": "true",
    "default-domain": "example.com",
    "ipv4-network": "192.168.1.0",
    "ipv4-netmask": "255.255.255.0",
    "dns": "192.168.1.1",
    "ping-leases": "false",
    "route": f"{TARGET}/32",
    "cisco-client-compat": "true",
    "dtls-legacy": "true",
}
TLS13 = {"tls-priorities": "NORMAL:%SERVER_PRECEDENCE"}


class Ocserv:
    """One ocserv with a user by password and a way to make client certificates."""

    process: Process

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self.folder = namespace.folder / "ocserv"

    def prepare(self) -> None:
        """Fetch the program; make certificates."""
        fetch_peers("ocserv")
        self.folder.mkdir(mode=0o755)
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        ca = certificate_of("test CA", self._ca_key, issuer_key=self._ca_key, is_ca=True)
        self.ca = ca.public_bytes(Encoding.PEM).decode()
        (self.folder / "ca.crt").write_text(self.ca)
        certificate, key = self._issue(NAME)
        (self.folder / "server.crt").write_text(certificate)
        (self.folder / "server.key").write_text(key)
        self.namespace.ip(f"address add {TARGET}/32 dev lo")

    def _issue(self, name: str) -> tuple[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certificate_of(name, key, issuer_key=self._ca_key)
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate.public_bytes(Encoding.PEM).decode(), private.decode()

    def add_user(self, name: str, password: str, *, groups: str = "") -> None:
        """Add a user who logs in by password."""
        argv = [str(PEERS / "bin/ocpasswd"), "-c", f"{self.folder}/passwd"]
        argv += ["-g", groups] if groups else []
        self.namespace.run(*argv, name, stdin=f"{password}\n{password}\n")

    def start(self, **overriding: str | tuple[str, ...]) -> None:
        """Start it and wait until it listens; options with `_` for `-`, some several times."""
        changed = {key.replace("_", "-"): value for key, value in overriding.items()}
        lines = [
            f"{key} = {_quoted(value.format(folder=self.folder))}"
            for key, written in (STOCK | changed).items()
            for value in ((written,) if isinstance(written, str) else written)
        ]
        (self.folder / "ocserv.conf").write_text("\n".join(lines) + "\n")
        self._run()

    def _run(self) -> None:
        program, config = str(PEERS / "bin/ocserv"), self.folder / "ocserv.conf"
        self.process = self.namespace.start("ocserv", program, "-f", "-d", "1", "-c", str(config))
        self.process.wait_for("sec-mod initialized")

    def restart(self) -> None:
        """Have it forget every session, and say good-bye to none of them, as a crash would."""
        (user,) = self.users()
        self.process.send(signal.SIGSTOP)  # so that no new worker takes the old one's place
        Pid.of(int(user["ID"])).send(signal.SIGKILL)
        self.process.kill()
        self._run()

    def disconnect(self, user: str) -> None:
        """Throw a user out."""
        self._occtl("disconnect", "user", user)

    def stop(self) -> None:
        self.process.stop()

    def profile(self, *, user: str = "", certificate: bool = False) -> dict[str, Any]:
        """Return a profile for this server: CA and name, as with any other server."""
        tls = {"ca": self.ca, "min_version": "1.2"}
        if certificate:
            tls["certificate"], tls["key"] = self._issue(user)
        remote = {"address": f"{SERVER4}:{PORT}", "server_name": NAME}
        client = {"user": user, "name": "tablet"}
        return {"client": client, "remotes": [remote], "tls": tls}

    def users(self) -> list[Mapping[str, Any]]:
        """Return what occtl knows of connected users."""
        said = self._occtl("--json", "show", "users")
        users: list[Mapping[str, Any]] = json.loads(said) if said.strip() else []
        return users

    def _occtl(self, *arguments: str) -> str:
        occtl = (str(PEERS / "bin/occtl"), "-s", str(self.folder / "occtl"))
        return self.namespace.run(*occtl, *arguments, check=False).stdout

    def kill_worker(self) -> None:
        """Kill the process that carries the only user, as a crash would."""
        (user,) = self.users()
        Pid.of(int(user["ID"])).send(signal.SIGKILL)


def _quoted(value: str) -> str:
    return f'"{value}"' if ":" in value or "[" in value else value


def certificate_of(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer_key: ec.EllipticCurvePrivateKey,
    is_ca: bool = False,
) -> x509.Certificate:
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    names = [x509.DNSName(NAME), x509.IPAddress(ip_address(SERVER4))]
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if name == NAME:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())
