"""TLS over bytes, what both ends share: ciphertext in, plaintext out, no socket.

OpenSSL works on memory buffers here.  The worker feeds what the TCP connection
brought and sends what `data_to_send` returns.  Plaintext comes out one item per
TLS record, because the tunnel protocol puts exactly one packet into each.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from OpenSSL import SSL

from vpnd.errors import RemoteProtocolError

MODE_RELEASE_BUFFERS = 0x10  # openssl/ssl.h; an idle connection keeps 33 KiB instead of 57
MAX_RECORD = 16 * 1024  # RFC 8446 section 5.1
EXPORTER_LABEL = b"EXPORTER-openconnect-psk"
EXPORTER_SIZE = 32
MAX_NOTE = 200  # characters of a certificate's names that reach the log
CHACHA_FIRST = b"TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256"
TLS12_CIPHERS = b"ECDHE+AESGCM:ECDHE+CHACHA20"


class TlsFailed(RemoteProtocolError):
    """The TLS connection cannot go on; the text says why, for the log."""


@dataclass(slots=True)
class VerifyNote:
    """What the verify callback saw; hung on the connection it belongs to."""

    text: str = ""

    def refuse(self, certificate: object, error: int) -> None:
        """Keep subject and reason of the first refusal for the log."""
        if not self.text:
            reason = SSL._ffi.string(  # type: ignore[attr-defined]  # noqa: SLF001
                SSL._lib.X509_verify_cert_error_string(error)  # type: ignore[attr-defined]  # noqa: SLF001
            ).decode("ascii", "replace")
            self.text = f"certificate {described(certificate)}: {reason}"


def described(certificate: object) -> str:
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
class TlsConnection:
    """One TLS connection; the two ends differ in how they begin and what they verify.

    After `receive` raised, the stream is dead; `data_to_send` may still hold the alert.
    """

    context: SSL.Context = field(repr=False)
    established: bool = False
    closed: bool = False
    """Nothing more will come: the peer has sent close_notify, or broke off behind a record."""
    group: str = ""
    """Name of the key-exchange group, once the ServerHello was seen; empty for TLS 1.2."""
    _connection: SSL.Connection = field(init=False, repr=False)
    _note: VerifyNote = field(default_factory=VerifyNote, repr=False)

    def __post_init__(self) -> None:
        self._connection = SSL.Connection(self.context, None)
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
                self._check_peer()
                self.established = True
            while True:
                records.append(self._connection.recv(MAX_RECORD))
        except SSL.WantReadError:
            return
        except SSL.ZeroReturnError:
            self.closed = True
        except SSL.Error as exc:
            if not records:
                raise self._failure(exc) from exc
            self.closed = True  # the last words still count, often they say why

    def _failure(self, error: SSL.Error) -> TlsFailed:
        return TlsFailed(self._note.text or reason(error))

    def _check_peer(self) -> None:
        """Look at the peer once more before anything is believed of it."""

    @property
    def certificate_refused(self) -> bool:
        """The handshake failed because we did not accept the peer's certificate."""
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
        return b"".join(pieces)

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
        """Return the verified certificate of the peer, or None if none was sent."""
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


def reason(error: SSL.Error) -> str:
    """Return OpenSSL's words for what happened, `unexpected eof` if it has none."""
    if error.args and isinstance(error.args[0], list) and error.args[0]:
        return ", ".join(str(entry[-1]) for entry in error.args[0])
    return "connection broken"
