"""A TLS client in memory: pyOpenSSL's public calls alone."""

import contextlib

from OpenSSL import SSL

from tests.protocol.authority import ClientFiles
from vpnd.protocol.tls_stream import TlsStream


class TlsClient:
    """One client connection; ciphertext goes in and out by hand."""

    def __init__(
        self,
        *,
        files: ClientFiles | None = None,
        newest: int = SSL.TLS1_3_VERSION,
        session_of: "TlsClient | None" = None,
    ) -> None:
        if session_of is None:
            context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            context.set_max_proto_version(newest)
        else:
            context = session_of.context
        if files is not None:
            context.use_certificate_chain_file(str(files.certificate).encode())
            context.use_privatekey_file(str(files.key).encode())
        self.context = context
        self.connection = SSL.Connection(context, None)
        session = session_of.connection.get_session() if session_of else None
        if session is not None:
            self.connection.set_session(session)
        self.connection.set_connect_state()

    def step(self, ciphertext: bytes = b"") -> bytes:
        """Go on with the handshake; return what to send.  Raises SSL.Error for an alert."""
        if ciphertext:
            self.connection.bio_write(ciphertext)
        with contextlib.suppress(SSL.WantReadError):
            self.connection.do_handshake()
        return self.output()

    def send(self, *payloads: bytes) -> bytes:
        """Return the payloads as ciphertext, one record each."""
        for payload in payloads:
            self.connection.send(payload)
        return self.output()

    def output(self) -> bytes:
        try:
            return self.connection.bio_read(1 << 20)
        except SSL.WantReadError:
            return b""

    def read(self, ciphertext: bytes) -> list[bytes]:
        """Return the plaintext of each record.  Raises SSL.Error at an alert."""
        if ciphertext:
            self.connection.bio_write(ciphertext)
        records = []
        try:
            while True:
                records.append(self.connection.recv(1 << 14))
        except SSL.WantReadError:
            return records
        except SSL.ZeroReturnError:
            if records:  # the end is told by the next reading
                return records
            raise


def handshake(client: TlsClient, server: TlsStream) -> None:
    """Run the handshake to its end."""
    to_server = client.step()
    for _ in range(4):
        assert server.receive(to_server) == []
        to_server = client.step(server.data_to_send())
        if server.established and not to_server:
            return
    raise AssertionError("the handshake does not end")
