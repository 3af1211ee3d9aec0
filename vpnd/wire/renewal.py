"""The fields by which a client of ours gets its certificate renewed, beside its CONNECT.

    X-Pyvpn-Renew: base64 of a certificate request (RFC 2986), DER      client -> server
    X-Pyvpn-Certificate: base64 of a certificate, DER                   server -> client
                         one field each, the client's own first

The request is signed with the key of the certificate that the client shows in TLS, and is for
that key.  The answer comes with the same CONNECT when there is one already, else with a later
one: whoever signs is another process.
"""

import base64
import binascii
from collections.abc import Sequence

from vpnd.errors import Malformed

REQUEST_FIELD = "X-Pyvpn-Renew"
CERTIFICATE_FIELD = "X-Pyvpn-Certificate"
MAX_REQUEST = 2048  # bytes; with an RSA key of 4096 bit it has 1,100
MAX_CERTIFICATE = 4096  # bytes; with RSA keys of 4096 bit it has 1,700
MAX_CERTIFICATES = 4  # the client's, the issuing CA's, and room


def parse_request(value: str | None) -> bytes:
    """Return the request in a CONNECT, b"" where there is none.  Raises Malformed."""
    return b"" if value is None else _decode(value, MAX_REQUEST, REQUEST_FIELD)


def parse_certificates(values: Sequence[str]) -> tuple[bytes, ...]:
    """Return the certificates in the answer to a CONNECT.  Raises Malformed."""
    if len(values) > MAX_CERTIFICATES:
        raise Malformed(f"{CERTIFICATE_FIELD}: more than {MAX_CERTIFICATES} certificates")
    return tuple(_decode(value, MAX_CERTIFICATE, CERTIFICATE_FIELD) for value in values)


def encode(data: bytes) -> str:
    """Return the value of either field."""
    return base64.b64encode(data).decode()


def _decode(value: str, at_most: int, name: str) -> bytes:
    if len(value) > 4 * (at_most // 3 + 1):
        raise Malformed(f"{name}: of more than {at_most} bytes")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise Malformed(f"{name}: not base64")
    return data
