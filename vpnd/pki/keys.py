"""Key pairs: the kinds we make and accept, their PEM form, and certificate requests."""

import os
from pathlib import Path
from typing import Literal, Protocol, get_args

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from vpnd.errors import ConfigError

KeyType = Literal["p256", "p384", "rsa3072", "rsa4096"]
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

KEY_TYPES: tuple[KeyType, ...] = get_args(KeyType)
RSA_EXPONENT = 65537
RSA_BITS = range(2048, 4097)  # below is weak, above costs the server too much per handshake
CURVES = ("secp256r1", "secp384r1")


def generate(key_type: KeyType) -> PrivateKey:
    """Return a new private key."""
    if key_type == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    if key_type == "p384":
        return ec.generate_private_key(ec.SECP384R1())
    return rsa.generate_private_key(RSA_EXPONENT, 3072 if key_type == "rsa3072" else 4096)


def signature_hash(key: PrivateKey) -> hashes.SHA256 | hashes.SHA384:
    """Return the hash whose strength goes with the key."""
    strong = isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size > 256
    return hashes.SHA384() if strong else hashes.SHA256()


def encode_key(key: PrivateKey) -> bytes:
    """Return a private key as unencrypted PKCS #8 PEM."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def encode_public_key(key: PublicKey) -> bytes:
    """Return a public key as SubjectPublicKeyInfo PEM."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


class _Encodable(Protocol):
    def public_bytes(self, encoding: Encoding, kind: PublicFormat, /) -> bytes: ...


def is_same_key(one: _Encodable, other: _Encodable) -> bool:
    """Return whether two public keys are the same one; cryptography before 40 has no `==`."""
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return one.public_bytes(*form) == other.public_bytes(*form)


def load_key(path: Path) -> PrivateKey:
    """Return the private key in a file that only its owner can read; raise ConfigError."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise ConfigError(f"{path}: others can read this key; chmod 600 it")
            return parse_key(file.read(), str(path))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc


def parse_key(pem: bytes, where: str) -> PrivateKey:
    """Return a private key from unencrypted PEM; raise ConfigError that begins with `where`."""
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{where}: not an unencrypted private key in PEM") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError(f"{where}: neither an EC nor an RSA key")
    return key


def load_public_key(path: Path) -> PublicKey:
    """Return the public key in a PEM file; raise ConfigError."""
    try:
        return parse_public_key(path.read_bytes(), str(path))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read ({exc.strerror})") from exc


def parse_public_key(pem: bytes, where: str) -> PublicKey:
    """Return a public key from PEM; raise ConfigError that begins with `where`."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{where}: not a public key in PEM") from exc
    return accepted(key, where)


def accepted(key: object, where: str) -> PublicKey:
    """Return `key` if its kind and size are ones we certify; raise ConfigError otherwise."""
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in CURVES:
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size in RSA_BITS:
        return key
    raise ConfigError(f"{where}: the key is neither EC P-256 or P-384 nor RSA of 2048 to 4096 bit")


def request(key: PrivateKey) -> bytes:
    """Return a certificate request in PEM that proves possession of `key` and asks no names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, signature_hash(key)).public_bytes(Encoding.PEM)


def requested_key(data: bytes) -> PublicKey:
    """Return the key of a certificate request, PEM or DER, whose maker has proved to possess it.

    Only the key is taken: names come from whoever decides on them.  Raises ConfigError.
    """
    is_pem = data.startswith(b"-----BEGIN")
    try:
        found = x509.load_pem_x509_csr(data) if is_pem else x509.load_der_x509_csr(data)
        if not found.is_signature_valid:
            raise ConfigError("the certificate request does not prove possession of its key")
        key = found.public_key()
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError("the certificate request cannot be read") from exc
    return accepted(key, "certificate request")
