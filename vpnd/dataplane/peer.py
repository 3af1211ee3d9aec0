"""What the two hot functions know of one client, and how a packet finds it."""

from typing import Protocol

from vpnd.dataplane.counters import Drops
from vpnd.dataplane.udp_socket import Ancillary, UdpSocket
from vpnd.protocol.dtls_client import DtlsClientHandshake
from vpnd.protocol.dtls_handshake import DtlsHandshake
from vpnd.protocol.liveness import Liveness
from vpnd.wire.dtls_record import RecordOpener, RecordSealer
from vpnd.wire.replay import ReplayWindow


class PacketStream(Protocol):
    """The TLS channel of a peer, as the data path sees it."""

    def backlog(self) -> int:
        """Return the bytes of ciphertext that wait for the kernel."""
        ...

    def send_packets(self, slots: list[memoryview]) -> None:
        """Send each slot (8 bytes of room for the CSTP header, then a packet)."""
        ...


class DtlsPath:
    """A completed DTLS channel: one client address, one pair of keys."""

    __slots__ = (
        "address",
        "ancillary",
        "confirmed",
        "handshake",
        "opener",
        "peer",
        "replay",
        "sealer",
        "started_at",
        "udp",
    )

    def __init__(
        self,
        peer: "Peer",
        udp: UdpSocket,
        address: tuple[str, int],
        ancillary: Ancillary,
        handshake: DtlsHandshake | DtlsClientHandshake,
        now: float,
    ) -> None:
        keys = handshake.keys
        assert keys is not None
        ours, theirs = keys.server, keys.client
        if isinstance(handshake, DtlsClientHandshake):
            ours, theirs = theirs, ours
        self.peer = peer
        self.udp = udp
        self.address = address
        self.ancillary = ancillary
        self.handshake = handshake
        self.sealer = RecordSealer(keys.suite, ours)
        self.opener = RecordOpener(keys.suite, theirs)
        self.replay = ReplayWindow()
        self.confirmed = False
        """An authentic record came in.  Before that nothing may be sealed: the client would
        take the repeated Finished for a replay."""
        self.started_at = now


class Peer:
    """One connected session, as packets see it.  The worker owns it."""

    __slots__ = (
        "address4",
        "address6",
        "drops",
        "dtls",
        "dtls_active",
        "is_gateway",
        "liveness",
        "mtu",
        "rx_bytes",
        "rx_packets",
        "session_id",
        "stream",
        "tx_bytes",
        "tx_packets",
    )

    def __init__(
        self,
        session_id: str,
        *,
        address4: bytes,
        address6: bytes,
        mtu: int,
        stream: PacketStream,
        liveness: Liveness,
        is_gateway: bool = False,
    ) -> None:
        self.session_id = session_id
        self.is_gateway = is_gateway
        """The peer is our server: it sends from any address, but to ours only."""
        self.address4 = address4
        self.address6 = address6
        """The client's inner addresses, packed; empty where it has none."""
        self.mtu = mtu
        """Largest packet that fits one DTLS record on the client's path."""
        self.stream = stream
        self.liveness = liveness
        self.dtls: DtlsPath | None = None
        self.dtls_active = False
        """Packets go over DTLS; otherwise over TLS."""
        self.rx_packets = self.rx_bytes = self.tx_packets = self.tx_bytes = 0
        self.drops = Drops()

    def count_on(self, earlier: "Peer") -> None:
        """Take over the figures of an earlier peer of the session, which begins at zero again."""
        self.rx_packets += earlier.rx_packets
        self.rx_bytes += earlier.rx_bytes
        self.tx_packets += earlier.tx_packets
        self.tx_bytes += earlier.tx_bytes
        earlier.rx_packets = earlier.rx_bytes = earlier.tx_packets = earlier.tx_bytes = 0
        for reason, count in earlier.drops.as_dict().items():
            self.drops.add(reason, count)
        earlier.drops = Drops()


class PeerTable:
    """Inner address -> peer, and outer UDP address -> DTLS path."""

    __slots__ = ("gateway", "inner", "outer")

    def __init__(self) -> None:
        self.gateway: Peer | None = None
        """In the client role: who gets everything that is for nobody in particular."""
        self.inner: dict[bytes, Peer] = {}
        self.outer: dict[tuple[str, int], DtlsPath] = {}

    def add(self, peer: Peer) -> None:
        for address in (peer.address4, peer.address6):
            if address:
                self.inner[address] = peer

    def remove(self, peer: Peer) -> None:
        for address in (peer.address4, peer.address6):
            if self.inner.get(address) is peer:
                del self.inner[address]
        self.drop_path(peer)

    def set_path(self, path: DtlsPath) -> None:
        """Make `path` its peer's only DTLS channel, and the only one of its address."""
        displaced = self.outer.get(path.address)
        if displaced is not None:  # a NAT has given the port to another client
            self.drop_path(displaced.peer)
        self.drop_path(path.peer)
        path.peer.dtls = path
        self.outer[path.address] = path

    def move_path(
        self, path: DtlsPath, udp: UdpSocket, address: tuple[str, int], ancillary: Ancillary
    ) -> None:
        """The client's outer address has changed."""
        if self.outer.get(path.address) is path:
            del self.outer[path.address]
        path.udp, path.address, path.ancillary = udp, address, ancillary
        self.outer[address] = path

    def drop_path(self, peer: Peer) -> None:
        path = peer.dtls
        if path is not None and self.outer.get(path.address) is path:
            del self.outer[path.address]
        peer.dtls = None
        peer.dtls_active = False
