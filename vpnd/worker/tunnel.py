"""One open tunnel as the worker knows it: the peer of the data plane and its two channels."""

from dataclasses import dataclass, field
from typing import Protocol

from vpnd import log
from vpnd.dataplane.inbound import seal_one
from vpnd.dataplane.peer import Peer
from vpnd.dataplane.udp_socket import Sent
from vpnd.errors import LocalProtocolError
from vpnd.protocol.tls_connection import TlsConnection
from vpnd.protocol.tls_stream import TlsStream
from vpnd.wire import cstp
from vpnd.wire.cstp import PacketType
from vpnd.worker.messages import TunnelStatus

REKEY = b"pyvpn-rekey"  # payload of a DPD request that asks a client of ours to change its keys
REKEY_BELOW = 1 << 24  # records left; a minute at 3 Gbit/s
REKEY_AGAIN = 10.0  # seconds between two such questions


class TlsChannel(Protocol):
    """The TLS connection that carries a tunnel."""

    address: tuple[str, int]
    tls: TlsStream

    def send_control(self, packet: bytes) -> None:
        """Send one CSTP packet."""
        ...

    def finish(self, reason: str, *, final: bool) -> None:
        """End the tunnel and close; `final` when its session is over."""
        ...


def figures(
    peer: Peer,
    tls: TlsConnection,
    *,
    number: int,
    address: tuple[str, int],
    opened_at: float,
    now: float,
) -> TunnelStatus:
    """Return the living figures of a tunnel, at either end; `address` is that of TCP."""
    path = peer.dtls if peer.dtls_active else None
    return TunnelStatus(
        tunnel=number,
        outer=log.endpoint(path.address if path else address),
        channel="DTLS" if path else "TLS",
        cipher=path.sealer.suite.name if path else tls.cipher,
        tls_version=tls.version,
        tls_cipher=tls.cipher,
        group=tls.group,
        keys_age_s=int(now - (path.started_at if path else opened_at)),
        rx_bytes=peer.rx_bytes,
        rx_packets=peer.rx_packets,
        tx_bytes=peer.tx_bytes,
        tx_packets=peer.tx_packets,
        drops=dict(peer.drops.as_dict()),
    )


@dataclass(slots=True, eq=False)
class Tunnel:
    """One tunnel: `number` is the master's, a reconnect of the same session gets a new one."""

    number: int
    session: str
    user: str
    peer: Peer
    channel: TlsChannel
    opened_at: float
    app_id: bytes = b""
    """Names the tunnel in a DTLS ClientHello; empty when DTLS is not offered."""
    psk: bytes = field(default=b"", repr=False)
    pending: int = 0
    """DTLS handshakes under way."""
    is_own: bool = False
    """The client is one of our own."""
    rekey_asked_at: float = -REKEY_AGAIN
    serving: bool = True
    """Packets to the client go this way.  Of the two tunnels of a session that changes its keys
    one does; what the client sends is taken on both."""
    proved: bool = True
    """Not before the client's first packet on a tunnel that was opened to change its keys."""

    def send_bye(self, reason: str) -> None:
        """Tell the client that its session is over: it will not come back by itself."""
        self.channel.send_control(
            cstp.encode(PacketType.DISCONNECT, bytes([cstp.USER_LOGOUT]) + reason.encode())
        )

    def ask_rekey(self, now: float) -> None:
        """Ask the client, if it is one of our own, to change its keys."""
        if self.is_own:
            self.rekey_asked_at = now
            self.channel.send_control(cstp.encode(PacketType.DPD_REQUEST, REKEY))

    def watch_keys(self, now: float) -> None:
        """Ask for other keys in time when ours have sealed nearly as much as they may."""
        path = self.peer.dtls
        if path is None or path.sealer.records_left >= REKEY_BELOW:
            return
        if now - self.rekey_asked_at >= REKEY_AGAIN:
            self.ask_rekey(now)

    def ask_tls(self) -> None:
        self.channel.send_control(cstp.encode(PacketType.DPD_REQUEST))

    def send_dtls(self, payload: bytes) -> None:
        """Send a payload that is not a data packet, type byte first, if DTLS can take it."""
        path = self.peer.dtls
        if path is None or not path.confirmed:
            return
        try:
            record = seal_one(path.sealer, payload)
        except LocalProtocolError:
            self.peer.dtls_active = False
            return
        if path.udp.send(record, path.address, path.ancillary) is Sent.FAILED:
            self.peer.dtls_active = False
