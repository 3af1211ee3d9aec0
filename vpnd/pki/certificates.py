"""Make certificates from a profile, and read back what ours say.

Time is an argument, an aware datetime.  A certificate begins an hour early for clocks that are
behind, and never outlives its issuer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from vpnd.errors import ConfigError, Malformed
from vpnd.pki.files import read_pem
from vpnd.pki.keys import PrivateKey, PublicKey, signature_hash
from vpnd.pki.names import parse_identity_uri
from vpnd.pki.profiles import CertificateProfile
from vpnd.pki.reading import load_certificates, not_after

SKEW = timedelta(hours=1)
MAX_COMMON_NAME = 64  # RFC 5280 appendix A, ub-common-name


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)


def issue(
    profile: CertificateProfile,
    common_name: str,
    key: PublicKey,
    names: Sequence[x509.GeneralName],
    *,
    issuer: Issuer,
    now: datetime,
) -> x509.Certificate:
    """Return a certificate for `key`, signed by `issuer`.

    Raises ConfigError if the issuer's own certificate has ended.
    """
    end = not_after(issuer.certificate)
    if end <= now:
        raise ConfigError(
            f"the certificate of {subject_name(issuer.certificate)!a} ended on {end:%Y-%m-%d}: "
            "nothing can be signed with it; check the clock, or make a new authority"
        )
    builder = _builder(profile, common_name, key, names, now)
    builder = builder.issuer_name(issuer.certificate.subject)
    builder = builder.not_valid_after(min(now + profile.lifetime, end))
    subject_key = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key.value),
        critical=False,
    )
    return builder.sign(issuer.key, signature_hash(issuer.key))


def self_sign(
    profile: CertificateProfile, common_name: str, key: PrivateKey, now: datetime
) -> x509.Certificate:
    """Return a root certificate for `key`."""
    builder = _builder(profile, common_name, key.public_key(), (), now)
    builder = builder.issuer_name(_name(common_name)).not_valid_after(now + profile.lifetime)
    return builder.sign(key, signature_hash(key))


def server_alternative_names(names: Sequence[str]) -> list[x509.GeneralName]:
    """Return host names and addresses as entries of a server's certificate."""
    found: list[x509.GeneralName] = []
    for name in names:
        try:
            found.append(x509.IPAddress(ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name))
    return found


def server_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """Return the host names and addresses a server's certificate is for, in its own order."""
    kinds = x509.DNSName | x509.IPAddress
    return tuple(str(e.value) for e in _alternative_names(certificate) if isinstance(e, kinds))


def parse_names(chain: str) -> tuple[str, ...]:
    """Return `server_names` of the first certificate in a PEM text."""
    return server_names(load_certificates(chain.encode())[0])


def parse_client_identity(certificate: x509.Certificate) -> tuple[str, str]:
    """Return (user, client) of a client's certificate.

    Raises Malformed unless its alternative names hold exactly one of our URIs.  The chain and
    the dates are not looked at: TLS has done that.
    """
    entries = _alternative_names(certificate)
    uris = [e.value for e in entries if isinstance(e, x509.UniformResourceIdentifier)]
    found = [identity for uri in uris if (identity := parse_identity_uri(uri))]
    if len(found) != 1 or len(uris) != 1:
        raise Malformed("the certificate does not name exactly one user and client")
    return found[0]


def serial_text(certificate: x509.Certificate) -> str:
    """Return the serial number as the store keeps it: lower-case hexadecimal, no prefix."""
    return format(certificate.serial_number, "x")


def load_chain(path: Path) -> list[x509.Certificate]:
    """Return the certificates in a PEM file, at least one.  Raises ConfigError."""
    try:
        return load_certificates(read_pem(path))
    except ValueError as exc:
        raise ConfigError(f"{path}: holds no certificate in PEM") from exc


def encode_chain(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return certificates one after the other in PEM."""
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def _builder(
    profile: CertificateProfile,
    common_name: str,
    key: PublicKey,
    names: Sequence[x509.GeneralName],
    now: datetime,
) -> x509.CertificateBuilder:
    """Return all that does not depend on the issuer."""
    is_ca = profile.path_length is not None
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .add_extension(x509.BasicConstraints(is_ca, profile.path_length), critical=True)
        .add_extension(_key_usage(is_ca=is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
    if profile.purposes:
        builder = builder.add_extension(x509.ExtendedKeyUsage(profile.purposes), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,  # static RSA key exchange is gone
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:MAX_COMMON_NAME])])


def subject_name(certificate: x509.Certificate) -> str:
    """Return the common name of a certificate's subject."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def _alternative_names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    """Return the alternative names; those of certificates that break the rules are none."""
    try:
        return list(
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
    except (
        x509.ExtensionNotFound,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
        ValueError,
    ):
        return []
