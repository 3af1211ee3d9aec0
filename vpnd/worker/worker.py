"""One data worker: a process with its own TUN queue and UDP sockets, and the clients on them.

It is started by the master with one socket, over which it gets everything else.  It holds
no file that matters, knows no database, and when the master is gone it ends.
"""

import asyncio
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import (
    ip_address,
)

from OpenSSL import SSL

from vpnd import log
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.inbound import Inbound
from vpnd.dataplane.outbound import Outbound
from vpnd.dataplane.peer import Peer, PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.dataplane.udp_socket import UdpSocket
from vpnd.errors import ConfigError
from vpnd.protocol.dtls_handshake import DtlsContext, psk_supported
from vpnd.protocol.events import TunnelRequested
from vpnd.protocol.liveness import Action, Liveness
from vpnd.protocol.path_mtu import tunnel_mtu
from vpnd.protocol.tls_stream import server_context
from vpnd.wire.cstp import PacketType
from vpnd.wire.tunnel_params import MIN_IPV6_MTU
from vpnd.worker.admission import Admission
from vpnd.worker.control import TUN_GONE, ControlChannel
from vpnd.worker.datagrams import Datagrams
from vpnd.worker.files import BACKLOG, fd_limit, within_fd_limit
from vpnd.worker.messages import (
    AskRekey,
    EndTunnel,
    Message,
    OffloadStatus,
    OpenReply,
    Ping,
    Ready,
    Reload,
    Reloaded,
    Start,
    StatusQuery,
    StatusReply,
    Stop,
    TunnelEnded,
    TunnelStatus,
    TunnelTakesOver,
)
from vpnd.worker.overlap import Overlaps
from vpnd.worker.parameters import tunnel_params
from vpnd.worker.streams import ClientConnection, connection_factory
from vpnd.worker.tunnel import Tunnel, figures
from vpnd.worker.turns import Turns

TICK = 0.5  # seconds between two looks at the clocks of all sessions
APP_ID_SIZE = 32  # bytes; the longest a ClientHello's session id can carry


