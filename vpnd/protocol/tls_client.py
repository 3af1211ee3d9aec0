"""TLS over bytes, the client's end, and who the server must be.

With pins, the server's key must have one of them; that replaces CA, name and dates, since a
pin says more than they do and a renewed certificate keeps its key.  Without pins, OpenSSL checks
chain, dates, purpose and name.  Either is decided inside the handshake, before our certificate or
a byte of ours is sent, and cannot be switched off.
"""

import base64
import binascii
import hashlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import OpenSSL
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from OpenSSL import SSL, crypto

from vpnd.config.profile_options import SYSTEM, SYSTEM_CA
from vpnd.errors import ConfigError
from vpnd.pki.pins import PREFIX
from vpnd.pki.reading import load_certificates
from vpnd.protocol.tls_connection import (
    CHACHA_FIRST,
    MODE_RELEASE_BUFFERS,
    TLS12_CIPHERS,
    TlsConnection,
    TlsFailed,
    VerifyNote,
    described,
    reason,
)
from vpnd.wire.tls_hello import GroupListener

NO_PARTIAL_WILDCARDS = 0x4  # X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS, openssl/x509v3.h
PIN_SIZE = hashlib.sha256().digest_size
MAX_PINS = 16  # a server has two

_TAKES_CRYPTOGRAPHY = tuple(map(int, OpenSSL.__version__.split(".")[:2])) >= (24, 3)
_lib: Any = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001 - no public call for the name check
_TOO_OLD = ("unsupported protocol", "protocol version")  # OpenSSL's words, and the alert's
_REFUSED_US = ("certificate", "unknown ca")  # in an alert's name, RFC 8446 section 6.2


class ServerNotTrusted(TlsFailed):
    """The server is not the one it must be; nothing was sent to it."""


