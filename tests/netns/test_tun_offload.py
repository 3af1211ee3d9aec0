"""Splitting and joining against the kernel: it cuts what we join, and runs TCP through both."""

import fcntl
import hashlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace

import pytest

from tests.netns.bed import Bed
from tests.netns.namespace import Namespace, inside
from tests.wire.packets import ACK, FIN, PSH, Packet
from vpnd.wire import virtio
from vpnd.wire.coalesce import coalesce
from vpnd.wire.segment import segment, segment_room

pytestmark = pytest.mark.netns

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0  # linux/if_tun.h
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM, TUN_F_TSO, TUN_F_USO = 0x01, 0x02 | 0x04, 0x20 | 0x40
UDP_SEGMENT = 103  # linux/udp.h
FRAME = 10 + 65535 + 40
MTU = 1400
TRANSFER = 24 * 2**20
PATIENCE_S = 20.0


@dataclass
class Tun:
    """A TUN in a namespace; without `offload` the kernel splits and sums before we read."""

    namespace: Namespace
    name: str
    offload: bool

    def open(self) -> None:
        self.fd = inside(self.namespace, self._open)
        self.largest = 0  # frame read

    def _open(self) -> int:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", self.name.encode(), flags))
        wanted = TUN_F_CSUM | TUN_F_TSO if self.offload else 0
        fcntl.ioctl(fd, TUNSETOFFLOAD, wanted)
        if self.offload:
            with suppress(OSError):  # before Linux 6.2
                fcntl.ioctl(fd, TUNSETOFFLOAD, wanted | TUN_F_USO)
        return fd

    def configure(self, *addresses: str) -> None:
        self.namespace.ip(
            f"link set {self.name} mtu {MTU} addrgenmode none up",
            *(f"address add {address} dev {self.name}" for address in addresses),
        )

    def read(self) -> bytes | None:
        """Return one frame, None when there is none."""
        try:
            frame = os.read(self.fd, FRAME)
        except BlockingIOError:
            return None
        self.largest = max(self.largest, len(frame))
        return frame

    def close(self) -> None:
        os.close(self.fd)


def carry(source: Tun, target: Tun, room: memoryview) -> None:
    """Move what there is, split on the way and joined again where the target takes it."""
    packets = []
    for _ in range(8):
        if (frame := source.read()) is None:
            break
        packets += [bytes(view) for view in segment(memoryview(frame), room, 0)]
    assert all(len(packet) <= MTU for packet in packets)
    if target.offload:
        for iovec in coalesce([memoryview(packet) for packet in packets]):
            os.writev(target.fd, iovec)
    else:
        for packet in packets:
            os.writev(target.fd, [virtio.PLAIN, packet])


class Wire:
    """A thread that carries packets between two TUNs."""

    def __init__(self, one: Tun, other: Tun) -> None:
        self.tuns = {one.fd: (one, other), other.fd: (other, one)}
        self.stop_read, self.stop_write = os.pipe()
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        room = memoryview(bytearray(segment_room(0)))
        try:
            while True:
                readable, _, _ = select.select([*self.tuns, self.stop_read], [], [])
                if self.stop_read in readable:
                    return
                for fd in readable:
                    carry(*self.tuns[fd], room)
        except BaseException as exc:  # the test's thread raises it
            self.errors.append(exc)
            raise

    def close(self) -> None:
        os.close(self.stop_write)
        self.thread.join()
        os.close(self.stop_read)
        assert not self.errors


@pytest.fixture(scope="module")
def bed(make_bed: Callable[[int], Bed]) -> Bed:
    return make_bed(1)


@pytest.fixture(params=[(True, True), (True, False), (False, True)], ids=["both", "tx", "rx"])
def tunnel(bed: Bed, request: pytest.FixtureRequest) -> Iterator[tuple[Tun, Tun]]:
    """Two TUNs with a wire between them, with and without the kernel's help."""
    client = Tun(bed.client, "tun-client", request.param[0])
    server = Tun(bed.server, "tun-server", request.param[1])
    with ExitStack() as stack:
        for tun, number in ((client, 2), (server, 1)):
            tun.open()
            stack.callback(tun.close)
            tun.configure(f"10.99.0.{number}/24", f"fd99::{number}/64")
        stack.enter_context(closing(Wire(client, server)))
        yield client, server


