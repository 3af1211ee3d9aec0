"""TLS over bytes: ciphertext in, plaintext out, no socket.

OpenSSL works on memory buffers here.  The worker feeds what the TCP connection
brought and sends what `data_to_send` returns.  Plaintext comes out one item per
TLS record, because the tunnel protocol puts exactly one packet into each.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from struct import Struct
from struct import error as StructError

from cryptography import x509
from OpenSSL import SSL

from vpnd.errors import ConfigError, RemoteProtocolError

MODE_RELEASE_BUFFERS = 0x10  # openssl/ssl.h; an idle connection keeps 33 KiB instead of 57
MAX_RECORD = 16 * 1024  # RFC 8446 section 5.1
EXPORTER_LABEL = b"EXPORTER-openconnect-psk"
EXPORTER_SIZE = 32
MAX_NOTE = 200  # characters of a certificate's names that reach the log
GROUPS = {  # IANA TLS supported groups
    0x0017: "secp256r1",
    0x0018: "secp384r1",
    0x0019: "secp521r1",
    0x001D: "X25519",
    0x001E: "X448",
    0x11EB: "SecP256r1MLKEM768",
    0x11EC: "X25519MLKEM768",
    0x11ED: "SecP384r1MLKEM1024",
    0x0201: "MLKEM768",
}
_U16 = Struct("!H")
_CHACHA_FIRST = b"TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
_TLS_RECORD_HEADER = 5
_HANDSHAKE = 22
_SERVER_HELLO = 2
_KEY_SHARE = 51
# RFC 8446 section 4.1.3: a ServerHello with this random is a HelloRetryRequest
_RETRY_RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")


class TlsFailed(RemoteProtocolError):
    """The TLS connection cannot go on; the text says why, for the log."""


@dataclass(slots=True)
class _VerifyNote:
    """What the verify callback saw; hung on the connection it belongs to."""

    text: str = ""


def server_context(
    *,
    certificate: str,
    key: str,
    client_ca: str,
    allow_tls12: bool = False,
    chacha_first: bool = False,
) -> SSL.Context:
    """Return the context all of the server's TLS connections share.

    `certificate` (chain), `key` and `client_ca` are paths to PEM files.  Client
    certificates are asked for and, when sent, must verify; there is no resumption, since it
    would skip that check.  Raises ConfigError when a file cannot be used.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION if allow_tls12 else SSL.TLS1_3_VERSION)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION | SSL.OP_CIPHER_SERVER_PREFERENCE)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_mode(MODE_RELEASE_BUFFERS)
    if allow_tls12:
        context.set_cipher_list(b"ECDHE+AESGCM:ECDHE+CHACHA20")
    if chacha_first and hasattr(context, "set_tls13_ciphersuites"):
        context.set_tls13_ciphersuites(_CHACHA_FIRST)
    # the key first: in the other order a wrong pair looks like a key that cannot be read
    _load(context.use_privatekey_file, key, "private key")
    _load(context.use_certificate_chain_file, certificate, "certificate")
    _load(context.load_verify_locations, client_ca, "CA certificates")
    _load(context.load_client_ca, client_ca, "CA certificates")
    try:
        context.check_privatekey()
    except SSL.Error as exc:
        raise ConfigError(
            f"{key}: does not belong to {certificate}; restore the pair that pki init made"
        ) from exc
    context.set_verify(SSL.VERIFY_PEER, _note_verification)
    return context


def _load(load: object, path: str, what: str) -> None:
    assert callable(load)
    try:
        load(path.encode())
    except SSL.Error as exc:
        raise ConfigError(
            f"{path}: not a readable PEM {what}; run 'vpnctl pki init' or name the right file"
        ) from exc


def _note_verification(
    connection: SSL.Connection, certificate: object, error: int, _depth: int, ok: int
) -> bool:
    """Let OpenSSL decide; keep subject and reason of a refusal for the log."""
    note = connection.get_app_data()
    if not ok and isinstance(note, _VerifyNote) and not note.text:
        reason = SSL._ffi.string(  # type: ignore[attr-defined]  # noqa: SLF001
            SSL._lib.X509_verify_cert_error_string(error)  # type: ignore[attr-defined]  # noqa: SLF001
        ).decode("ascii", "replace")
        note.text = f"certificate {_described(certificate)}: {reason}"
    return bool(ok)


def _described(certificate: object) -> str:
    """Return the subject, and the URIs that say whose the certificate claims to be."""
    try:
        found: x509.Certificate = certificate.to_cryptography()  # type: ignore[attr-defined]
        names = [found.subject.rfc4514_string(), *_uris(found)]
    except Exception:  # a stranger wrote it, and its parser raises more than ValueError
        return "(unreadable)"
    return "".join(c if c.isprintable() else "?" for c in " ".join(names)[:MAX_NOTE])


def _uris(certificate: x509.Certificate) -> list[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.UniformResourceIdentifier)