def client_context(
    *,
    ca_pem: str = "",
    certificate_pem: str = "",
    key_pem: str = "",
    allow_tls12: bool = False,
    chacha_first: bool = False,
) -> SSL.Context:
    """Return the context of our TLS connections to one server.

    `ca_pem` holds the certificates that the server's must lead to ("system": those that this
    system trusts; empty: none, so that a pin must say who the server is), `certificate_pem` our
    own with its chain behind it, `key_pem` its unencrypted key.  Raises ConfigError for what
    cannot be used.
    """
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION if allow_tls12 else SSL.TLS1_3_VERSION)
    # a renegotiation would change the exporter, and with it the key of the UDP channel
    context.set_options(SSL.OP_NO_COMPRESSION | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(MODE_RELEASE_BUFFERS)
    context.set_cipher_list(TLS12_CIPHERS)
    if chacha_first and hasattr(context, "set_tls13_ciphersuites"):
        context.set_tls13_ciphersuites(CHACHA_FIRST)
    context.set_app_data(allow_tls12)
    if ca_pem == SYSTEM:
        _trust_system(context)
    elif ca_pem:
        _trust(context, ca_pem)
    if certificate_pem or key_pem:
        _identify(context, certificate_pem, key_pem)
    context.set_verify(SSL.VERIFY_PEER, _verify)
    return context


def _certificates(pem: str, what: str) -> list[x509.Certificate]:
    try:
        return load_certificates(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigError(f"{what}: not certificates in PEM") from exc


def _trust_system(context: SSL.Context) -> None:
    try:
        context.load_verify_locations(str(SYSTEM_CA))
    except SSL.Error as exc:
        raise ConfigError(
            f"{SYSTEM_CA}: cannot be read ({reason(exc)}); install the package ca-certificates"
        ) from exc


def _trust(context: SSL.Context, ca_pem: str) -> None:
    store = context.get_cert_store()
    assert store is not None  # a context has one from its beginning
    for certificate in _certificates(ca_pem, "tls.ca"):
        store.add_cert(crypto.X509.from_cryptography(certificate))


def _identify(context: SSL.Context, certificate_pem: str, key_pem: str) -> None:
    leaf, *chain = _certificates(certificate_pem, "tls.certificate")
    try:
        key = load_pem_private_key(key_pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("tls.key: not an unencrypted private key in PEM") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ConfigError("tls.key: neither an EC nor an RSA key")
    try:
        context.use_certificate(_given(leaf))
        for issuer in chain:
            context.add_extra_chain_cert(_given(issuer))
        context.use_privatekey(_given(key))
        context.check_privatekey()
    except SSL.Error as exc:
        raise ConfigError(f"tls.key: does not fit tls.certificate ({reason(exc)})") from exc


def _given(what: Any) -> Any:
    """Return a certificate or key as this pyOpenSSL wants it."""
    if _TAKES_CRYPTOGRAPHY:
        return what
    if isinstance(what, x509.Certificate):
        return crypto.X509.from_cryptography(what)
    return crypto.PKey.from_cryptography_key(what)


def parse_pin(text: str) -> bytes:
    """Return the digest of "pin-sha256:BASE64"; raise ConfigError for anything but a whole pin."""
    digest = b""
    if text.startswith(PREFIX):
        with suppress(binascii.Error, ValueError):
            digest = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    if len(digest) != PIN_SIZE:
        raise ConfigError(f"{text[:80]!r} is no pin; write {PREFIX} and 44 characters of base64")
    return digest


def spki_digest(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of a certificate's SubjectPublicKeyInfo, which is what a pin holds.

    Raises ValueError or UnsupportedAlgorithm for a key that cannot be read.
    """
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).digest()


@dataclass(slots=True)
class _ServerNote(VerifyNote):
    """What the verify callback needs, and what it saw."""

    pins: frozenset[bytes] = frozenset()

    def accepts(self, certificate: Any) -> bool:
        """Return whether the leaf's key is pinned; keep why not."""
        try:
            digest = spki_digest(certificate.to_cryptography())
        except Exception:  # a stranger wrote it, and its parser raises more than ValueError
            digest = b""
        if digest in self.pins:
            return True
        pin = PREFIX + base64.b64encode(digest).decode()
        self.text = self.text or (
            f"certificate {described(certificate)}: its key ({pin}) is none of those pinned;"
            " if the server's keys were changed on purpose, get a new profile"
        )
        return False


def _verify(
    connection: SSL.Connection, certificate: object, error: int, depth: int, ok: int
) -> bool:
    """Decide by pins where there are any, else let OpenSSL decide; an exception refuses."""
    note = connection.get_app_data()
    assert isinstance(note, _ServerNote)
    if note.pins:
        return depth > 0 or note.accepts(certificate)
    if not ok:
        note.refuse(certificate, error)
    return bool(ok)


@dataclass(slots=True)
class TlsClientStream(TlsConnection):
    """One TLS connection, client side; its first flight waits in `data_to_send` at once.

    `server_name`, a DNS name or an address, must be in the certificate where there are no `pins`
    ("pin-sha256:...").  Raises ConfigError for a pin that is none, and without both.
    """

    server_name: str = ""
    pins: Collection[str] = ()
    certificate_rejected: bool = False
    """The server's alert says that it does not accept our certificate, or that we need one."""
    _listener: GroupListener = field(default_factory=GroupListener, repr=False)

    def __post_init__(self) -> None:
        if not self.pins and not self.server_name:
            raise ConfigError("neither a pin nor a name to know the server by")
        if len(self.pins) > MAX_PINS:
            raise ConfigError(f"more than {MAX_PINS} pins for one server")
        self._note = _ServerNote(pins=frozenset(map(parse_pin, self.pins)))
        TlsConnection.__post_init__(self)  # slots make another class, which super() would miss
        self._name_server()
        self._connection.set_connect_state()
        with suppress(SSL.WantReadError):
            self._connection.do_handshake()

    def _name_server(self) -> None:
        """Send the name (RFC 6066 forbids addresses there), and have it checked."""
        name = self.server_name.rstrip(".")
        if self.server_name and (not name or not name.isprintable()):
            raise ConfigError(f"{self.server_name[:80]!r} is no name of a server")
        try:
            address = ip_address(name)
        except ValueError:
            address = None
        if name and address is None:
            try:
                encoded = name.encode("ascii" if name.isascii() else "idna")
            except UnicodeError:
                raise ConfigError(f"{name[:80]!r} is no name of a server") from None
            self._connection.set_tlsext_host_name(encoded)
            self._check_name(_lib.X509_VERIFY_PARAM_set1_host, encoded)
        elif address is not None:
            self._check_name(_lib.X509_VERIFY_PARAM_set1_ip, address.packed)

    def _check_name(self, set_name: Any, name: bytes) -> None:
        assert isinstance(self._note, _ServerNote)
        if self._note.pins:
            return
        parameters = _lib.SSL_get0_param(self._connection._ssl)  # noqa: SLF001
        _lib.X509_VERIFY_PARAM_set_hostflags(parameters, NO_PARTIAL_WILDCARDS)
        if set_name(parameters, name, len(name)) != 1:
            raise ConfigError(f"{self.server_name[:80]!r} is no name of a server")

    def receive(self, ciphertext: bytes) -> list[bytes]:
        """Take what the network brought; return the plaintext of each whole record.

        Raises ServerNotTrusted when the server is another, TlsFailed for all other trouble.
        """
        if not self._listener.is_done:
            self._listener.receive(ciphertext)
            self.group = self._listener.group
        return TlsConnection.receive(self, ciphertext)

    def _check_peer(self) -> None:
        """Look once more, should a library ever complete a handshake without asking us."""
        assert isinstance(self._note, _ServerNote)
        certificate = self._connection.get_peer_certificate()
        if certificate is None:
            raise ServerNotTrusted("the server has shown no certificate")
        if self._note.pins and not self._note.accepts(certificate):
            raise ServerNotTrusted(self._note.text)

    def _failure(self, error: SSL.Error) -> TlsFailed:
        if self._note.text:
            return ServerNotTrusted(self._note.text)
        text = reason(error)
        if "alert" in text and any(word in text for word in _REFUSED_US):
            self.certificate_rejected = True
            what = "demands" if "required" in text else "does not accept"
            return TlsFailed(f"the server {what} our certificate: {text}")
        if any(words in text for words in _TOO_OLD) and not self.established:
            return TlsFailed(self._too_old(text))
        if "wrong version number" in text and not self.established:
            return TlsFailed(f"no TLS server answers here (a captive portal?): {text}")
        return TlsFailed(f"TLS with the server failed: {text}")

    def _too_old(self, text: str) -> str:
        if self.context.get_app_data():
            return f"the server speaks neither TLS 1.3 nor TLS 1.2: {text}"
        return (
            'the server does not speak TLS 1.3; if TLS 1.2 will do, write min_version = "1.2"'
            f" into [tls] of the profile, or add --allow-tls12 to a URL: {text}"
        )
