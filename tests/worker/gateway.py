"""A worker's UDP side without its process: the data path, the handshakes, and clients.

The loop is a list of calls that the test runs, the clock a number, the TUN a socket pair.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.dataplane.wiring import CONTEXT, Plane, Stream, udp_socket
from tests.protocol.psk_client import AES256, PskClient
from vpnd.dataplane.inbound import Inbound
from vpnd.dataplane.peer import Peer
from vpnd.protocol.liveness import Liveness
from vpnd.protocol.tls_stream import TlsStream
from vpnd.wire.dtls_record import RecordOpener, RecordSealer, split_records
from vpnd.worker.datagrams import Datagrams
from vpnd.worker.messages import TunnelProved, TunnelTakesOver
from vpnd.worker.overlap import Overlaps
from vpnd.worker.tunnel import Tunnel


@dataclass
class Channel:
    """The TLS side of a tunnel: notes what it is asked for."""

    address: tuple[str, int] = ("127.0.0.1", 40000)
    tls: TlsStream = field(default=None, repr=False)  # type: ignore[assignment]
    sent: list[bytes] = field(default_factory=list)
    finished: list[tuple[str, bool]] = field(default_factory=list)

    def send_control(self, packet: bytes) -> None:
        self.sent.append(packet)

    def finish(self, reason: str, *, final: bool) -> None:
        self.finished.append((reason, final))


class Gateway(Plane):
    """One worker's UDP."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []
        self.tunnels: list[Tunnel] = []
        self.told: list[TunnelTakesOver | TunnelProved] = []
        self.overlaps = Overlaps(self.peers, self.told.append)
        self.datagrams = Datagrams(
            CONTEXT,
            self.peers,
            self.drops,
            lambda: self.now,
            lambda host: [t for t in self.tunnels if t.channel.address[0] == host],
            self.calls.append,
            self.overlaps.prove,
        )
        self.inbound = Inbound(
            self.tun,
            self.peers,
            self.drops,
            lambda: self.now,
            on_control=self.datagrams.on_control,
            on_stray=self.datagrams.on_stray,
            on_confirmed=self.datagrams.on_confirmed,
        )
        self._devices: list[Device] = []

    def tunnel(self, number: int) -> Tunnel:
        """Open a tunnel that expects a ClientHello."""
        made = Tunnel(
            number=number,
            session=f"session{number}",
            user="alice",
            peer=Peer(
                f"session{number}",
                address4=bytes((10, 8, 0, number)),
                address6=b"",
                mtu=1400,
                stream=Stream(),
                liveness=Liveness(self.now, 30),
            ),
            channel=Channel(),
            opened_at=self.now,
            app_id=bytes([number]) * 32,
            psk=bytes([100 + number]) * 32,
        )
        self.tunnels.append(made)
        self.peers.add(made.peer)
        self.datagrams.add(made)
        return made

    def device(self, tunnel: Tunnel, **options: object) -> "Device":
        self._devices.append(Device(self, tunnel, **options))  # type: ignore[arg-type]
        return self._devices[-1]

    def turn(self) -> None:
        """One wake-up of the loop: what is readable, then what was put off, once."""
        for _ in range(3):
            self.read_udp()
        calls, self.calls[:] = list(self.calls), []
        for call in calls:
            call()

    def settle(self) -> None:
        """Let everything that waits have its turn."""
        self.turn()
        while self.calls:
            self.turn()

    def close(self) -> None:
        for device in self._devices:
            device.udp.close()
        for tunnel in self.tunnels:
            self.datagrams.remove(tunnel)
        super().close()


class Device:
    """A client's UDP socket, and OpenSSL behind it until the handshake is over."""

    def __init__(
        self,
        gateway: Gateway,
        tunnel: Tunnel,
        *,
        psk: bytes | None = None,
        app_id: bytes | None = None,
        cipher: str = AES256,
    ) -> None:
        self._gateway = gateway
        self.udp = udp_socket()
        self.openssl = PskClient(psk or tunnel.psk, app_id=app_id or tunnel.app_id, cipher=cipher)

    @property
    def outer(self) -> tuple[str, int]:
        host, port = self.udp.socket.getsockname()
        return host, port

    def send(self, *datagrams: bytes) -> None:
        for datagram in datagrams:
            self.udp.socket.sendto(datagram, self._gateway.outer)

    def answers(self) -> list[bytes]:
        """Return the datagrams that have come."""
        found = []
        while (train := self.udp.receive()) is not None:
            data = bytes(train.data)
            found += [data[at : at + train.size] for at in range(0, len(data), train.size)]
        return found

    def handshake(self) -> None:
        """Complete the handshake; not a data record has been sent yet."""
        self.send(self.openssl.hello())
        self._gateway.settle()
        for answer in self.answers():
            self.send(self.openssl.step(answer))
        self._gateway.settle()
        for answer in self.answers():
            self.openssl.step(answer)
        assert self.openssl.is_done
        found = self.openssl.keys()
        self.sealer = RecordSealer(found.suite, found.client, first_sequence=1000)
        self.opener = RecordOpener(found.suite, found.server)

    def move(self) -> None:
        """Go on from another port."""
        self.udp.close()
        self.udp = udp_socket()

    def seal(self, payload: bytes) -> bytes:
        out = memoryview(bytearray(len(payload) + 64))
        return bytes(out[: self.sealer.seal_batch([memoryview(payload)], out)])

    def payloads(self) -> list[bytes]:
        """Return what the records that have come hold, type byte first."""
        found = []
        for datagram in self.answers():
            for record in split_records(memoryview(datagram)):
                out = memoryview(bytearray(len(record)))
                _, _, size = self.opener.open(record, out)
                found.append(bytes(out[:size]))
        return found
