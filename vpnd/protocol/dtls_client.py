"""DTLS 1.2 handshakes with a pre-shared key, client side (protocol name: PSK-NEGOTIATE).

OpenSSL does the handshake on memory buffers, the keys then go to our record layer, as on the
server's side (`protocol.dtls_handshake`).  The App-ID, by which the server finds our session,
travels in extension 48018.

Two things differ from the rest of this package.  The repetition of lost flights is OpenSSL's: it
alone can give a repeated Finished a new record number, so its clock runs inside (`next_deadline`
asks it).  And a handshake that timed out is not started again: make a fresh one, with the App-ID
and PSK of the CONNECT that is current by then.
"""

from typing import Any

from OpenSSL import SSL

from vpnd.errors import LocalProtocolError
from vpnd.protocol.dtls_handshake import (
    HANDSHAKE_TIMEOUT,
    LINK_MTU,
    ChannelKeys,
    HandshakeFailed,
    channel_keys,
    ffi,
    lib,
    read_flight,
    refuse,
    ssl_address,
)
from vpnd.wire.dtls_hello import APP_ID_EXTENSION, MAX_APP_ID
from vpnd.wire.dtls_record import APPLICATION_DATA, SUITES

IDENTITY = b"psk\0"  # as stock clients; no server looks at it
MAX_DATAGRAMS = 64  # taken per handshake; a good one needs two, each costs OpenSSL work
RETRY_AFTER = 60.0  # seconds from a failed handshake to the next, as stock clients
MIN_SPACING = 3.5  # seconds between two for one session: ocserv drops the second within 3
_HAS_TIMER = hasattr(SSL.Connection, "DTLSv1_get_timeout")  # pyOpenSSL 23.1 and newer
_PSK_CALLBACK = (
    "unsigned int(SSL*, const char*, char*, unsigned int, unsigned char*, unsigned int)"
)
_ADD_CALLBACK = "int(SSL*, unsigned int, const unsigned char**, size_t*, int*, void*)"
_PARSE_CALLBACK = "int(SSL*, unsigned int, const unsigned char*, size_t, int*, void*)"


def client_psk_supported() -> bool:
    """Return whether this pyOpenSSL lets us be a DTLS client; without it there is only TLS."""
    return hasattr(lib, "SSL_CTX_set_psk_client_callback") and hasattr(
        lib, "SSL_CTX_add_client_custom_ext"
    )


class DtlsClientContext:
    """The OpenSSL context of this process's DTLS handshakes as client.

    The callbacks find a handshake's key and App-ID by the address of its SSL object.
    """

    def __init__(self, *, chacha_first: bool = False) -> None:
        names = list(SUITES)
        if chacha_first:
            names.sort(key=lambda name: "CHACHA20" not in name)
        self._sessions: dict[int, tuple[bytes, Any, int]] = {}
        self._context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        self._context.set_cipher_list(":".join(names).encode())
        self._context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION)
        self._context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # cffi frees a callback with the last reference: they must live as long as the context
        self._callbacks = (
            ffi.callback(_PSK_CALLBACK, self._give_key, error=0, onerror=refuse),
            ffi.callback(_ADD_CALLBACK, self._give_app_id, error=-1, onerror=_stop),
            ffi.callback(_PARSE_CALLBACK, _ignore_extension, error=1, onerror=_go_on),
        )
        key, add, parse = self._callbacks
        raw = self._context._context  # noqa: SLF001
        lib.SSL_CTX_set_psk_client_callback(raw, key)
        if not lib.SSL_CTX_add_client_custom_ext(
            raw, APP_ID_EXTENSION, add, ffi.NULL, ffi.NULL, parse, ffi.NULL
        ):
            raise LocalProtocolError("OpenSSL does not let us send the App-ID")

    def _give_key(
        self, ssl: Any, _hint: Any, identity: Any, room: int, out: Any, key_room: int
    ) -> int:
        psk, _, _ = self._sessions[ssl_address(ssl)]
        if len(psk) > key_room or len(IDENTITY) > room:
            return 0
        ffi.memmove(identity, IDENTITY, len(IDENTITY))
        ffi.memmove(out, psk, len(psk))
        return len(psk)

    def _give_app_id(self, ssl: Any, _kind: int, out: Any, size: Any, *_: Any) -> int:
        session = self._sessions[ssl_address(ssl)]
        out[0], size[0] = session[1:]
        return 1

    def open(self, psk: bytes, app_id: bytes) -> SSL.Connection:
        """Return a new client-side connection that will use `psk` and name `app_id`."""
        if not 1 <= len(app_id) <= MAX_APP_ID:
            raise LocalProtocolError(f"an App-ID has 1 to {MAX_APP_ID} bytes")
        connection = SSL.Connection(self._context, None)
        connection.set_connect_state()
        connection.set_ciphertext_mtu(LINK_MTU)
        body = bytes([len(app_id)]) + app_id
        buffer = ffi.new("unsigned char[]", body)  # freed with the session's last reference
        self._sessions[ssl_address(connection._ssl)] = (psk, buffer, len(body))  # noqa: SLF001
        return connection

    def forget(self, connection: SSL.Connection) -> None:
        """Drop what belongs to `connection`."""
        self._sessions.pop(ssl_address(connection._ssl), None)  # noqa: SLF001


