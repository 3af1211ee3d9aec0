"""Certificates as the library has read them, in one way for all its generations.

cryptography gives dates with their time zone from 42 on, and reads several certificates at once
from 39 on, and checks who issued one from 40 on.  Debian 12 has 38.
"""

from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

_HAS_UTC = hasattr(x509.Certificate, "not_valid_after_utc")
_READS_MANY = hasattr(x509, "load_pem_x509_certificates")
_CHECKS_ISSUERS = hasattr(x509.Certificate, "verify_directly_issued_by")
_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"


def not_before(certificate: x509.Certificate) -> datetime:
    """Return when a certificate begins."""
    if _HAS_UTC:
        return certificate.not_valid_before_utc
    return certificate.not_valid_before.replace(tzinfo=UTC)


def not_after(certificate: x509.Certificate) -> datetime:
    """Return when a certificate ends."""
    if _HAS_UTC:
        return certificate.not_valid_after_utc
    return certificate.not_valid_after.replace(tzinfo=UTC)


def next_update(revoked: x509.CertificateRevocationList) -> datetime | None:
    """Return when a revocation list says it is replaced, None if it does not."""
    if _HAS_UTC:
        return revoked.next_update_utc
    end = revoked.next_update
    return end.replace(tzinfo=UTC) if end else None


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Return whether `issuer` has the name and the key that a certificate was signed with.

    Nothing else is looked at: not the dates, nor whether it may sign.
    """
    try:
        if _CHECKS_ISSUERS:
            certificate.verify_directly_issued_by(issuer)
        else:
            _check_issuer(certificate, issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _check_issuer(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    if certificate.issuer != issuer.subject:
        raise ValueError("issued under another name")
    key, digest = issuer.public_key(), certificate.signature_hash_algorithm
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    if digest is not None and isinstance(key, ec.EllipticCurvePublicKey):
        key.verify(signature, signed, ec.ECDSA(digest))
    elif digest is not None and isinstance(key, rsa.RSAPublicKey):
        key.verify(signature, signed, padding.PKCS1v15(), digest)
    else:
        raise UnsupportedAlgorithm("a key of another kind")


def load_certificates(pem: bytes) -> list[x509.Certificate]:
    """Return the certificates in a PEM text, at least one; what else is in it is passed over.

    Raises ValueError.
    """
    return x509.load_pem_x509_certificates(pem) if _READS_MANY else _load_each(pem)


def _load_each(pem: bytes) -> list[x509.Certificate]:
    found = []
    for part in pem.split(_BEGIN)[1:]:
        body, end, _ = part.partition(_END)
        if not end:
            raise ValueError("a certificate in PEM without its end")
        found.append(x509.load_pem_x509_certificate(_BEGIN + body + _END + b"\n"))
    if not found:
        raise ValueError("no certificate in PEM")
    return found
