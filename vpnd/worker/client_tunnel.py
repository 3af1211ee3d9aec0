"""One tunnel to the server: its TLS connection, its DTLS channel, its peer in the data plane."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from vpnd import log
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.inbound import Inbound
from vpnd.dataplane.peer import Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.protocol.dtls_client import DtlsClientContext
from vpnd.protocol.liveness import Action, Liveness
from vpnd.wire import cstp
from vpnd.wire.cstp import PacketType
from vpnd.wire.params_client import ServerParams
from vpnd.worker.client_datagrams import ClientDatagrams
from vpnd.worker.client_stream import ServerConnection
from vpnd.worker.messages import TunnelStatus
from vpnd.worker.tunnel import REKEY, figures

PROBE_TIMEOUT = 1.5  # seconds for an answer over TLS after the network has changed


@dataclass(slots=True, eq=False)
class ClientTunnel:
    """Made when the CONNECT was granted."""

    connection: ServerConnection
    params: ServerParams
    tun: TunQueue
    drops: Drops
    dtls_context: DtlsClientContext | None
    """None where the profile or the library allows no DTLS."""
    mtu: int
    on_rekey: Callable[[], None]
    """The server asks for new keys, or nothing comes back: another tunnel is wanted."""
    opened_at: float = field(default_factory=time.monotonic)
    rotated_at: float = field(init=False)
    """When its keys were made, or new ones last tried for."""
    peer: Peer = field(init=False)
    datagrams: ClientDatagrams | None = None
    bye: str | None = None
    """What the server said when it ended the session; None if it did not.

    Empty is ambiguous: ocserv says that to whom it throws out, and when it is shut down.
    """
    unreachable: bool = False
    """We have ended it, because nothing came back; the server may know nothing of it."""
    _inbound: Inbound = field(init=False)
    _heard_at: float = 0.0
    _probe: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        params = self.params
        self.rotated_at = self.opened_at
        self.peer = Peer(
            "",
            address4=_packed(params.address4),
            address6=_packed(params.address6),
            mtu=self.mtu,
            stream=self.connection,
            liveness=Liveness(self.opened_at, params.dpd_s),
            is_gateway=True,
        )
        self._inbound = Inbound(
            self.tun,
            PeerTable(),
            self.drops,
            time.monotonic,
            on_control=_ignore,
            on_stray=_ignore,
            on_confirmed=_ignore,
        )
        self.connection.on_packets = self._packets_from_tls
        self.connection.on_control = self._control
        if params.app_id and params.dtls_port and self.dtls_context is not None:
            self.datagrams = ClientDatagrams(
                self.dtls_context,
                self.tun,
                self.peer,
                (self.connection.address[0], params.dtls_port),
                psk=self.connection.tls.export_psk(),
                app_id=params.app_id,
                drops=self.drops,
                clock=time.monotonic,
                on_answer=self._answered,
            )
            self.datagrams.start()

    def take_over(self, earlier: "ClientTunnel") -> None:
        """Go on counting where an earlier tunnel of the session stopped."""
        peer, other = self.peer, earlier.peer
        peer.liveness.go_on_from(other.liveness)
        peer.rx_packets += other.rx_packets
        peer.rx_bytes += other.rx_bytes
        peer.tx_packets += other.tx_packets
        peer.tx_bytes += other.tx_bytes
        for reason, count in other.drops.as_dict().items():
            peer.drops.add(reason, count)

    # what arrives

    def _packets_from_tls(self, packets: list[memoryview]) -> None:
        now = time.monotonic()
        self._heard(now)
        if self.peer.dtls_active:
            self.peer.liveness.doubt_dtls(now)
        self._inbound.from_tls(self.peer, packets)

    def _control(self, kind: int, payload: memoryview) -> None:
        self._heard(time.monotonic())
        if kind == PacketType.DPD_REQUEST and payload == REKEY:
            self.on_rekey()
        elif kind == PacketType.DPD_REQUEST:
            self.connection.send_control(cstp.encode(PacketType.DPD_RESPONSE, payload))
        elif kind == PacketType.DPD_RESPONSE:
            self._answered()
        elif kind in {PacketType.DISCONNECT, PacketType.TERMINATE}:
            said = cstp.parse_disconnect(payload)
            self.bye = said.text or ("" if said.code is None else "no reason given")
            self.connection.fail(f"the server ended the session: {self.bye}".rstrip(": "))
        elif kind == PacketType.COMPRESSED:
            self.connection.fail("the server compresses although nothing was agreed")

    def _answered(self) -> None:
        if self.params.is_pyvpn:  # others take no second tunnel beside the first
            self.peer.liveness.answered(time.monotonic())

    def _heard(self, now: float) -> None:
        self._heard_at = now
        self.peer.liveness.heard_tls(now)

    # clocks

    def expire(self, now: float) -> None:
        """Ask, fall back, give up: whatever is due."""
        if self.connection.lost.done():
            return
        for action in self.peer.liveness.expire(now, dtls_active=self.peer.dtls_active):
            if action is Action.ASK_TLS:
                self.ask_tls()
            elif action is Action.ASK_DTLS and self.datagrams is not None:
                self.datagrams.ask()
            elif action is Action.SUSPEND_DTLS and self.datagrams is not None:
                log.event("UDP does not pass, going on over TLS")
                self.datagrams.restart_later()
            elif action is Action.WAY_LOST:
                self.on_rekey()
            elif action is Action.PEER_DEAD:
                self.give_up("the server does not answer")
        if self.datagrams is not None:
            self.datagrams.expire(now)

    def give_up(self, reason: str) -> None:
        """End it here: the server is not reached by it."""
        self.unreachable = True
        self.connection.fail(reason)

    def ask_tls(self) -> None:
        self.peer.liveness.asked(time.monotonic())
        self.connection.send_control(cstp.encode(PacketType.DPD_REQUEST))

    def doubt(self) -> None:
        """The network has changed: both channels must answer soon."""
        asked_at = time.monotonic()
        self.ask_tls()
        if self.datagrams is not None:
            self.datagrams.ask()
        if self._probe is not None:
            self._probe.cancel()
        loop = asyncio.get_running_loop()
        self._probe = loop.call_later(PROBE_TIMEOUT, self._give_up_unless_heard, asked_at)

    def _give_up_unless_heard(self, asked_at: float) -> None:
        if self._heard_at < asked_at:
            self.give_up("the server does not answer since the network has changed")

    # the end

    def close(self, reason: str, *, code: int) -> None:
        """Say BYE with `code` (cstp.USER_LOGOUT ends the session), and close both channels."""
        if not self.connection.lost.done():
            said = bytes([code]) + reason.encode()
            self.connection.send_control(cstp.encode(PacketType.DISCONNECT, said))
        self.connection.close()
        self.abandon()

    def abandon(self) -> None:
        """Let go of what a lost tunnel still holds."""
        if self._probe is not None:
            self._probe.cancel()
        if self.datagrams is not None:
            self.datagrams.close()

    def status(self) -> TunnelStatus:
        """Return the living figures."""
        return figures(
            self.peer,
            self.connection.tls,
            number=0,
            address=self.connection.address,
            opened_at=self.opened_at,
            now=time.monotonic(),
        )


def _packed(address: object) -> bytes:
    return ip_address(str(address)).packed if address else b""


def _ignore(*_: object) -> None:
    return
