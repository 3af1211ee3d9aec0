"""PKCS #12 bundles (RFC 7292) for clients of other makers: key, certificate and its chain.

Encrypted with AES-256-CBC (PBES2) and authenticated with HMAC-SHA-256, which GnuTLS 3.7,
OpenSSL 1.1 and the phones of the last years read.
"""

import secrets
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import PrivateFormat
from cryptography.hazmat.primitives.serialization.pkcs12 import (
    PBES,
    serialize_key_and_certificates,
)

from vpnd.pki.keys import PrivateKey

# Without l, 1, o and 0, which are taken for one another when typed from a screen.
ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
PASSWORD_GROUPS = 5  # of four letters with 5 bits each: 100 bits
# The password is random, so rounds need not slow a guesser down; phones compute them at each use.
ROUNDS = 10_000


def new_password() -> str:
    """Return a random password of 100 bits in groups that can be read aloud."""
    groups = ("".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(PASSWORD_GROUPS))
    return "-".join(groups)


def encode_bundle(
    name: str,
    key: PrivateKey,
    certificate: x509.Certificate,
    chain: Sequence[x509.Certificate],
    password: str,
) -> bytes:
    """Return a .p12 file; `chain` holds the CA certificates above, the nearest first."""
    encryption = (
        PrivateFormat.PKCS12.encryption_builder()
        .kdf_rounds(ROUNDS)
        .key_cert_algorithm(PBES.PBESv2SHA256AndAES256CBC)
        .hmac_hash(SHA256())
        .build(password.encode())
    )
    return serialize_key_and_certificates(name.encode(), key, certificate, chain, encryption)
