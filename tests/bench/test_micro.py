"""What one packet costs in each step: `./run.sh test -m bench -s tests/bench`.

Microseconds of CPU a packet, the best of several rounds, since every disturbance only adds.
The claims are loose enough for a busy machine; the printed figures are what counts.
"""

import os
import time
from collections.abc import Callable
from importlib.metadata import version

import pytest

from tests.wire.packets import Packet
from vpnd.wire import virtio
from vpnd.wire.coalesce import coalesce
from vpnd.wire.dtls_record import (
    SUITES,
    DirectionKeys,
    RecordOpener,
    RecordSealer,
    Suite,
)
from vpnd.wire.rows import Cells, RecordRows, Rows
from vpnd.wire.segment import Splitter, segment_room

pytestmark = [pytest.mark.bench, pytest.mark.timeout(120)]

COUNT, MSS = 48, 1348
ROUNDS, TIMES = 15, 20
TIMESTAMPS = bytes((1, 1, 8, 10)) + bytes(8)
PACKET = Packet(tcp_options=TIMESTAMPS, payload=os.urandom(COUNT * MSS))
ALONE = Packet(tcp_options=TIMESTAMPS)
EACH_SUITE = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)


def measure(what: str, step: Callable[[], object], packets: int = COUNT) -> float:
    """Print and return microseconds a packet."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.thread_time_ns()
        for _ in range(TIMES):
            step()
        best = min(best, (time.thread_time_ns() - began) / TIMES / packets / 1000)
    library = f"cryptography {version('cryptography')}, numpy {version('numpy')}"
    print(f"\n{what:<44} {best:6.2f} us a packet   {library}")
    return best


def keys(suite: Suite) -> DirectionKeys:
    return DirectionKeys(bytes(suite.key_size), bytes(suite.iv_size))


def slots() -> list[memoryview]:
    splitter = Splitter(memoryview(bytearray(segment_room(1))))
    return splitter.split(memoryview(PACKET.frame(MSS)), 1)


def test_split() -> None:
    """A superpacket is cut for less than a packet costs alone."""
    splitter = Splitter(memoryview(bytearray(segment_room(1))))
    partial = virtio.HEADER.pack(virtio.NEEDS_CSUM, 0, 0, 0, 20, 16)
    whole = memoryview(PACKET.frame(MSS))
    alone = memoryview(partial + ALONE.build(partial=True))

    def split(frame: memoryview) -> None:
        splitter.used = 0
        splitter.split(frame, 1)

    together = measure("split, 48 packets of 1400", lambda: split(whole))
    assert together < measure("split, an acknowledgement", lambda: split(alone), 1)


@EACH_SUITE
def test_seal(suite: Suite) -> None:
    """A train is sealed for less than its records one by one."""
    sealer, rows = RecordSealer(suite, keys(suite)), RecordRows()
    room, payloads = Cells(memoryview(bytearray(1 << 17))), slots()
    train = measure(f"seal {suite.name}", lambda: sealer.seal_rows(rows, payloads, room, 0))
    plain = f"seal {suite.name}, one by one"
    assert train < measure(plain, lambda: sealer.seal_batch(payloads, room.buffer))


@EACH_SUITE
def test_open(suite: Suite) -> None:
    """The same for opening."""
    sealed, room = Cells(memoryview(bytearray(1 << 17))), Cells(memoryview(bytearray(1 << 17)))
    payloads, rows = slots(), RecordRows()
    sealer, opener = RecordSealer(suite, keys(suite)), RecordOpener(suite, keys(suite))
    size = sealer.seal_batch(payloads, sealed.buffer) // COUNT
    records = sealed.views(size, COUNT)
    inner = sealed.views(size, COUNT, skip=opener.prefix_size)
    train = measure(
        f"open {suite.name}",
        lambda: opener.open_rows(rows, sealed.buffer, size, inner, room, 0),
    )
    plain = f"open {suite.name}, one by one"
    assert train < measure(plain, lambda: [opener.read(record) for record in records])


def test_coalesce() -> None:
    """A train is examined for less than an acknowledgement costs alone."""
    data = b"".join(slots())
    rows = Rows(data, 0, len(data) // COUNT, COUNT, 1)
    alone = [memoryview(ALONE.build())]
    together = measure("coalesce, 48 packets of 1400", lambda: coalesce([rows]))
    assert together < measure("coalesce, an acknowledgement", lambda: coalesce(alone), 1)
