"""A TUN queue on kernels that take no superpackets, and on broken ones."""

import errno
import os
from collections.abc import Sequence

import pytest

from tests.dataplane.wiring import INTERNET4, Plane, tcp
from vpnd.dataplane import counters
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.wire.virtio import PLAIN


class Kernel:
    """Linux 6.6 of some months: a TUN that gives superpackets and refuses them."""

    def __init__(self, *, refuses_all: bool = False) -> None:
        self.taken: list[bytes] = []
        self.refused = 0
        self._refuses_all = refuses_all

    def writev(self, _fd: int, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        frame = b"".join(pieces)
        if self._refuses_all or not frame.startswith(PLAIN):
            self.refused += 1
            raise OSError(errno.EINVAL, "Invalid argument")
        self.taken.append(frame[len(PLAIN) :])
        return len(frame)


def use(plane: Plane, kernel: Kernel) -> TunQueue:
    """Let the plane write to this kernel."""
    plane.inbound._tun = TunQueue(-1, writev=kernel.writev)
    return plane.inbound._tun


@pytest.mark.parametrize("over", ["DTLS", "TLS"])
def test_a_refused_superpacket_goes_as_its_packets_and_none_is_made_again(
    plane: Plane, over: str
) -> None:
    """Nothing is lost, the first one included, and status can say why."""
    client, kernel = plane.client(2), Kernel()
    client.activate()
    tun = use(plane, kernel)
    parts = tcp(client.address4, INTERNET4, 20_000).segments(1000)
    for _ in range(2):
        if over == "DTLS":
            records = [client.seal(part) for part in parts]
            client.send_train(b"".join(records), len(records[0]))
            plane.read_udp()
        else:
            plane.inbound.from_tls(client.peer, [memoryview(part) for part in parts])
    assert kernel.taken == parts * 2
    assert kernel.refused == 1
    assert not tun.gso
    assert "Invalid argument" in tun.gso_reason
    assert client.peer.drops.as_dict() == {}


def test_a_queue_that_takes_nothing_is_no_reason_to_give_up_superpackets(plane: Plane) -> None:
    """It may take them tomorrow; until then each is a drop with a name."""
    client, kernel = plane.client(2), Kernel(refuses_all=True)
    tun = use(plane, kernel)
    parts = tcp(client.address4, INTERNET4, 5000).segments(1000)
    plane.inbound.from_tls(client.peer, [memoryview(part) for part in parts])
    assert tun.gso
    assert not tun.gone
    assert client.peer.drops[counters.TUN_FULL] == 1


def test_what_waits_is_read_within_a_budget() -> None:
    """So many frames, or so many bytes and a frame; the rest at the next wake-up."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_DIRECT)  # a pipe of packets
    tun = TunQueue(reading)
    try:
        for number in range(6):
            os.write(writing, bytes([number]) * 100)
        found = [[frame[0] for frame in tun.read(frames, size)] for frames, size in
                 ((2, 10_000), (10, 150), (10, 10_000), (10, 10_000))]  # fmt: skip
    finally:
        tun.close()
        os.close(writing)
    assert found == [[0, 1], [2, 3], [4, 5], []]
