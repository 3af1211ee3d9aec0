"""The certificate revocation list (RFC 5280 section 5), for programs that are not ours.

vpnd never reads it: the store is the authority, at every login and every CONNECT.  A list that
is late is therefore no reason to refuse anybody here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vpnd.errors import ConfigError
from vpnd.pki.certificates import Issuer
from vpnd.pki.issued import Issued
from vpnd.pki.keys import signature_hash
from vpnd.pki.reading import next_update

LIFETIME = timedelta(days=30)  # it is made anew every day


@dataclass(frozen=True, slots=True)
class KnownClient:
    """A client as the store knows it; times in Unix seconds."""

    user: str
    name: str
    serial: str
    not_after: int
    foreign: bool
    revoked_at: int | None


@dataclass(frozen=True, slots=True)
class Revoked:
    """One entry of the list."""

    serial: str
    at: int
    is_superseded: bool = False


def revoked(
    issued: Sequence[Issued], clients: Sequence[KnownClient], now: datetime
) -> list[Revoked]:
    """Return all certificates that have not ended and that the store does not take.

    A certificate that is younger than the one in the store is not revoked: its client has not
    used it yet.
    """
    at = int(now.timestamp())
    known = {(client.user, client.name): client for client in clients}
    found = {c.serial: Revoked(c.serial, c.revoked_at) for c in clients if c.revoked_at}
    in_use = {client.serial for client in clients if client.revoked_at is None}
    passed: set[tuple[str, str]] = set()  # clients whose certificate in use comes later
    followed: dict[tuple[str, str], int] = {}  # when the next one of the client was signed
    for entry in reversed(issued):
        whose = entry.user, entry.client
        client = known.get(whose)
        if entry.serial in in_use:
            passed.add(whose)
        elif client is None or client.revoked_at is not None:
            since = client.revoked_at if client and client.revoked_at else entry.issued
            found.setdefault(entry.serial, Revoked(entry.serial, since))
        elif whose in passed:
            superseded = Revoked(entry.serial, followed[whose], is_superseded=True)
            found.setdefault(entry.serial, superseded)
        followed[whose] = entry.issued
    ended = {entry.serial for entry in issued if entry.not_after <= at}
    ended |= {client.serial for client in clients if client.not_after <= at}
    return [entry for serial, entry in sorted(found.items()) if serial not in ended]


def sign_list(issuer: Issuer, entries: Sequence[Revoked], now: datetime) -> bytes:
    """Return the list in PEM."""
    key_id = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(now)
        .next_update(now + LIFETIME)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id.value),
            critical=False,
        )
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    )
    for entry in entries:
        builder = builder.add_revoked_certificate(_entry(entry))
    return builder.sign(issuer.key, signature_hash(issuer.key)).public_bytes(Encoding.PEM)


def _entry(entry: Revoked) -> x509.RevokedCertificate:
    builder = (
        x509.RevokedCertificateBuilder()
        .serial_number(int(entry.serial, 16))
        .revocation_date(datetime.fromtimestamp(entry.at, UTC))
    )
    if entry.is_superseded:
        builder = builder.add_extension(
            x509.CRLReason(x509.ReasonFlags.superseded), critical=False
        )
    return builder.build()


def known_clients(values: Sequence[Mapping[str, object]]) -> list[KnownClient]:
    """Return clients from the plain values that cross to the authority's process."""
    return [KnownClient(**value) for value in values]  # type: ignore[arg-type]  # our own parent made them


def list_end(pem: bytes) -> int:
    """Return when a list of ours is to be replaced, in Unix seconds.  Raises ConfigError."""
    try:
        end = next_update(x509.load_pem_x509_crl(pem))
    except ValueError:
        end = None
    if end is None:
        raise ConfigError("crl.pem is damaged; vpnctl pki renew makes another")
    return int(end.timestamp())
