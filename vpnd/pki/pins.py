"""Pins of public keys: SHA-256 over the SubjectPublicKeyInfo, as openconnect writes them.

A pin outlives certificates: renewal keeps the key.  A server announces two pins, of the key in
use and of the one that follows it, so that changing keys locks nobody out (RFC 7469's backup
pin).
"""

import base64
import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vpnd.pki.certificates import load_chain
from vpnd.pki.keys import PublicKey, accepted, load_public_key

PREFIX = "pin-sha256:"


def key_pin(key: PublicKey) -> str:
    """Return "pin-sha256:BASE64" of a public key."""
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return PREFIX + base64.b64encode(hashlib.sha256(info).digest()).decode()


def certificate_pin(certificate: x509.Certificate) -> str:
    """Return the pin of a certificate's key."""
    return key_pin(accepted(certificate.public_key(), "certificate"))


def server_pins(certificate_file: Path, next_key_file: Path) -> tuple[str, ...]:
    """Return the server's pins, the key in use first; the next key's file may be absent.

    Raises ConfigError.
    """
    current = certificate_pin(load_chain(certificate_file)[0])
    if not next_key_file.exists():
        return (current,)
    return (current, key_pin(load_public_key(next_key_file)))
