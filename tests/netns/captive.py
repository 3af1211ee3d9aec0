"""A captive portal, or whatever else answers where a VPN server was expected.

python -m tests.netns.captive plain ADDRESS PORT                 HTML without TLS
python -m tests.netns.captive tls ADDRESS PORT CERTIFICATE KEY   HTML over TLS

Prints "connection" for each connection, and "asked LINE" for what it was asked.
"""

import socket
import ssl
import sys
from contextlib import suppress

PAGE = b"<html><body>Please accept our terms.</body></html>"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n"
    b"Connection: close\r\n\r\n%s" % (len(PAGE), PAGE)
)
PATIENCE_S = 5.0


def answer(sock: socket.socket, context: ssl.SSLContext | None) -> None:
    """Answer anything with a page."""
    if context is not None:
        sock = context.wrap_socket(sock, server_side=True)
    with sock:
        asked = sock.recv(65536)
        if context is not None:
            print("asked", asked.splitlines()[0].decode(errors="replace"), flush=True)
        sock.sendall(ANSWER)


def main() -> None:
    kind, address, port, *pair = sys.argv[1:]
    context = None
    if kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
    with socket.create_server((address, int(port))) as listener:
        print("ready", flush=True)
        while True:
            sock, _ = listener.accept()
            print("connection", flush=True)
            sock.settimeout(PATIENCE_S)
            with suppress(OSError):
                answer(sock, context)


if __name__ == "__main__":
    main()
