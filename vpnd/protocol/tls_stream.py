"""TLS over bytes, the server's end: ciphertext in, plaintext out, no socket."""

from dataclasses import dataclass

from OpenSSL import SSL

from vpnd.errors import ConfigError
from vpnd.protocol.tls_connection import (
    CHACHA_FIRST,
    MODE_RELEASE_BUFFERS,
    TLS12_CIPHERS,
    TlsConnection,
    VerifyNote,
)
from vpnd.wire.tls_hello import key_exchange_group


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
        context.set_cipher_list(TLS12_CIPHERS)
    if chacha_first and hasattr(context, "set_tls13_ciphersuites"):
        context.set_tls13_ciphersuites(CHACHA_FIRST)
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
    if not ok and isinstance(note, VerifyNote):
        note.refuse(certificate, error)
    return bool(ok)


@dataclass(slots=True)
class TlsStream(TlsConnection):
    """One TLS connection, server side."""

    def __post_init__(self) -> None:
        TlsConnection.__post_init__(self)  # slots make another class, which super() would miss
        self._connection.set_accept_state()

    def data_to_send(self) -> bytes:
        """Return the ciphertext that waits to go out; empty when there is none."""
        data = TlsConnection.data_to_send(self)
        if not self.group and data:
            self.group = key_exchange_group(data)
        return data
