"""A DTLS client with a pre-shared key, all in memory: OpenSSL's, and so not our own reading.

Flights come as one datagram each.  Nothing here sleeps: OpenSSL repeats flights by its own
clock, so `again` makes the repetition by hand.
"""

from OpenSSL import SSL

from vpnd.protocol.dtls_handshake import ChannelKeys, DtlsHandshake, derive_keys
from vpnd.wire.dtls_record import SUITES

SSL_FFI, SSL_LIB = vars(SSL)["_ffi"], vars(SSL)["_lib"]  # the cffi library below
AES256 = "PSK-AES256-GCM-SHA384"
APP_ID_EXTENSION = 48018


class PskClient:
    """One client connection."""

    def __init__(self, psk: bytes, *, cipher: str = AES256, app_id: bytes = b"\x01" * 32) -> None:
        self._psk = psk
        self._app_id = SSL_FFI.new("unsigned char[]", bytes([len(app_id)]) + app_id)
        self._size = 1 + len(app_id)
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_cipher_list(cipher.encode())
        context.set_options(SSL.OP_NO_QUERY_MTU | SSL.OP_NO_TICKET)
        self._callbacks = (
            SSL_FFI.callback(
                "unsigned int(SSL*, const char*, char*, unsigned int, unsigned char*,"
                " unsigned int)",
                self._give_key,
            ),
            SSL_FFI.callback(
                "int(SSL*, unsigned int, const unsigned char**, size_t*, int*, void*)",
                self._give_app_id,
            ),
            SSL_FFI.callback(
                "int(SSL*, unsigned int, const unsigned char*, size_t, int*, void*)",
                lambda *_: 1,
            ),
        )
        key, add, parse = self._callbacks
        SSL_LIB.SSL_CTX_set_psk_client_callback(context._context, key)
        null = SSL_FFI.NULL
        assert SSL_LIB.SSL_CTX_add_client_custom_ext(
            context._context, APP_ID_EXTENSION, add, null, null, parse, null
        )
        self.connection = SSL.Connection(context, None)
        self.connection.set_connect_state()
        self.connection.set_ciphertext_mtu(1200)
        self.is_done = False

    def _give_key(self, _ssl: object, _hint: object, identity: object, *rest: object) -> int:
        SSL_FFI.memmove(identity, b"psk\0", 4)
        SSL_FFI.memmove(rest[1], self._psk, len(self._psk))
        return len(self._psk)

    def _give_app_id(
        self, _ssl: object, _kind: int, out: list[object], size: list[int], *_: object
    ) -> int:
        out[0], size[0] = self._app_id, self._size
        return 1

    def hello(self) -> bytes:
        """Begin; return the ClientHello."""
        flight = self.step()
        assert flight
        return flight

    def step(self, datagram: bytes = b"") -> bytes:
        """Take a datagram, return the flight that answers it, if any."""
        if datagram:
            self.connection.bio_write(datagram)
        try:
            self.connection.do_handshake()
            self.is_done = True
        except SSL.WantReadError:
            pass
        return self._flight()

    def _flight(self) -> bytes:
        try:
            return self.connection.bio_read(65536)
        except SSL.WantReadError:
            return b""

    def keys(self) -> ChannelKeys:
        """Return the keys as this end has them."""
        connection = self.connection
        return derive_keys(
            SUITES[connection.get_cipher_name() or ""],
            master_secret=connection.master_key() or b"",
            client_random=connection.client_random() or b"",
            server_random=connection.server_random() or b"",
        )

    def seal(self, payload: bytes) -> bytes:
        """Return a record with `payload`, sealed by OpenSSL."""
        self.connection.send(payload)
        return self._flight()

    def open(self, record: bytes) -> bytes:
        """Return what is in a record; raise SSL.WantReadError where OpenSSL drops it."""
        self.connection.bio_write(record)
        return self.connection.recv(65536)


def again(hello: bytes, number: int) -> bytes:
    """Return the `number`-th repetition of a ClientHello: the same message, another record.

    The record numbers lie above those that the client itself goes on with, and inside the
    replay window of the other end.
    """
    return hello[:5] + (30 + number).to_bytes(6, "big") + hello[11:]


def handshake(client: PskClient, server: DtlsHandshake, *, now: float = 0.0) -> bytes:
    """Run the handshake to its end; return the server's last flight."""
    server.receive(client.hello(), now=now)
    (flight,) = server.data_to_send()
    server.receive(client.step(flight), now=now)
    (last,) = server.data_to_send()
    client.step(last)
    assert client.is_done
    assert server.keys is not None
    return last
