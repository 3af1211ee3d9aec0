"""A client that says what it likes: raw sockets and TLS from inside a client namespace."""

import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

from tests.netns.bed import PORT, SERVER4
from tests.netns.namespace import Namespace, inside
from tests.protocol.authority import ClientFiles

PATIENCE_S = 20.0  # longer than the server waits for anything in these tests
INIT = b'<?xml version="1.0"?><config-auth client="vpn" type="init"/>'


def tcp(namespace: Namespace, *, server: str = SERVER4, source: str = "") -> socket.socket:
    """Return a TCP connection from the namespace to the server's port, with a time-out."""
    sock = inside(namespace, lambda: socket.socket(_family(server), socket.SOCK_STREAM))
    sock.settimeout(PATIENCE_S)
    try:
        if source:
            sock.bind((source, 0))
        sock.connect((server, PORT))
    except BaseException:
        sock.close()
        raise
    return sock


def udp(namespace: Namespace, *, server: str = SERVER4) -> socket.socket:
    """Return a UDP socket from the namespace to the server's port, with a time-out."""
    sock = inside(namespace, lambda: socket.socket(_family(server), socket.SOCK_DGRAM))
    sock.settimeout(PATIENCE_S)
    sock.connect((server, PORT))
    return sock


def _family(server: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in server else socket.AF_INET


def until_closed(sock: socket.socket) -> bytes:
    """Return what still comes before the other end closes or resets the connection."""
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
    except (ConnectionError, ssl.SSLError) as exc:
        if isinstance(exc, TimeoutError):
            raise
    return data


@dataclass(frozen=True)
class Answer:
    """One HTTP answer; names of header fields in lower case, the last of a name wins."""

    status: int
    reason: str
    headers: Mapping[str, str]
    body: str
    cookies: Mapping[str, str] = field(default_factory=dict)


class HungUpError(Exception):
    """The server does not want this connection."""


class Stranger:
    """One TLS connection to the server."""

    def __init__(
        self,
        namespace: Namespace,
        files: ClientFiles | None = None,
        *,
        server: str = SERVER4,
        source: str = "",
    ) -> None:
        """Connect and shake hands; HungUpError when the server does not want it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if files is not None:
            context.load_cert_chain(files.certificate, files.key)
        sock = tcp(namespace, server=server, source=source)
        host, port = sock.getsockname()[:2]
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.tls = context.wrap_socket(sock)
        except (ConnectionError, ssl.SSLError) as exc:
            sock.close()
            raise HungUpError(str(exc)) from exc
        self._data = b""

    def send(self, *records: bytes) -> None:
        """Send each as one TLS record, all in as few segments as they need.

        That the server has hung up shows when its answer is read.
        """
        with suppress(OSError):
            self.tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
            for record in records:
                self.tls.sendall(record)
            self.tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)

    def ask(
        self,
        method: str,
        target: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
    ) -> Answer:
        """Send a request and return its answer."""
        self.send(request(method, target, headers=headers, body=body))
        return self.answer()

    def log_in(self, fields: Mapping[str, str], *, context: str = "") -> Answer:
        """Answer the login form, `context` being the login cookie."""
        inputs = "".join(f"<{name}>{value}</{name}>" for name, value in fields.items())
        body = f'<?xml version="1.0"?><config-auth type="auth-reply"><auth>{inputs}</auth>'
        cookie = [("Cookie", f"webvpncontext={context}")] if context else []
        return self.ask("POST", "/auth", headers=cookie, body=f"{body}</config-auth>".encode())

    def connect(self, cookie: str, headers: Sequence[tuple[str, str]] = ()) -> Answer:
        """Ask for a tunnel."""
        fields = [("Cookie", f"webvpn={cookie}"), *headers]
        return self.ask("CONNECT", "/CSCOSSLC/tunnel", headers=fields)

    def answer(self) -> Answer:
        """Return the next answer; HungUpError when the connection ends without a whole one."""
        while b"\r\n\r\n" not in self._data:
            self._receive()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        pairs = [(name.lower(), value) for name, value in (ln.split(": ", 1) for ln in lines)]
        headers = dict(pairs)
        size = int(headers.get("content-length", 0))
        while len(self._data) < size:
            self._receive()
        body, self._data = self._data[:size].decode(), self._data[size:]
        _, status, reason = first.split(" ", 2)
        set_cookies = [value.partition(";")[0] for name, value in pairs if name == "set-cookie"]
        cookies = dict(cookie.split("=", 1) for cookie in set_cookies)
        return Answer(int(status), reason, headers, body, cookies)

    def _receive(self) -> None:
        try:
            piece = self.tls.recv(65536)
        except (ConnectionError, ssl.SSLError) as exc:
            raise HungUpError(str(exc)) from exc
        if not piece:
            raise HungUpError(f"the connection ended with {self._data!r}")
        self._data += piece

    def rest(self) -> bytes:
        """Return what still comes until the server closes."""
        data, self._data = self._data + until_closed(self.tls), b""
        return data

    def close(self) -> None:
        self.tls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request(
    method: str, target: str, *, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
) -> bytes:
    """Return an HTTP request."""
    fields = [("Host", "vpn.example"), *headers]
    if body:
        fields.append(("Content-Length", str(len(body))))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + body
