"""DTLS 1.2 handshakes with a pre-shared key, server side (protocol name: PSK-NEGOTIATE).

OpenSSL does the handshake on memory buffers; the keys then go to our record layer
(`wire.dtls_record`).  The key-callback has no public name in pyOpenSSL, so the cffi
library below it is used, here and in `dtls_client`; `psk_supported` says whether it is there.

Rules the other end depends on:
- The OpenSSL object never writes again once the keys were taken: its next record number
  would repeat one of ours.
- The last flight (ChangeCipherSpec, Finished) is kept and sent again verbatim while the
  client repeats its own, because a lost one cannot be made anew.
"""

import hmac
from dataclasses import dataclass, field
from typing import Any

from OpenSSL import SSL

from vpnd.errors import RemoteProtocolError
from vpnd.wire.dtls_hello import is_client_hello
from vpnd.wire.dtls_record import SUITES, DirectionKeys, Suite

HANDSHAKE_TIMEOUT = 12.0  # seconds; stock clients give up after as long
MAX_ANSWERS = 3  # flights of ours before the client has proved anything
MAX_RESENDS = 10  # of the last flight
RESEND_INTERVAL = 0.2  # seconds between two of them
MAX_DATAGRAM = 16 * 1024  # what the handshake may hand us in one flight
LINK_MTU = 1200  # bytes of a handshake datagram that every path carries
_CALLBACK = "unsigned int(SSL*, const char*, unsigned char*, unsigned int)"

lib: Any = SSL._lib  # type: ignore[attr-defined]  # noqa: SLF001 - no public PSK calls exist
ffi: Any = SSL._ffi  # type: ignore[attr-defined]  # noqa: SLF001


def psk_supported() -> bool:
    """Return whether this pyOpenSSL lets us set a PSK callback; without it there is only TLS."""
    return hasattr(lib, "SSL_CTX_set_psk_server_callback")


class HandshakeFailed(RemoteProtocolError):
    """This handshake is over; the session's other channels are not touched."""


@dataclass(frozen=True, slots=True)
class ChannelKeys:
    """What a finished handshake yields for the record layer."""

    suite: Suite
    client: DirectionKeys = field(repr=False)
    server: DirectionKeys = field(repr=False)


class DtlsContext:
    """The one OpenSSL context of all DTLS handshakes of this process.

    The callback finds a handshake's key by the address of its SSL object.
    """

    def __init__(self, *, chacha_first: bool = False) -> None:
        names = list(SUITES)
        if chacha_first:
            names.sort(key=lambda name: "CHACHA20" not in name)
        self._keys: dict[int, bytes] = {}
        self._context = SSL.Context(SSL.DTLS_SERVER_METHOD)
        self._context.set_cipher_list(":".join(names).encode())
        self._context.set_options(
            SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET | SSL.OP_CIPHER_SERVER_PREFERENCE
        )
        self._context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        # cffi frees the callback with the last reference: it must live as long as the context
        self._callback = ffi.callback(_CALLBACK, self._find_key, error=0, onerror=refuse)
        lib.SSL_CTX_set_psk_server_callback(self._context._context, self._callback)  # noqa: SLF001

    def _find_key(self, ssl: Any, _identity: Any, out: Any, room: int) -> int:
        key = self._keys.get(ssl_address(ssl))
        if key is None or len(key) > room:
            return 0
        ffi.memmove(out, key, len(key))
        return len(key)

    def open(self, psk: bytes) -> SSL.Connection:
        """Return a new server-side connection that will accept `psk` only."""
        connection = SSL.Connection(self._context, None)
        connection.set_accept_state()
        connection.set_ciphertext_mtu(LINK_MTU)
        self._keys[ssl_address(connection._ssl)] = psk  # noqa: SLF001
        return connection

    def forget(self, connection: SSL.Connection) -> None:
        """Drop the key that belongs to `connection`."""
        self._keys.pop(ssl_address(connection._ssl), None)  # noqa: SLF001


def read_flight(connection: SSL.Connection) -> bytes:
    """Return what OpenSSL wants to send, which fits one datagram; perhaps nothing."""
    try:
        return connection.bio_read(MAX_DATAGRAM)
    except SSL.WantReadError:
        return b""


def ssl_address(ssl: Any) -> int:
    """Return what tells an SSL object from all others while it lives."""
    return int(ffi.cast("uintptr_t", ssl))


