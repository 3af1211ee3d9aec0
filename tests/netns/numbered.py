"""Numbered datagrams both ways at a steady pace: the judge of whether a packet was lost.

    python -m tests.netns.numbered serve ADDRESS PORT       print "ready", answer until killed
    python -m tests.netns.numbered run ADDRESS PORT UP DOWN send UP and get DOWN datagrams

`run` prints "flowing" when the first has come back and at the end one line of JSON: how many
were lost and how many came twice in each direction.  A TCP connection carries the appointment.
"""

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.netns.namespace import PYTHON, Namespace
from tests.netns.process import Process

PROGRAM = (*PYTHON, "tests.netns.numbered")
PORT = 5002
PER_SECOND = 1000
BURST = 5  # datagrams between two sleeps
PAYLOAD = 200  # bytes
STRAGGLERS_S = 1.0  # what is still under way when all has been sent
BUFFER = 4 << 20
COUNTS = struct.Struct("!II")
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
        return {"lost": count - len(self.seen), "twice": self.twice}


def send(udp: socket.socket, to: tuple[str, int], count: int) -> None:
    began = time.monotonic()
    for number in range(count):
        udp.sendto(number.to_bytes(4, "big") + bytes(PAYLOAD - 4), to)
        if number % BURST == BURST - 1:
            time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))


@contextmanager
def udp_socket(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        udp.bind((address, 0))
        yield udp


def both_ways(tcp: socket.socket, mine: int, theirs: int, *, starts: bool) -> dict[str, int]:
    """Tell the other end our port, send and count; return what came of its datagrams."""
    with udp_socket(tcp.getsockname()[0]) as udp, tcp.makefile("rw") as line:
        line.write(f"{udp.getsockname()[1]}\n")
        line.flush()
        to = (tcp.getpeername()[0], int(line.readline()))
        counter = Counter(udp)
        sending = threading.Thread(target=send, args=(udp, to, mine))
        sending.start()
        if starts:
            counter.first.wait()
            print("flowing", flush=True)
        sending.join()
        line.write("sent\n")
        line.flush()
        line.readline()
        return counter.result(theirs)


def serve(address: str, port: int) -> None:
    with socket.create_server((address, port)) as listener:
        print("ready", flush=True)
        while True:
            tcp, _ = listener.accept()
            with tcp:
                up, down = COUNTS.unpack(tcp.recv(COUNTS.size))
                tcp.sendall(json.dumps(both_ways(tcp, down, up, starts=False)).encode())


def run(address: str, port: int, up: int, down: int) -> None:
    with socket.create_connection((address, port)) as tcp:
        tcp.sendall(COUNTS.pack(up, down))
        got = both_ways(tcp, up, down, starts=True)
        given = json.loads(tcp.recv(4096))
    print(json.dumps({"up": given, "down": got}), flush=True)


def serve_numbered(namespace: Namespace, address: str) -> Process:
    """Answer on an address of the namespace."""
    server = namespace.start("numbered-server", *PROGRAM, "serve", address, str(PORT))
    server.wait_for("^ready")
    return server


class Stream:
    """Datagrams that flow both ways while the test does something."""

    def __init__(self, process: Process, seconds: float) -> None:
        self._process = process
        self._seconds = seconds

    @classmethod
    def start(
        cls, namespace: Namespace, address: str, *, seconds: float, up: bool = True
    ) -> "Stream":
        """Let datagrams flow to and from the address, or from there alone."""
        count = int(seconds * PER_SECOND)
        counts = [str(count if up else 0), str(count)]
        process = namespace.start("numbered", *PROGRAM, "run", address, str(PORT), *counts)
        process.wait_for("^flowing")
        return cls(process, seconds)

    def finish(self) -> Mapping[str, Mapping[str, int]]:
        """Wait for the end and return {"up": {"lost": ..., "twice": ...}, "down": ...}."""
        said = self._process.wait_for(r"^(\{.*\})$", timeout_s=self._seconds + 20)
        result: Mapping[str, Mapping[str, int]] = json.loads(said[1])
        return result


if __name__ == "__main__":
    what, where, number, *counts = sys.argv[1:]
    if what == "serve":
        serve(where, int(number))
    else:
        run(where, int(number), *map(int, counts))
