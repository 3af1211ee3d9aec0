"""What the certificates of each kind contain (RFC 5280 section 4.2).

root CA      10 years   signs issuing CAs; its key may be taken off the machine
issuing CA    2 years   signs leaves for TLS and nothing else
server       90 days    DNS names and addresses
client       90 days    URI:pyvpn:user/U/client/C; 2 years for foreign clients
"""

from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID


@dataclass(frozen=True, slots=True)
class CertificateProfile:
    """One kind of certificate."""

    lifetime: timedelta
    """How long it is valid; never longer than its issuer."""

    path_length: int | None
    """For a CA how many CAs may follow below it; None for a leaf."""

    purposes: tuple[x509.ObjectIdentifier, ...]
    """What the key may be used for in TLS; () does not restrict."""


ROOT = CertificateProfile(timedelta(days=3652), 1, ())
ISSUING = CertificateProfile(
    timedelta(days=730), 0, (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
)
SERVER = CertificateProfile(timedelta(days=90), None, (ExtendedKeyUsageOID.SERVER_AUTH,))
CLIENT = CertificateProfile(timedelta(days=90), None, (ExtendedKeyUsageOID.CLIENT_AUTH,))
FOREIGN_CLIENT = CertificateProfile(timedelta(days=730), None, CLIENT.purposes)