class Worker:
    """Everything of one worker process."""

    def __init__(self, settings: Start, fds: list[int]) -> None:
        tun, *rest = fds
        self.settings = settings
        self.admission = Admission(settings)
        self.now = time.monotonic
        self._listeners = [socket.socket(fileno=fd) for fd in rest[: settings.tcp_listeners]]
        self._udp = [UdpSocket(socket.socket(fileno=fd)) for fd in rest[settings.tcp_listeners :]]
        self._tun = TunQueue(tun)
        self._drops = Drops()
        self._peers = PeerTable()
        self._tunnels: dict[int, Tunnel] = {}
        self._hosts: dict[str, set[Tunnel]] = {}
        self._chacha_first = not has_aes_instructions()
        self._context = self._make_context(settings)
        self._dtls = DtlsContext(chacha_first=self._chacha_first) if psk_supported() else None
        self._stopping = asyncio.Event()
        self.exit_status = 0
        self.control: ControlChannel

    def _make_context(self, settings: Start) -> SSL.Context:
        return server_context(
            certificate=settings.certificate,
            key=settings.key,
            client_ca=settings.client_ca,
            allow_tls12=settings.allow_tls12,
            chacha_first=self._chacha_first,
        )

    async def run(self, border: socket.socket) -> None:
        """Serve until the master says stop or is gone."""
        loop = asyncio.get_running_loop()
        self._handshakes = Turns(loop.call_soon)
        reader, writer = await asyncio.open_connection(sock=border)
        self.control = ControlChannel(reader, writer, self._on_message)
        self._overlaps = Overlaps(self._peers, self.control.send)
        self._watch(loop)
        servers = [
            await loop.create_server(
                connection_factory(self, lambda: self._context), sock=listener, backlog=BACKLOG
            )
            for listener in self._listeners
        ]
        ticking = asyncio.create_task(self._tick())
        listening = asyncio.create_task(self.control.run())
        stopping = asyncio.create_task(self._stopping.wait())
        self.control.send(Ready())
        done, _ = await asyncio.wait(
            {listening, stopping, ticking}, return_when=asyncio.FIRST_COMPLETED
        )
        for server in servers:
            server.close()
        for tunnel in list(self._tunnels.values()):
            tunnel.channel.finish("server is stopping", final=False)
        await asyncio.sleep(0)  # lets the transports write what they hold
        self.control.close()
        for task in (ticking, listening, stopping):
            task.cancel()
        for failed in done:
            failed.result()  # a bug must not look like an orderly end

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Register the data path's readers."""
        outbound = Outbound(self._tun, self._peers, self._drops, self.now)

        def on_tun() -> None:
            outbound.on_readable()
            if self._tun.gone:
                loop.remove_reader(self._tun.fd)
                log.error("the TUN interface is gone")
                self.exit_status = TUN_GONE
                self._stopping.set()

        loop.add_reader(self._tun.fd, on_tun)
        self._datagrams = Datagrams(
            self._dtls,
            self._peers,
            self._drops,
            self.now,
            self._tunnels_of_host,
            loop.call_soon,
            self.prove,
        )
        self._inbound = Inbound(
            self._tun,
            self._peers,
            self._drops,
            self.now,
            on_control=self._datagrams.on_control,
            on_stray=self._datagrams.on_stray,
            on_confirmed=self._datagrams.on_confirmed,
        )
        for udp in self._udp:
            loop.add_reader(udp.socket.fileno(), self._inbound.on_readable, udp)

    def _tunnels_of_host(self, host: str) -> Iterable[Tunnel]:
        return self._hosts.get(host, ())

    # what connections ask of their worker

    def open_tunnel(
        self, channel: ClientConnection, query: TunnelRequested, reply: OpenReply
    ) -> Tunnel | None:
        """Set up the tunnel, and answer the CONNECT on the channel; None if it was refused.

        The session's key is registered before the answer is written: the ClientHello may
        arrive within a millisecond.
        """
        connect = query.connect
        now = self.now()
        mtu = tunnel_mtu(connect.base_mtu, outer_ipv6=channel.outer_ipv6, wanted=reply.mtu)
        address6 = reply.address6 if mtu >= MIN_IPV6_MTU else ""
        if not reply.address4 and not address6:
            channel.channel.tunnel_refused(503, "Your link is too narrow for IPv6")
            self.give_back(reply, "the link is too narrow for IPv6")
            return None
        peer = Peer(
            reply.session,
            address4=_packed(reply.address4),
            address6=_packed(address6),
            mtu=mtu,
            stream=channel,
            liveness=Liveness(
                now,
                reply.dpd_s,
                reply.idle_timeout_s,
                now + reply.session_left_s if reply.session_left_s else 0,
            ),
        )
        tunnel = Tunnel(
            reply.tunnel, reply.session, reply.user, peer, channel, now, is_own=connect.is_own
        )
        if connect.wants_dtls and self.settings.dtls and self._dtls is not None:
            tunnel.app_id = secrets.token_bytes(APP_ID_SIZE)
            tunnel.psk = channel.tls.export_psk()
            self._datagrams.add(tunnel)
        self._tunnels[tunnel.number] = tunnel
        self._hosts.setdefault(channel.address[0], set()).add(tunnel)
        tunnel.proved = not reply.cookie
        self._put_in_place(tunnel, reply.beside, now)
        params = tunnel_params(reply, mtu, connect.base_mtu, self.settings.port, tunnel.app_id)
        params = replace(params, is_own=connect.is_own, cookie=reply.cookie)
        channel.channel.tunnel_opened(params)
        return tunnel

    def _put_in_place(self, tunnel: Tunnel, beside: int, now: float) -> None:
        """Let packets go by this tunnel: at once, or when the client leaves the one it has."""
        earlier = self._tunnels.get(beside)
        if earlier is not None:
            self._overlaps.begin(earlier, tunnel, now)
            return
        self._peers.add(tunnel.peer)
        if beside:  # it ended while the master was asked
            self.control.send(TunnelTakesOver(tunnel.number, tunnel.session))

    def prove(self, tunnel: Tunnel) -> None:
        """The client uses a tunnel that was opened to change its keys: now it serves."""
        self._overlaps.prove(tunnel)

    def give_back(self, reply: OpenReply, reason: str) -> None:
        """Tell the master that a tunnel it granted was never opened."""
        if not reply.refused:
            self.control.send(TunnelEnded(reply.tunnel, reply.session, reason, final=False))

    def close_tunnel(self, tunnel: Tunnel, reason: str, *, final: bool) -> None:
        """Forget the tunnel and tell the master."""
        if self._tunnels.pop(tunnel.number, None) is None:
            return
        self._overlaps.closed(tunnel, reason, final=final)
        self._peers.remove(tunnel.peer)
        self._datagrams.remove(tunnel)
        host = tunnel.channel.address[0]
        neighbours = self._hosts.get(host, set())
        neighbours.discard(tunnel)
        if not neighbours:
            self._hosts.pop(host, None)
        for cause, count in tunnel.peer.drops.as_dict().items():
            self._drops.add(cause, count)
        self.control.send(
            TunnelEnded(
                tunnel.number,
                tunnel.session,
                reason,
                final,
                tunnel.peer.rx_bytes,
                tunnel.peer.tx_bytes,
            )
        )

    def take_turn(self, step: Callable[[], None]) -> None:
        """Run a step of a TLS handshake once data has had its turn."""
        self._handshakes.add(step)

    def packets_from_tls(self, peer: Peer, packets: list[memoryview]) -> None:
        """Write what the client sent to the TUN."""
        self._inbound.from_tls(peer, packets)

    # clocks

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = self.now()
            self._datagrams.expire(now)
            self._overlaps.expire(now)
            for tunnel in list(self._tunnels.values()):
                try:
                    self._look_after(tunnel, now)
                except Exception:  # a bug of ours costs one tunnel, not all
                    logging.getLogger(__name__).exception("tunnel of %s failed", tunnel.user)
                    tunnel.channel.finish("internal error", final=False)

    def _look_after(self, tunnel: Tunnel, now: float) -> None:
        if not tunnel.serving:  # its time is bounded already
            return
        peer = tunnel.peer
        tunnel.watch_keys(now)
        for action in peer.liveness.expire(now, dtls_active=peer.dtls_active):
            self._act(tunnel, action)

    @staticmethod
    def _act(tunnel: Tunnel, action: Action) -> None:
        if action is Action.ASK_TLS:
            tunnel.ask_tls()
        elif action is Action.ASK_DTLS:
            tunnel.send_dtls(bytes([PacketType.DPD_REQUEST]))
        elif action is Action.SUSPEND_DTLS:
            tunnel.peer.dtls_active = False
            log.event(
                "UDP does not pass, going on over TLS", user=tunnel.user, session=tunnel.session
            )
        elif action is Action.PEER_DEAD:
            tunnel.channel.finish(action.value, final=False)
        else:
            tunnel.send_bye(action.value)
            tunnel.channel.finish(action.value, final=True)

    # the master

    async def _on_message(self, message: Message) -> Message | None:
        if isinstance(message, StatusQuery):
            return self._status()
        if isinstance(message, Ping):
            return Ready()
        if isinstance(message, Reload):
            return self._reload(message.settings)
        if isinstance(message, EndTunnel):
            tunnel = self._tunnels.get(message.tunnel)
            if tunnel is not None:
                if message.bye:
                    tunnel.send_bye(message.reason)
                tunnel.channel.finish(message.reason, final=message.bye)
        elif isinstance(message, AskRekey):
            tunnel = self._tunnels.get(message.tunnel)
            if tunnel is not None:
                tunnel.ask_rekey(self.now())
        elif isinstance(message, Stop):
            self._stopping.set()
        return None

    def _reload(self, settings: Start) -> Reloaded:
        """Work by these settings from now on; what is open already goes on as it was."""
        try:
            self._context = self._make_context(settings)
        except ConfigError as exc:
            return Reloaded(str(exc))
        self.settings = self.admission.limits = within_fd_limit(settings, fd_limit())
        log.setup(settings.log_level, anonymise=settings.log_anonymise)
        return Reloaded()

    def _status(self) -> StatusReply:
        self._overlaps.count_on()
        tunnels = list(self._tunnels.values())
        total = Drops()
        for drops in (self._drops, *(tunnel.peer.drops for tunnel in tunnels)):
            for reason, count in drops.as_dict().items():
                total.add(reason, count)
        return StatusReply(
            [self._tunnel_status(tunnel) for tunnel in tunnels],
            dict(total.as_dict()),
            self._offloads(),
        )

    def _tunnel_status(self, tunnel: Tunnel) -> TunnelStatus:
        return figures(
            tunnel.peer,
            tunnel.channel.tls,
            number=tunnel.number,
            address=tunnel.channel.address,
            opened_at=tunnel.opened_at,
            now=self.now(),
        )

    def _offloads(self) -> list[OffloadStatus]:
        offloads = []
        for udp in self._udp:
            family = "IPv6" if udp.family == socket.AF_INET6 else "IPv4"
            offloads.append(OffloadStatus(f"UDP GSO {family}", udp.gso, udp.gso_reason))
            reason = "" if udp.gro else "not supported by this kernel"
            offloads.append(OffloadStatus(f"UDP GRO {family}", udp.gro, reason))
        offloads.append(OffloadStatus("TUN GSO writes", self._tun.gso, self._tun.gso_reason))
        if self._dtls is None:
            offloads.append(OffloadStatus("DTLS", False, "pyOpenSSL offers no PSK callback"))
        return offloads


def _packed(address: str) -> bytes:
    return ip_address(address).packed if address else b""


def has_aes_instructions() -> bool:
    """Return whether the processor has AES instructions (x86 and arm64 call the flag `aes`)."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as info:  # noqa: PTH123
            return any(line.startswith(("flags", "Features")) and " aes" in line for line in info)
    except OSError:
        return True
