"""What the children of `vpnd.pki.child` do at a renewal: plain values in, plain values out.

    the server's user   reads its certificate and its clients' requests
    the CA's user       judges and signs; believes nothing that it has not signed itself
    the server's user   installs what was signed

A server that was taken over gets nothing out of this that it could use: a certificate is
renewed for the key and the name that it has already, and only its holder has that key.
"""

import base64
import binascii
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from vpnd.errors import ConfigError, Malformed
from vpnd.pki import ca, issued, server_files, spool
from vpnd.pki.certificates import (
    encode_chain,
    load_chain,
    parse_client_identity,
    serial_text,
    server_names,
)
from vpnd.pki.files import PUBLIC, replace
from vpnd.pki.jobs import now_of
from vpnd.pki.keys import load_key, request, requested_key
from vpnd.pki.pins import certificate_pin, key_pin, server_pins
from vpnd.pki.reading import load_certificates, not_after
from vpnd.pki.revocation import KnownClient, known_clients, revoked, sign_list
from vpnd.pki.schedule import GAIN, ROOT_ALERT_BEFORE, issuing_life, server_life

RENEWABLE = timedelta(days=45)  # before its end; a client asks at 30, by a clock of its own
CRL = "crl.pem"


# as the server's user


def server_state(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the server's certificates, its pins, and a request for its key; {} without any."""
    directory = Path(asked["directory"])
    if not (directory / "server.crt").exists():
        return {}
    following = directory / "server-next.key"
    return {
        "certificate": encode_chain(load_chain(directory / "server.crt")).decode(),
        "ca": encode_chain(load_chain(directory / "ca.crt")).decode(),
        "request": request(load_key(directory / "server.key")).decode(),
        "pins": list(server_pins(directory / "server.crt", directory / "server-next.pub")),
        "crl": _text(directory / CRL),
        "next_made": int(following.stat().st_mtime) if following.exists() else None,
    }


def _text(path: Path) -> str:
    return path.read_text("utf-8") if path.exists() else ""


def next_key(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a request for the key that follows; an interrupted change is completed first."""
    directory = Path(asked["directory"])
    server_files.complete(directory)
    return {"request": server_files.next_request(directory).decode()}


def complete(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Complete a change of the server's keys that was interrupted."""
    server_files.complete(Path(asked["directory"]))
    return {}


def rotate(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put the next key in use; return both pins."""
    directory = Path(asked["directory"])
    server_files.rotate(directory, asked["certificate"].encode(), asked["key_type"])
    return {"pins": list(server_pins(directory / "server.crt", directory / "server-next.pub"))}


def install(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put renewed certificates in place."""
    server_files.replace_certificates(
        Path(asked["directory"]), asked["certificate"].encode(), asked["ca"].encode()
    )
    return {}


def pending(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the clients' requests that wait, at most `at_most` of them."""
    return {"requests": spool.pending(Path(asked["directory"]), asked["at_most"])}


def answer(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave the answers for the server, and take the requests away, refused ones too."""
    for entry in asked["answers"]:
        spool.answer(Path(asked["directory"]), entry["serial"], entry["certificate"])
    return {}


def install_list(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Put a new revocation list in place."""
    replace(Path(asked["directory"]) / CRL, asked["crl"].encode(), PUBLIC)
    return {}


# as the CA's user


def authority_state(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the authority's certificates, and whether the root's key is there."""
    directory = Path(asked["directory"])
    authority = ca.load(directory)
    return {
        "root": encode_chain([authority.root]).decode(),
        "issuing": encode_chain([authority.issuer.certificate]).decode(),
        "has_root_key": (directory / "root.key").exists(),
        "issued": len(issued.read(directory)),
    }


def renew(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Renew what is due of issuing CA and server; return the certificates, "" for no new one."""
    directory, now = Path(asked["directory"]), now_of(asked)
    alerts: list[str] = []
    done: list[str] = []
    with issued.locked(directory):
        authority = ca.load(directory)
        if issuing_life(authority.issuer.certificate).is_due(now):
            try:
                authority = ca.renew_issuing(directory, now)
                done.append("the issuing CA's certificate")
            except ConfigError as exc:
                alerts.append(str(exc))
        chain = _renewed_server(authority, asked, now)
    if chain:
        done.append("the server's certificate")
    leaf = load_certificates(chain or asked["certificate"].encode())[0]
    alerts += complaints(authority.root, authority.issuer.certificate, leaf, now)
    return {
        "certificate": chain.decode(),
        "ca": authority.ca_pem.decode(),
        "done": done,
        "alerts": alerts,
    }


def _renewed_server(authority: ca.Authority, asked: Mapping[str, Any], now: datetime) -> bytes:
    """Return a new certificate for the server's key and names, b"" where none is due."""
    before = load_certificates(asked["certificate"].encode())[0]
    if not authority.has_issued(before):
        raise ConfigError("the server's certificate is not of this authority: nothing is renewed")
    wanted = asked["force"] or authority.ca_pem.decode() != asked["ca"]
    if not wanted and not server_life(before).is_due(now):
        return b""
    asked_for = asked["request"].encode()
    if certificate_pin(before) != requested_pin(asked_for):
        raise ConfigError("server.key does not belong to server.crt: restore the right pair first")
    chain = authority.sign_server(asked_for, server_names(before), now)
    after = load_certificates(chain)[0]
    gain = not_after(after) - not_after(before)
    return chain if wanted or gain >= GAIN else b""


def requested_pin(data: bytes) -> str:
    """Return the pin of the key in a certificate request."""
    return key_pin(requested_key(data))


def complaints(
    root: x509.Certificate, issuing: x509.Certificate, server: x509.Certificate, now: datetime
) -> list[str]:
    """Return what an operator has to do something about, one line each."""
    found = [
        issuing_life(root).complaint("the root CA", now),
        issuing_life(issuing).complaint("the issuing CA", now),
        server_life(server).complaint("the server's certificate", now),
    ]
    end = not_after(root)
    if not found[0] and now >= end - ROOT_ALERT_BEFORE:
        found[0] = f"the root CA ends on {end:%Y-%m-%d}: plan a new authority and new profiles"
    return [line for line in found if line]


def make_list(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a revocation list of what the store's `clients` are not."""
    directory, now = Path(asked["directory"]), now_of(asked)
    with issued.locked(directory):
        authority = ca.load(directory)
        entries = revoked(issued.prune(directory, now), known_clients(asked["clients"]), now)
    crl = sign_list(authority.issuer, entries, now)
    return {"crl": crl.decode(), "count": len(entries)}


def sign_clients(asked: Mapping[str, Any]) -> Mapping[str, Any]:
    """Judge clients' requests; return a certificate or the reason why not for each."""
    directory, now = Path(asked["directory"]), now_of(asked)
    known = {client.serial: client for client in known_clients(asked["clients"])}
    answers = []
    with issued.locked(directory):
        authority = ca.load(directory)
        for entry in asked["requests"]:
            serial, chain, refusal = entry["serial"], b"", ""
            try:
                user, client = _judged(authority, entry, known.get(serial), now)
                chain = _signed(directory, authority, entry, user, client, now)
            except (ConfigError, Malformed) as exc:
                refusal = str(exc)
            answers.append({"serial": serial, "certificate": chain.decode(), "refusal": refusal})
    return {"answers": answers}


def _signed(
    directory: Path,
    authority: ca.Authority,
    entry: Mapping[str, Any],
    user: str,
    client: str,
    now: datetime,
) -> bytes:
    chain = authority.sign_client(_der(entry["request"]), user, client, now, foreign=False)
    leaf = load_certificates(chain)[0]
    issued.record(directory, leaf, user, client, now)
    return chain


def _judged(
    authority: ca.Authority,
    entry: Mapping[str, Any],
    known: KnownClient | None,
    now: datetime,
) -> tuple[str, str]:
    """Return (user, client) of a request that may be granted; raise ConfigError or Malformed.

    The certificate that is to be renewed proves who asks, and the request, signed with that
    certificate's key, that its holder does.
    """
    try:
        before = x509.load_der_x509_certificate(_der(entry["certificate"]))
        is_ours = authority.has_issued(before)
        end, serial = not_after(before), serial_text(before)
    except ValueError:
        raise ConfigError("the certificate to be renewed cannot be read") from None
    if not is_ours:
        raise ConfigError("the certificate to be renewed is not of this authority")
    identity = parse_client_identity(before)
    if known is None or serial != entry["serial"] or identity != (known.user, known.name):
        raise ConfigError("the certificate to be renewed is not the client's")
    if known.revoked_at is not None:
        raise ConfigError("the client is revoked")
    if known.foreign:
        raise ConfigError("the client is another maker's, and is made anew instead")
    if now >= end:
        raise ConfigError(f"the certificate ended on {end:%Y-%m-%d}")
    if now < end - RENEWABLE:
        raise ConfigError(f"the certificate is valid until {end:%Y-%m-%d}, that is long enough")
    if requested_pin(_der(entry["request"])) != certificate_pin(before):
        raise ConfigError("the request is for another key than the certificate's")
    return identity


def _der(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("the request cannot be read") from None
