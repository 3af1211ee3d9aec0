"""Keys and certificates of a server and its clients, made once and read by many tests."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import NameOID
from OpenSSL import SSL

from vpnd.pki import ca, keys
from vpnd.pki.reading import load_certificates
from vpnd.protocol.tls_stream import server_context

LONG_AGO = datetime.now(UTC) - timedelta(days=300)
BEFORE = datetime.now(UTC) - timedelta(days=200)  # a certificate of 90 days has ended


@dataclass(frozen=True)
class ClientFiles:
    """A client's certificate chain and key, PEM files."""

    certificate: Path
    key: Path

    @property
    def leaf(self) -> x509.Certificate:
        return load_certificates(self.certificate.read_bytes())[0]


class TestSite:
    """One CA, its server, and whatever clients a test asks for."""

    __test__ = False

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.authority = ca.create(directory, "p256", LONG_AGO)
        self.certificate, self.key = directory / "server.crt", directory / "server.key"
        self.client_ca = directory / "ca.crt"
        private = keys.generate("p256")
        self.key.write_bytes(keys.encode_key(private))
        chain = self.authority.sign_server(
            keys.request(private), ["vpn.example.org"], datetime.now(UTC)
        )
        self.certificate.write_bytes(chain)
        self.client_ca.write_bytes(self.authority.ca_pem)

    def client(
        self, user: str = "alice", name: str = "laptop", *, now: datetime | None = None
    ) -> ClientFiles:
        """Return the files of a new client certificate, made at `now`."""
        private = keys.generate("p256")
        chain = self.authority.sign_client(
            keys.request(private), user, name, now or datetime.now(UTC), foreign=False
        )
        stem = f"{user}-{name}-{private.private_numbers().private_value % 10**9}"  # type: ignore[union-attr]
        files = ClientFiles(self._directory / f"{stem}.crt", self._directory / f"{stem}.key")
        files.certificate.write_bytes(chain)
        files.key.write_bytes(keys.encode_key(private))
        return files

    def context(self, *, allow_tls12: bool = False, chacha_first: bool = False) -> SSL.Context:
        return server_context(
            certificate=str(self.certificate),
            key=str(self.key),
            client_ca=str(self.client_ca),
            allow_tls12=allow_tls12,
            chacha_first=chacha_first,
        )


def certificate_of(key_pem: bytes, begin: datetime) -> bytes:
    """Return a self-signed certificate for a key, PEM, valid from `begin` for some days."""
    key = load_pem_private_key(key_pem, None)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vpn.example.org")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    builder = builder.public_key(key.public_key())  # type: ignore[arg-type]  # it is an EC key
    builder = builder.serial_number(1).not_valid_before(begin)
    builder = builder.not_valid_after(begin + timedelta(days=9))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]