def listen(namespace: Namespace, address: str) -> socket.socket:
    return inside(namespace, lambda: socket.create_server(
        (address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET))  # fmt: skip


def send(namespace: Namespace, target: tuple[str, int], data: bytes) -> None:
    with inside(namespace, lambda: socket.create_connection(target, PATIENCE_S)) as stream:
        stream.sendall(data)


@pytest.mark.parametrize("address", ["10.99.0.{}", "fd99::{}"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("upwards", [True, False], ids=["up", "down"])
def test_a_stream_arrives_whole(tunnel: tuple[Tun, Tun], address: str, upwards: bool) -> None:
    """The kernel's TCP is the judge: it sends superpackets, and takes ours."""
    client, server = tunnel
    sender, receiver = (client, server) if upwards else (server, client)
    sender.largest = 0
    data = os.urandom(2**20) * (TRANSFER >> 20)
    digest = hashlib.sha256()
    with listen(receiver.namespace, address.format(1 if upwards else 2)) as listener:
        listener.settimeout(PATIENCE_S)
        target = listener.getsockname()[:2]
        thread = threading.Thread(target=send, args=(sender.namespace, target, data))
        thread.start()
        stream, _ = listener.accept()
        with stream:
            stream.settimeout(PATIENCE_S)
            while block := stream.recv(2**20):
                digest.update(block)
        thread.join()
    assert digest.digest() == hashlib.sha256(data).digest()
    if sender.offload:
        assert sender.largest > 16 * MTU  # there were superpackets, or nothing was tested
    checksum_errors = receiver.namespace.run("nstat", "-asz", "TcpInCsumErrors").stdout
    assert checksum_errors.split()[-2] == "0"


@pytest.mark.parametrize("address", ["10.99.0.1", "fd99::1"], ids=["ipv4", "ipv6"])
def test_a_train_of_datagrams_arrives_as_datagrams(tunnel: tuple[Tun, Tun], address: str) -> None:
    """What QUIC sends with UDP_SEGMENT is split by us where the TUN takes it whole."""
    client, server = tunnel
    client.largest = 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    data = os.urandom(1000 * 20 + 300)
    with (
        inside(server.namespace, lambda: socket.socket(family, socket.SOCK_DGRAM)) as receiver,
        inside(client.namespace, lambda: socket.socket(family, socket.SOCK_DGRAM)) as sender,
    ):
        receiver.bind((address, 0))
        receiver.settimeout(PATIENCE_S)
        control = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", 1000))]
        sender.sendmsg([data], control, 0, receiver.getsockname()[:2])
        received = [receiver.recv(2000) for _ in range(21)]
    assert received == [data[at : at + 1000] for at in range(0, len(data), 1000)]


@pytest.fixture(scope="module")
def router(bed: Bed) -> Iterator[tuple[Tun, Tun]]:
    """A kernel that forwards from one TUN to another, and cuts superpackets on the way."""
    entrance, leaving = Tun(bed.server, "tun-in", True), Tun(bed.server, "tun-out", False)
    with ExitStack() as stack:
        for tun, number in ((entrance, 1), (leaving, 2)):
            tun.open()
            stack.callback(tun.close)
            tun.configure(f"10.98.{number}.1/24", f"fd98:{number}::1/64")
        bed.server.sysctl("net/ipv4/ip_forward", "1")
        bed.server.sysctl("net/ipv6/conf/all/forwarding", "1")
        yield entrance, leaving


TCP4 = Packet(
    source=bytes((10, 98, 1, 2)),
    destination=bytes((10, 98, 2, 2)),
    sequence=0xFFFFF000,
    tcp_options=bytes((1, 1, 8, 10)) + b"timestmp",
    flags=ACK | PSH,
)
TCP6 = replace(
    TCP4,
    ip_version=6,
    source=bytes.fromhex("fd980001000000000000000000000002"),
    destination=bytes.fromhex("fd980002000000000000000000000002"),
)


def through(router: tuple[Tun, Tun], iovec: list[bytes | memoryview], count: int) -> list[bytes]:
    """Write a frame at the entrance; return the packets that come out."""
    entrance, leaving = router
    while leaving.read():
        pass
    os.writev(entrance.fd, iovec)
    packets = []
    while len(packets) < count:
        assert select.select([leaving.fd], [], [], PATIENCE_S)[0], f"only {len(packets)} came out"
        packets.append((leaving.read() or b"")[virtio.SIZE :])
    return packets


def without_number(packet: bytes) -> bytes:
    """Blank the identification, and the checksum over it, of a datagram that is atomic.

    The kernel counts it up all the same.
    """
    if packet[0] >> 4 == 6 or not packet[6] & 0x40:
        return packet
    return packet[:4] + bytes(2) + packet[6:10] + bytes(2) + packet[12:]


@pytest.mark.parametrize(
    "packet",
    [
        TCP4,
        TCP6,
        replace(TCP4, flags=ACK | FIN, tcp_options=b""),
        replace(TCP4, dont_fragment=False, number=65530),
        replace(TCP4, protocol=17),
        replace(TCP4, protocol=17, dont_fragment=False, number=65530),
        replace(TCP6, protocol=17),
    ],
    ids=["tcp4", "tcp6", "fin", "numbered", "udp4", "udp4-numbered", "udp6"],
)
@pytest.mark.parametrize("gso_size", [1348, 1001, 333, 1280, 48])
def test_the_kernel_cuts_as_we_do(router: tuple[Tun, Tun], packet: Packet, gso_size: int) -> None:
    """Byte for byte, checksums and all; for TCP from the superpacket that we joined."""
    gso_size = min(gso_size, MTU - packet.headers)
    packet = replace(packet, payload=os.urandom(gso_size * 20 + 77 if gso_size > 77 else 900))
    room = memoryview(bytearray(segment_room(0)))
    forwarded = replace(packet, ttl=packet.ttl - 1)
    ours = [bytes(v) for v in segment(memoryview(forwarded.frame(gso_size)), room, 0)]
    iovecs: list[list[bytes | memoryview]] = [[packet.frame(gso_size)]]
    if packet.protocol == 6:
        iovecs = coalesce([memoryview(part) for part in packet.segments(gso_size)])
    assert len(iovecs) == 1
    theirs = through(router, iovecs[0], len(ours))
    assert [without_number(part) for part in theirs] == [without_number(part) for part in ours]
