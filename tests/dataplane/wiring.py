"""A data plane without root: a socket pair plays the TUN, loopback the internet.

The far end of the TUN is "the kernel" (whole frames, as a TUN has them); the far end of the
UDP socket is a client that OpenSSL has made a handshake with.
"""

import socket
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

from tests.protocol.psk_client import PskClient, handshake
from tests.wire.packets import Packet
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.inbound import Control, Inbound
from vpnd.dataplane.outbound import Outbound
from vpnd.dataplane.peer import DtlsPath, Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import Train, UdpSocket
from vpnd.protocol.dtls_handshake import DtlsContext, DtlsHandshake
from vpnd.protocol.liveness import Liveness
from vpnd.wire import virtio
from vpnd.wire.dtls_record import RecordOpener, RecordSealer, split_records

SERVER4 = ip_address("10.8.0.1").packed
INTERNET4 = ip_address("192.0.2.80").packed
PLAIN = bytes(virtio.HEADER.size)  # the header of a frame that needs nothing
CONTEXT = DtlsContext()


def udp_socket() -> UdpSocket:
    plain = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    plain.bind(("127.0.0.1", 0))
    return UdpSocket(plain)


@dataclass
class Stream:
    """The TLS channel of a peer: keeps what it is given."""

    waiting: int = 0
    packets: list[bytes] = field(default_factory=list)

    def backlog(self) -> int:
        return self.waiting

    def send_packets(self, slots: list[memoryview]) -> None:
        self.packets += [bytes(slot) for slot in slots]


class Client:
    """A peer and the client it stands for."""

    def __init__(self, plane: "Plane", number: int, *, mtu: int = 1400) -> None:
        self.stream = Stream()
        self.address4 = ip_address(f"10.8.0.{number}").packed
        self.address6 = ip_address(f"fd00::{number}").packed
        self.peer = Peer(
            f"session{number}",
            address4=self.address4,
            address6=self.address6,
            mtu=mtu,
            stream=self.stream,
            liveness=Liveness(plane.now, 30),
        )
        self.udp = udp_socket()
        self._plane = plane
        plane.peers.add(self.peer)

    @property
    def outer(self) -> tuple[str, int]:
        host, port = self.udp.socket.getsockname()
        return host, port

    def connect(self) -> DtlsPath:
        """Complete a DTLS handshake; the channel is not confirmed yet."""
        client, server = PskClient(bytes(32)), DtlsHandshake(CONTEXT, bytes(32), now=0.0)
        handshake(client, server)
        found = client.keys()
        self.sealer = RecordSealer(found.suite, found.client, first_sequence=1)
        self.opener = RecordOpener(found.suite, found.server)
        path = DtlsPath(self.peer, self._plane.udp, self.outer, [], server, self._plane.now)
        self._plane.peers.set_path(path)
        return path

    def activate(self) -> DtlsPath:
        path = self.connect()
        path.confirmed = self.peer.dtls_active = True
        return path

    def seal(self, packet: bytes, kind: int = 0) -> bytes:
        """Return the record of one packet, its type byte in front."""
        out = memoryview(bytearray(len(packet) + 64))
        return bytes(out[: self.sealer.seal_batch([memoryview(bytes([kind]) + packet)], out)])

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.udp.socket.sendto(datagram, self._plane.outer)

    def send_train(self, data: bytes, size: int) -> None:
        self.udp.send_train(memoryview(data), size, self._plane.outer, [])

    def received(self) -> list[bytes]:
        """Return the payloads of all records that have come, type byte first."""
        payloads = []
        while (train := self.udp.receive()) is not None:
            for at in range(0, len(train.data), train.size):
                for record in split_records(train.data[at : at + train.size]):
                    out = memoryview(bytearray(len(record)))
                    _, _, size = self.opener.open(record, out)
                    payloads.append(bytes(out[:size]))
        return payloads


class Plane:
    """The data plane of one worker."""

    def __init__(self) -> None:
        ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (ours, self.kernel):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self.tun = TunQueue(ours.detach())
        self.udp = udp_socket()
        self.now = 1000.0
        self.drops = Drops()
        self.peers = PeerTable()
        self.controls: list[Control] = []
        self.strays: list[tuple[tuple[str, int], bytes]] = []
        self.confirmed: list[DtlsPath] = []
        self.outbound = Outbound(self.tun, self.peers, self.drops, lambda: self.now)
        self.inbound = Inbound(
            self.tun,
            self.peers,
            self.drops,
            lambda: self.now,
            on_control=self.controls.append,
            on_stray=self._stray,
            on_confirmed=self.confirmed.append,
        )
        self._clients: list[Client] = []

    def _stray(self, _udp: UdpSocket, train: Train, datagram: memoryview) -> None:
        self.strays.append((train.address, bytes(datagram)))

    @property
    def outer(self) -> tuple[str, int]:
        host, port = self.udp.socket.getsockname()
        return host, port

    def client(self, number: int, *, mtu: int = 1400) -> Client:
        self._clients.append(Client(self, number, mtu=mtu))
        return self._clients[-1]

    def to_tun(self, *frames: bytes) -> None:
        """Let the kernel route frames into the tunnel, and the worker forward them."""
        for frame in frames:
            self.kernel.send(frame)
        self.outbound.on_readable()

    def from_tun(self) -> list[bytes]:
        """Return the frames the kernel was given."""
        frames = []
        while True:
            try:
                frames.append(self.kernel.recv(1 << 17))
            except BlockingIOError:
                return frames

    def read_udp(self) -> None:
        self.inbound.on_readable(self.udp)

    def close(self) -> None:
        self.tun.close()
        self.kernel.close()
        self.udp.close()
        for client in self._clients:
            client.udp.close()


def tcp(source: bytes, destination: bytes, size: int, **changes: object) -> Packet:
    """Return a TCP packet with `size` bytes of payload."""
    version = 4 if len(source) == 4 else 6
    payload = (struct.pack("!I", size) * (size // 4 + 1))[:size]
    return Packet(
        ip_version=version,
        source=source,
        destination=destination,
        payload=payload,
        **changes,  # type: ignore[arg-type]
    )