@dataclass(slots=True)
class TlsStream:
    """One TLS connection, server side.

    After `receive` raised, the stream is dead; `data_to_send` may still hold the alert.
    """

    context: SSL.Context = field(repr=False)
    established: bool = False
    closed: bool = False
    """The peer has sent close_notify."""
    group: str = ""
    """Name of the key-exchange group, once our ServerHello has been made."""
    _connection: SSL.Connection = field(init=False, repr=False)
    _note: _VerifyNote = field(default_factory=_VerifyNote, repr=False)
    _buffer: bytearray = field(default_factory=bytearray, repr=False)

    def __post_init__(self) -> None:
        self._connection = SSL.Connection(self.context, None)
        self._connection.set_accept_state()
        self._connection.set_app_data(self._note)

    def receive(self, ciphertext: bytes) -> list[bytes]:
        """Take what the network brought; return the plaintext of each whole record.

        Raises TlsFailed when the handshake or a record is not acceptable.
        """
        view = memoryview(ciphertext)
        records: list[bytes] = []
        while True:
            # the memory buffer takes everything in practice; the loop keeps us honest
            taken = self._connection.bio_write(bytes(view)) if view else 0
            view = view[taken:]
            self._advance(records)
            if not view or self.closed:
                return records

    def _advance(self, records: list[bytes]) -> None:
        try:
            if not self.established:
                self._connection.do_handshake()
                self.established = True
            while True:
                records.append(self._connection.recv(MAX_RECORD))
        except SSL.WantReadError:
            return
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as exc:
            raise TlsFailed(self._note.text or _reason(exc)) from exc

    @property
    def certificate_refused(self) -> bool:
        """The handshake failed because of the client's certificate."""
        return bool(self._note.text)

    def send(self, plaintext: bytes | memoryview) -> None:
        """Seal `plaintext`; at most 16 KiB go into one record."""
        self._connection.sendall(plaintext)

    def send_records(self, payloads: Iterable[bytes | memoryview]) -> None:
        """Seal each payload, at most 16 KiB, into exactly one record."""
        send = self._connection.send
        for payload in payloads:
            send(payload)

    def data_to_send(self) -> bytes:
        """Return the ciphertext that waits to go out; empty when there is none."""
        pieces = []
        try:
            while True:
                pieces.append(self._connection.bio_read(65536))
        except SSL.WantReadError:
            pass
        data = b"".join(pieces)
        if not self.group and data:
            self.group = key_exchange_group(data)
        return data

    def shutdown(self) -> None:
        """Queue a close_notify; nothing may be sent after it."""
        try:
            self._connection.shutdown()
        except SSL.Error:  # in the middle of a handshake there is nothing to close
            return

    def export_psk(self) -> bytes:
        """Return the key the DTLS channel is authenticated with (RFC 8446 section 7.5).

        No context value, which is what the OpenConnect protocol asks for.
        """
        return self._connection.export_keying_material(EXPORTER_LABEL, EXPORTER_SIZE)

    def peer_certificate(self) -> x509.Certificate | None:
        """Return the verified client certificate, or None if none was sent."""
        found = self._connection.get_peer_certificate()
        return None if found is None else found.to_cryptography()

    @property
    def cipher(self) -> str:
        """OpenSSL's name of the cipher suite, empty before the handshake."""
        return self._connection.get_cipher_name() or ""

    @property
    def version(self) -> str:
        """`TLSv1.3` or `TLSv1.2`."""
        return self._connection.get_protocol_version_name()


def _reason(error: SSL.Error) -> str:
    """Return OpenSSL's words for what happened, `unexpected eof` if it has none."""
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        return ", ".join(str(entry[-1]) for entry in error.args[0])
    return "connection broken"


def key_exchange_group(flight: bytes) -> str:
    """Return the group named in the key_share of the ServerHello that starts `flight`.

    Read from our own bytes (RFC 8446 section 4.1.3 and 4.2.8), since the library of
    Debian 13 does not tell.  Empty for TLS 1.2 and for a HelloRetryRequest.
    """
    try:
        kind, _, hello = flight[0], flight[1:5], flight[_TLS_RECORD_HEADER:]
        if kind != _HANDSHAKE or hello[0] != _SERVER_HELLO or hello[6:38] == _RETRY_RANDOM:
            return ""
        at = 39 + hello[38] + 3  # session id, cipher suite, compression
        end = at + 2 + _U16.unpack_from(hello, at)[0]
        at += 2
        while at < end:
            extension, size = _U16.unpack_from(hello, at)[0], _U16.unpack_from(hello, at + 2)[0]
            if extension == _KEY_SHARE:
                number = _U16.unpack_from(hello, at + 4)[0]
                return GROUPS.get(number, f"0x{number:04x}")
            at += 4 + size
    except (IndexError, StructError):
        return ""
    return ""
