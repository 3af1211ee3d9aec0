"""Numbered datagrams both ways at a steady pace: the judge of whether a packet was lost.

    python -m tests.netns.numbered serve ADDRESS PORT    print "ready", answer until killed
    python -m tests.netns.numbered run ADDRESS PORT WAY  send "both" ways, or "down" alone

`run` prints "flowing" when the first has come back, goes on until SIGUSR1, and then prints one
line of JSON: how many were sent, how many of them were lost and how many came twice in each
direction.  A TCP connection carries the appointment.
"""

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.netns.namespace import PYTHON, Namespace
from tests.netns.process import Process

PROGRAM = (*PYTHON, "tests.netns.numbered")
PORT = 5002
PER_SECOND = 500  # a queue of as many packets bears a second without the CPU
BURST = 5  # datagrams between two sleeps
PAYLOAD = 200  # bytes
STRAGGLERS_S = 1.0  # what is still under way when all has been sent
BUFFER = 4 << 20
SO_RCVBUFFORCE = 33  # asm-generic/socket.h; Python has no name for it


class Counter:
    """Counts the numbers that come in on a UDP socket, in a thread of its own."""

    def __init__(self, udp: socket.socket) -> None:
        self.seen: set[int] = set()
        self.twice = 0
        self.first = threading.Event()
        self._udp = udp
        udp.settimeout(STRAGGLERS_S)
        self._thread = threading.Thread(target=self._count)
        self._sent = threading.Event()
        self._thread.start()

    def _count(self) -> None:
        while True:
            try:
                data = self._udp.recv(2048)
            except TimeoutError:
                if self._sent.is_set():
                    return
                continue
            number = int.from_bytes(data[:4], "big")
            self.twice += number in self.seen
            self.seen.add(number)
            self.first.set()

    def result(self, count: int) -> dict[str, int]:
        """Wait for stragglers and return what is missing of `count`, and what came twice."""
        self._sent.set()
        self._thread.join()
        return {"sent": count, "lost": count - len(self.seen), "twice": self.twice}


class Sender:
    """Sends numbers until it is stopped, in a thread of its own."""

    def __init__(self, udp: socket.socket, to: tuple[str, int]) -> None:
        self.count = 0
        self._udp, self._to = udp, to
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def start(self) -> None:
        self._thread.start()

    def _send(self) -> None:
        began = time.monotonic()
        while not self._stopped.is_set():
            for _ in range(BURST):
                number = self.count.to_bytes(4, "big")
                self._udp.sendto(number + bytes(PAYLOAD - 4), self._to)
                self.count += 1
            time.sleep(max(0.0, began + self.count / PER_SECOND - time.monotonic()))

    def stop(self) -> int:
        """Stop; return how many were sent."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        return self.count


@contextmanager
def udp_socket(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        udp.bind((address, 0))
        yield udp


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port)) as listener:
        print("ready", flush=True)
        while True:
            tcp, _ = listener.accept()
            with tcp:
                answer(tcp)


def answer(tcp: socket.socket) -> None:
    """Send as long as the other end does, then say how many, and what came of its own."""
    with udp_socket(tcp.getsockname()[0]) as udp, tcp.makefile("rw") as line:
        line.write(f"{udp.getsockname()[1]}\n")
        line.flush()
        sender = Sender(udp, (tcp.getpeername()[0], int(line.readline())))
        counter = Counter(udp)
        sender.start()
        theirs = int(line.readline())
        line.write(f"{sender.stop()}\n{json.dumps(counter.result(theirs))}\n")


def run(address: str, port: int, way: str) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    with (
        socket.create_connection((address, port)) as tcp,
        udp_socket(tcp.getsockname()[0]) as udp,
        tcp.makefile("rw") as line,
    ):
        line.write(f"{udp.getsockname()[1]}\n")
        line.flush()
        sender = Sender(udp, (address, int(line.readline())))
        counter = Counter(udp)
        if way == "both":
            sender.start()
        counter.first.wait()
        print("flowing", flush=True)
        stop.wait()
        line.write(f"{sender.stop()}\n")
        line.flush()
        got = counter.result(int(line.readline()))
        given = json.loads(line.readline())
    print(json.dumps({"up": given, "down": got}), flush=True)


def serve_numbered(namespace: Namespace, address: str) -> Process:
    """Answer on an address of the namespace."""
    server = namespace.start("numbered-server", *PROGRAM, "serve", address, str(PORT))
    server.wait_for("^ready")
    return server


class Stream:
    """Datagrams that flow both ways while the test does something."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    def start(cls, namespace: Namespace, address: str, *, up: bool = True) -> "Stream":
        """Let datagrams flow to and from the address, or from there alone."""
        way = "both" if up else "down"
        process = namespace.start("numbered", *PROGRAM, "run", address, str(PORT), way)
        process.wait_for("^flowing")
        return cls(process)

    def finish(self) -> Mapping[str, Mapping[str, int]]:
        """End it and return {"up": {"sent": ..., "lost": ..., "twice": ...}, "down": ...}."""
        self._process.send(signal.SIGUSR1)
        said = self._process.wait_for(r"^(\{.*\})$", timeout_s=20)
        result: Mapping[str, Mapping[str, int]] = json.loads(said[1])
        return result


if __name__ == "__main__":
    what, where, number, *rest = sys.argv[1:]
    if what == "serve":
        serve(where, int(number))
    else:
        run(where, int(number), *rest)
