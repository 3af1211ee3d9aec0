"""Trains of datagrams on the loopback of the real kernel."""

import errno
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.dataplane.narrow_link import NarrowLink
from vpnd.dataplane.udp_socket import MAX_SEGMENTS, MAX_TRAIN, Sent, Train, UdpSocket

SO_NO_CHECK = 11  # asm-generic/socket.h; the kernel makes no train without checksums
WAIT = 20.0  # seconds that loopback surely needs less than

Open = Callable[..., UdpSocket]


@pytest.fixture
def udp() -> Iterator[Open]:
    """Open sockets that are closed after the test."""
    opened: list[UdpSocket] = []

    def make(host: str = "127.0.0.1", **options: bool) -> UdpSocket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        plain = socket.socket(family, socket.SOCK_DGRAM)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        plain.bind((host, 0))
        opened.append(UdpSocket(plain, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def address(one: UdpSocket) -> tuple[str, int]:
    host, port = one.socket.getsockname()[:2]
    return host, port


def trains(one: UdpSocket, wanted: int) -> list[tuple[bytes, Train]]:
    """Return (bytes, train) until `wanted` bytes have come."""
    found, size = [], 0
    one.socket.settimeout(WAIT)  # the test waits; the code under test never does
    try:
        while size < wanted:
            train = one.receive()
            assert train is not None, "datagrams are missing"
            found.append((bytes(train.data), train))
            size += len(train.data)
    finally:
        one.socket.setblocking(False)
    return found


def datagrams(received: list[tuple[bytes, Train]]) -> list[bytes]:
    return [
        data[at : at + train.size]
        for data, train in received
        for at in range(0, len(data), train.size)
    ]


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("gso", [True, False])
@pytest.mark.parametrize("gro", [True, False])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_train_arrives_as_the_datagrams_it_is_made_of(
    udp: Open, host: str, gso: bool, gro: bool
) -> None:
    """With and without the kernel's help at either end, the last one shorter."""
    sender, receiver = udp(host, gso=gso), udp(host, gro=gro)
    data = b"".join(bytes([n]) * 1400 for n in range(43)) + b"tail"
    assert sender.send_train(memoryview(data), 1400, address(receiver), []) is Sent.OK
    received = trains(receiver, len(data))
    assert datagrams(received) == cut(data, 1400)
    assert all(train.address == address(sender) for _, train in received)
    if sender.gso and receiver.gro:
        assert len(received) == 1
    elif not receiver.gro:
        assert len(received) == 44


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 1500), st.integers(1, 150), st.integers(0, 1499))
def test_trains_of_any_shape_arrive_whole(udp: Open, size: int, count: int, missing: int) -> None:
    """Tiny segments beyond the kernel's 64, and large ones beyond one IP packet."""
    sender, receiver = udp(), udp()
    data = bytes(n % 251 for n in range(max(1, size * count - missing % size)))
    assert sender.send_train(memoryview(data), size, address(receiver), []) is Sent.OK
    assert datagrams(trains(receiver, len(data))) == cut(data, size)
    assert sender.gso


