"""Bulk TCP both ways with checksums: the program of both ends and a test's handle on it.

    python -m tests.netns.transfer serve ADDRESS PORT          print "ready", answer until killed
    python -m tests.netns.transfer run ADDRESS PORT UP DOWN WINDOW

`run` sends UP bytes, then receives DOWN, never with more than WINDOW bytes (0: as many as the
kernel likes) under way.
`run` prints "up N" or "down N" after every MiB (N in MiB) and at the end one line of JSON:
the bytes and the seconds of each direction. It fails unless both checksums are right.
"""

import hashlib
import json
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping

from tests.netns.namespace import PYTHON, Namespace
from tests.netns.process import Process

PROGRAM = (*PYTHON, "tests.netns.transfer")
PORT = 5001
CHUNK = 1 << 20
SILENCE_S = 90.0  # a transfer may stall while a tunnel falls back from UDP to TLS


def chunks(seed: str, total: int) -> Iterator[bytes]:
    """Yield `total` bytes that look random and are the same for the same seed."""
    source = random.Random(seed)
    for start in range(0, total, CHUNK):
        yield source.randbytes(min(CHUNK, total - start))


def send(sock: socket.socket, seed: str, total: int, *, progress: str | None) -> None:
    """Send the bytes of a seed and compare the checksum that the other end answers."""
    digest = hashlib.sha256()
    for number, chunk in enumerate(chunks(seed, total), 1):
        sock.sendall(chunk)
        digest.update(chunk)
        if progress:
            print(progress, number, flush=True)
    answered = receive_exactly(sock, digest.digest_size)
    if answered != digest.digest():
        raise SystemExit(f"{seed}: the other end has another checksum")


def receive(sock: socket.socket, seed: str, total: int, *, progress: str | None) -> None:
    """Receive as many bytes, answer their checksum and compare them with the seed's."""
    digest, expected = hashlib.sha256(), hashlib.sha256()
    for number, chunk in enumerate(chunks(seed, total), 1):
        expected.update(chunk)
        digest.update(receive_exactly(sock, len(chunk)))
        if progress:
            print(progress, number, flush=True)
    sock.sendall(digest.digest())
    if digest.digest() != expected.digest():
        raise SystemExit(f"{seed}: received bytes have another checksum")


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Return exactly as many bytes; ConnectionError when the other end closes before."""
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = sock.recv_into(view)
        if not count:
            raise ConnectionError("the other end closed the connection")
        view = view[count:]
    return bytes(data)


def answer(sock: socket.socket) -> None:
    with sock:
        sock.settimeout(SILENCE_S)
        up, down, window = json.loads(receive_exactly(sock, 64))
        narrow(sock, window)
        receive(sock, "up", up, progress=None)
        send(sock, "down", down, progress=None)


def narrow(sock: socket.socket, window: int) -> None:
    if window:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, window)


def serve(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        print("ready", flush=True)
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=answer, args=(sock,), daemon=True).start()


def transfer(address: str, port: int, up: int, down: int, window: int) -> None:
    with socket.create_connection((address, port), timeout=SILENCE_S) as sock:
        narrow(sock, window)
        sock.sendall(json.dumps([up, down, window]).encode().ljust(64))
        started = time.monotonic()
        send(sock, "up", up, progress="up")
        sent = time.monotonic()
        receive(sock, "down", down, progress="down")
        received = time.monotonic()
    result = {"up": up, "up_s": sent - started, "down": down, "down_s": received - sent}
    print(json.dumps(result), flush=True)


class Transfer:
    """A bulk transfer between two namespaces."""

    def __init__(self, process: Process) -> None:
        self.process = process

    @classmethod
    def start(
        cls,
        namespace: Namespace,
        address: str,
        *,
        up: int,
        down: int,
        port: int = PORT,
        window: int = 0,
    ) -> "Transfer":
        """Send and then receive so many bytes; `serve_transfers` must run there.

        A window that every queue on the way can hold loses no packet, its own or another's.
        """
        arguments = ["run", address, *map(str, (port, up, down, window))]
        return cls(namespace.start(f"transfer-{namespace.name}", *PROGRAM, *arguments))

    def wait_mebibytes(self, direction: str, count: int, timeout_s: float = 60.0) -> None:
        """Wait until so much of "up" or "down" is done."""
        self.process.wait_for(f"^{direction} {count}$", timeout_s=timeout_s)

    def finish(self, timeout_s: float = 120.0) -> Mapping[str, float]:
        """Wait for its end; return bytes and seconds of each direction, checksums being right."""
        result: Mapping[str, float] = json.loads(
            self.process.wait_for(r"^\{.*\}$", timeout_s=timeout_s)[0]
        )
        assert self.process.wait() == 0
        return result

    def stop(self) -> None:
        """End it before it is done."""
        self.process.kill()


def serve_transfers(namespace: Namespace, address: str) -> None:
    """Answer transfers at an address of a namespace."""
    name = f"transfer-server-{address.replace(':', '.')}"
    server = namespace.start(name, *PROGRAM, "serve", address, str(PORT))
    server.wait_for("^ready")


def main() -> None:
    match sys.argv[1:]:
        case ["serve", address, port]:
            serve(address, int(port))
        case ["run", address, port, up, down, window]:
            transfer(address, int(port), int(up), int(down), int(window))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