def _ignore_extension(*_: object) -> int:
    return 1


def _stop(*_: object) -> int:
    """Answer for a callback that raised: no ClientHello without an App-ID."""
    return -1


def _go_on(*_: object) -> int:
    return 1


def _time_left(connection: SSL.Connection) -> float | None:
    """Return the seconds until OpenSSL wants to repeat its flight, None if it waits for none."""
    if _HAS_TIMER:
        return connection.DTLSv1_get_timeout()
    seconds, microseconds = ffi.new("time_t *"), ffi.new("long *")
    ssl = connection._ssl  # noqa: SLF001
    if not lib.Cryptography_DTLSv1_get_timeout(ssl, seconds, microseconds):
        return None
    return float(seconds[0] + microseconds[0] / 1e6)


def _repeat(connection: SSL.Connection) -> None:
    """Let OpenSSL repeat its flight if it is time; raise SSL.Error if it was often enough."""
    if _HAS_TIMER:
        connection.DTLSv1_handle_timeout()
        return
    ssl = connection._ssl  # noqa: SLF001
    result = lib.DTLSv1_handle_timeout(ssl)
    if result < 0:
        connection._raise_ssl_error(ssl, result)  # noqa: SLF001


class DtlsClientHandshake:
    """One handshake of ours with a server.

    Call `start`, then feed the server's datagrams to `receive`, send what `data_to_send` returns,
    and call `expire` when `next_deadline` has come.  `keys` is set when the handshake is complete:
    seal with `keys.client`, open with `keys.server`.
    """

    def __init__(self, context: DtlsClientContext, psk: bytes, app_id: bytes) -> None:
        self._context = context
        self._connection: SSL.Connection | None = context.open(psk, app_id)
        self._out: list[bytes] = []
        self._taken = 0
        self._repeat_at = 0.0
        self.started_at = 0.0
        self.keys: ChannelKeys | None = None

    def start(self, now: float) -> None:
        """Make the ClientHello."""
        self.started_at = now
        self._step(now)

    def receive(self, datagram: bytes, now: float) -> None:
        """Take one datagram from the server's address.

        Raises HandshakeFailed when this handshake can never complete; the session's other
        channels are not touched.
        """
        if self._connection is None or not datagram:  # the library takes no empty write
            return
        if datagram[0] == APPLICATION_DATA:  # the server was done first: many, and of no use yet
            return
        self._taken += 1
        if self._taken > MAX_DATAGRAMS:
            self.close()
            raise HandshakeFailed(f"more than {MAX_DATAGRAMS} datagrams in one DTLS handshake")
        self._connection.bio_write(datagram)
        self._step(now)

    def _step(self, now: float) -> None:
        connection = self._connection
        if connection is None:
            return
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            self._queue(connection, now)
        except SSL.Error as exc:
            self._queue(connection, now)  # the alert
            self.close()
            raise HandshakeFailed("DTLS handshake refused") from exc
        else:
            self._queue(connection, now)
            try:
                self.keys = channel_keys(connection)
            finally:
                self.close()

    def _queue(self, connection: SSL.Connection, now: float) -> None:
        flight = read_flight(connection)
        if flight:
            self._out.append(flight)
        wait = _time_left(connection)
        self._repeat_at = now + (HANDSHAKE_TIMEOUT if wait is None else wait)

    def data_to_send(self) -> list[bytes]:
        """Return the datagrams that wait to go out."""
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float:
        """Return when `expire` is due at the latest; meaningless once there are `keys`."""
        return min(self._repeat_at, self.started_at + HANDSHAKE_TIMEOUT)

    def expire(self, now: float) -> bool:
        """Queue a flight again if it is time; return True, and close, if it took too long."""
        connection = self._connection
        if self.keys is not None:
            return False
        if connection is None or now >= self.started_at + HANDSHAKE_TIMEOUT:
            self.close()
            return True
        if now >= self._repeat_at:
            try:
                _repeat(connection)
            except SSL.Error:  # OpenSSL has repeated it often enough
                self.close()
                return True
            self._queue(connection, now)
        return False

    def close(self) -> None:
        """Drop the OpenSSL object (70 KiB) and the key; what waits to go out stays."""
        if self._connection is not None:
            self._context.forget(self._connection)
            self._connection = None