def test_the_limits_are_what_the_kernel_takes(udp: Open) -> None:
    """The largest train of each kind goes out in one piece."""
    sender, receiver = udp(), udp()
    for size in (MAX_TRAIN // MAX_SEGMENTS, MAX_TRAIN, 1472):
        step = size * min(MAX_SEGMENTS, MAX_TRAIN // size)
        data = bytes(step)
        assert sender.send_train(memoryview(data), size, address(receiver), []) is Sent.OK
        assert len(datagrams(trains(receiver, step))) == step // size
    assert sender.gso


def test_a_kernel_that_refuses_trains_gets_single_datagrams(udp: Open) -> None:
    """Nothing of the refused train is lost, and the reason can be shown."""
    sender, receiver = udp(), udp()
    sender.socket.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
    data = bytes(range(250)) * 10
    assert sender.send_train(memoryview(data), 250, address(receiver), []) is Sent.OK
    assert datagrams(trains(receiver, len(data))) == cut(data, 250)
    assert not sender.gso
    assert "refused" in sender.gso_reason
    assert sender.send_train(memoryview(data), 250, address(receiver), []) is Sent.OK
    trains(receiver, len(data))


def test_one_narrow_path_does_not_switch_trains_off_for_all() -> None:
    """Older kernels do not tell "too big for this link" from "no trains here"."""
    narrow = UdpSocket(NarrowLink())  # type: ignore[arg-type]
    target = ("192.0.2.1", 9)
    assert narrow.send_train(memoryview(bytes(6000)), 1200, target, []) is Sent.TOO_BIG
    assert narrow.gso
    assert narrow.send_train(memoryview(bytes(3000)), 300, target, []) is Sent.OK
    assert not narrow.gso


def test_one_unreachable_client_does_not_switch_trains_off_for_all() -> None:
    """A blackhole route says EINVAL to a train, and to each of its datagrams too."""

    class Blackhole(NarrowLink):
        def sendmsg(self, *_: object) -> int:  # type: ignore[override]
            raise OSError(errno.EINVAL, "Invalid argument")

    udp = UdpSocket(Blackhole())  # type: ignore[arg-type]
    assert udp.send_train(memoryview(bytes(3000)), 300, ("192.0.2.1", 9), []) is Sent.FAILED
    assert udp.gso


@pytest.mark.parametrize(
    ("bound", "asked"), [("0.0.0.0", "127.0.0.2"), ("0.0.0.0", "127.0.0.1"), ("::", "::1")]
)
def test_an_answer_leaves_from_the_address_that_was_asked(
    udp: Open, bound: str, asked: str
) -> None:
    """A host with several addresses: the client drops what comes from another one."""
    server, client = udp(bound), udp("::1" if ":" in asked else "127.0.0.1")
    port = address(server)[1]
    assert client.send(b"question", (asked, port), []) is Sent.OK
    ((_, train),) = trains(server, 8)
    assert server.send(b"answer", train.address, train.ancillary) is Sent.OK
    train_data = bytes(300)
    assert (
        server.send_train(memoryview(train_data), 100, train.address, train.ancillary) is Sent.OK
    )
    for _, answer in trains(client, 6 + 300):
        assert answer.address == (asked, port)


def test_nothing_to_read_is_none(udp: Open) -> None:
    """The loop asks until the socket is empty."""
    assert udp().receive() is None


def test_an_empty_datagram_is_a_train_of_nothing(udp: Open) -> None:
    """Anybody can send one; stepping through it must not be a step of zero."""
    sender, receiver = udp(), udp()
    sender.socket.sendto(b"", address(receiver))
    sender.socket.sendto(b"next", address(receiver))
    empty, following = datagrams_of_each(receiver, 2)
    assert (empty, following) == ([], [b"next"])


def datagrams_of_each(one: UdpSocket, count: int) -> list[list[bytes]]:
    one.socket.settimeout(WAIT)
    found = []
    for _ in range(count):
        train = one.receive()
        assert train is not None
        found.append([bytes(train.data[at : at + train.size])
                      for at in range(0, len(train.data), train.size)])  # fmt: skip
    return found


def test_refusals_of_the_kernel_are_told_apart(udp: Open) -> None:
    """Too big goes over TLS, the rest means that UDP does not work."""
    sender = udp()
    assert sender.send(bytes(70_000), address(udp()), []) is Sent.TOO_BIG
    assert sender.send(b"x", ("255.255.255.255", 9), []) is Sent.FAILED
    full = OSError(errno.ENOBUFS, "No buffer space available")

    class Full(NarrowLink):
        def sendmsg(self, *_: object) -> int:  # type: ignore[override]
            raise full

    busy = UdpSocket(Full())  # type: ignore[arg-type]
    assert busy.send(b"x", ("192.0.2.1", 9), []) is Sent.FULL
    assert busy.send_train(memoryview(bytes(9)), 3, ("192.0.2.1", 9), []) is Sent.FULL


def test_trains_that_go_on_are_one(udp: Open) -> None:
    """Of one sender and one size, as long as none ends in a shorter datagram."""
    receiver, one, other = udp(), udp(), udp()
    for sender, data, size in (
        (one, bytes(3000), 1000),
        (one, bytes(2000), 1000),
        (other, bytes(1000), 1000),
        (one, bytes(2500), 1000),
        (one, bytes(1000), 1000),
        (one, bytes(900), 300),
    ):
        assert sender.send_train(memoryview(data), size, address(receiver), []) is Sent.OK
    found = [(train.at, len(train.data), train.size) for train in receiver.receive_some()]
    assert found == [
        (0, 5000, 1000),
        (5000, 1000, 1000),
        (6000, 2500, 1000),
        (8500, 1000, 1000),
        (9500, 900, 300),
    ]
    assert receiver.receive_some() == []