def refuse(_kind: object, _value: object, _traceback: object) -> int:
    """Answer for a callback that raised: no key, the handshake fails."""
    return 0


class DtlsHandshake:
    """One handshake with one client address.

    Feed datagrams to `receive`, send what `data_to_send` returns, call `expire` when
    `next_deadline` has come.  `keys` is set when the handshake is complete.
    """

    def __init__(self, context: DtlsContext, psk: bytes, *, now: float) -> None:
        self._context = context
        self._connection: SSL.Connection | None = context.open(psk)
        self._answers = 0
        self._out: list[bytes] = []
        self._last_flight = b""
        self._resends = 0
        self._resent_at = now
        self.started_at = now
        self.keys: ChannelKeys | None = None

    def receive(self, datagram: bytes, *, now: float) -> None:
        """Take one datagram from the client's address.

        Raises HandshakeFailed when this handshake can never complete.
        """
        connection = self._connection
        if connection is None:
            self._repeat_last_flight(now)
            return
        if not datagram:  # the library takes no empty write
            return
        connection.bio_write(datagram)
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            flight = read_flight(connection)
            if not flight and is_client_hello(datagram):
                flight = self._last_flight  # OpenSSL repeats by its own clock alone
            self._answer(flight)
        except SSL.Error as exc:
            self.close()
            raise HandshakeFailed("DTLS handshake refused") from exc
        else:
            self._last_flight = read_flight(connection)
            self._out.append(self._last_flight)
            self._take_keys(connection)

    def _answer(self, flight: bytes) -> None:
        """Send a flight to a client that has proved nothing: not often, then not at all."""
        if flight and self._answers < MAX_ANSWERS:
            self._answers += 1
            self._last_flight = flight
            self._out.append(flight)

    def _take_keys(self, connection: SSL.Connection) -> None:
        try:
            self.keys = channel_keys(connection)
        finally:
            self.close()

    def close(self) -> None:
        """Drop the OpenSSL object (70 KiB) and the key; the last flight stays."""
        if self._connection is not None:
            self._context.forget(self._connection)
            self._connection = None

    def repeat_last_flight(self, *, now: float) -> None:
        """The client repeats its Finished: ours was lost, queue the same bytes again."""
        self._repeat_last_flight(now)

    def _repeat_last_flight(self, now: float) -> None:
        if self._resends < MAX_RESENDS and now - self._resent_at >= RESEND_INTERVAL:
            self._resends += 1
            self._resent_at = now
            self._out.append(self._last_flight)

    def data_to_send(self) -> list[bytes]:
        """Return the datagrams that wait to go out."""
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float:
        """Return when `expire` is due at the latest."""
        return self.started_at + HANDSHAKE_TIMEOUT

    def expire(self, *, now: float) -> bool:
        """Return True, and close, when the handshake has taken too long."""
        if self.keys is None and now >= self.next_deadline():
            self.close()
            return True
        return False


def channel_keys(connection: SSL.Connection) -> ChannelKeys:
    """Return the keys of a handshake that is complete; raise HandshakeFailed for another suite.

    The connection must never write again: its next record number would repeat one of ours.
    """
    name = connection.get_cipher_name() or ""
    suite = SUITES.get(name)
    if suite is None:
        raise HandshakeFailed(f"no record layer for {name}")
    return derive_keys(
        suite,
        master_secret=connection.master_key() or b"",
        client_random=connection.client_random() or b"",
        server_random=connection.server_random() or b"",
    )


def derive_keys(
    suite: Suite, *, master_secret: bytes, client_random: bytes, server_random: bytes
) -> ChannelKeys:
    """Cut the key block into the four values an AEAD suite needs (RFC 5246 section 6.3)."""
    key, iv = suite.key_size, suite.iv_size
    block = prf(
        suite.prf_hash,
        master_secret,
        b"key expansion" + server_random + client_random,
        2 * (key + iv),
    )
    return ChannelKeys(
        suite,
        client=DirectionKeys(block[:key], block[2 * key : 2 * key + iv]),
        server=DirectionKeys(block[key : 2 * key], block[2 * key + iv :]),
    )


def prf(digest: str, secret: bytes, seed: bytes, size: int) -> bytes:
    """Return `size` bytes of TLS 1.2's P_hash (RFC 5246 section 5); `seed` holds the label."""
    a, out = seed, b""
    while len(out) < size:
        a = hmac.digest(secret, a, digest)
        out += hmac.digest(secret, a + seed, digest)
    return out[:size]
