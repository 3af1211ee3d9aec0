"""What the master is told of the certificate that a client has shown."""

from contextlib import suppress

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vpnd.auth.contract import CertificateFacts
from vpnd.errors import Malformed
from vpnd.pki.certificates import parse_client_identity, serial_text
from vpnd.pki.reading import not_after
from vpnd.wire import renewal


def facts(certificate: x509.Certificate | None) -> CertificateFacts | None:
    """Return what a verified client certificate says, None if there is none."""
    if certificate is None:
        return None
    user = client = None
    with suppress(Malformed):
        user, client = parse_client_identity(certificate)
    end = not_after(certificate).timestamp()
    return CertificateFacts(user, client, serial_text(certificate), end)


def der(certificate: x509.Certificate | None) -> str:
    """Return the certificate itself, base64, "" if there is none."""
    return "" if certificate is None else renewal.encode(certificate.public_bytes(Encoding.DER))
