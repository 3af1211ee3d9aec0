"""TCP connections of clients: TLS, the login, the CONNECT, then the tunnel's TLS channel.

The shell around `protocol.tls_stream` and `protocol.server_channel`: it moves bytes, asks
the master, keeps the limits, and decides nothing itself.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol, cast

from OpenSSL import SSL

from vpnd import log
from vpnd.auth.hasher import source
from vpnd.dataplane.peer import Peer
from vpnd.errors import Malformed, RemoteProtocolError
from vpnd.protocol.events import Event, LoginStep, LogoutRequested, TunnelRequested
from vpnd.protocol.server_channel import ServerChannel, State
from vpnd.protocol.tls_stream import TlsStream
from vpnd.wire import cstp, renewal
from vpnd.wire.auth_messages import AuthForm, Input
from vpnd.wire.cstp import PacketType
from vpnd.worker.admission import TOO_MANY_LOGINS, Admission
from vpnd.worker.control import ControlChannel, PeerGone
from vpnd.worker.messages import LoginQuery, LoginReply, Logout, OpenQuery, OpenReply, Start
from vpnd.worker.shown_certificate import der, facts
from vpnd.worker.tunnel import Tunnel

HANDSHAKE_TIMEOUT = 15.0  # seconds for TCP accept to finished TLS handshake
CLOSE_TIMEOUT = 2.0  # seconds for the last bytes to leave before the connection is cut
MAX_EARLY = 256 * 1024  # bytes of a TLS handshake that may wait: one read of the event loop
MAX_BACKLOG = 1024 * 1024  # bytes of ciphertext a client may leave unread before it is cut off
ENDS = {PacketType.DISCONNECT, PacketType.TERMINATE}
GAVE_WAY = "too many logins at once, this address had most"
_BUSY = "the service is busy, try again in a moment"


class TunnelHost(Protocol):
    """What a connection needs of its worker."""

    control: ControlChannel
    admission: Admission
    settings: Start

    def open_tunnel(
        self, channel: "ClientConnection", query: TunnelRequested, reply: OpenReply
    ) -> Tunnel | None:
        """Set up the tunnel, and answer the CONNECT on the channel; None if it was refused."""
        ...

    def give_back(self, reply: OpenReply, reason: str) -> None:
        """Tell the master that a tunnel it granted was never opened."""
        ...

    def close_tunnel(self, tunnel: Tunnel, reason: str, *, final: bool) -> None:
        """Forget the tunnel and tell the master."""
        ...

    def prove(self, tunnel: Tunnel) -> None:
        """The client uses a tunnel that was opened to change its keys: now it serves."""
        ...

    def packets_from_tls(self, peer: Peer, packets: list[memoryview]) -> None:
        """Write what the client sent to the TUN."""
        ...

    def take_turn(self, step: Callable[[], None]) -> None:
        """Run a step of a TLS handshake once data has had its turn."""
        ...

    def now(self) -> float: ...


class ClientConnection(asyncio.Protocol):
    """One TCP connection of a client, from accept to close."""

    def __init__(self, host: TunnelHost, context: SSL.Context) -> None:
        self._host = host
        self.tls = TlsStream(context)
        self.channel = ServerChannel()
        self.address: tuple[str, int] = ("", 0)
        self.outer_ipv6 = False
        self._transport: asyncio.Transport | None = None
        self._network = ""
        self._tunnel: Tunnel | None = None
        self._admitted = False
        self._pending = False
        """Admitted, and no tunnel open yet."""
        self._early = bytearray()
        """Bytes of the TLS handshake that wait for their turn."""
        self._task: asyncio.Task[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.address = transport.get_extra_info("peername")[:2]
        self.outer_ipv6 = ":" in self.address[0]
        self._network = source(self.address[0])
        admission = self._host.admission
        refusal = admission.refusal(self._network)
        if refusal and not (refusal == TOO_MANY_LOGINS and admission.make_room(self._network)):
            admission.tell_refusal(self.outer, refusal, self._host.now())
            self._transport.abort()
            return
        admission.enter(self._network)
        admission.logins.setdefault(self._network, {})[self] = None
        self._admitted = self._pending = True
        self._limit_time(HANDSHAKE_TIMEOUT, "TLS handshake timed out")

    def data_received(self, data: bytes) -> None:
        if self.tls.established:
            self._receive(data)
            return
        if not self._early:
            self._host.take_turn(self._handshake_step)
        self._early += data
        if len(self._early) > MAX_EARLY:
            self.close("more than a TLS handshake needs")

    def _handshake_step(self) -> None:
        data = bytes(self._early)
        self._early.clear()
        if data and not self._gone:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
        try:
            handshaking = not self.tls.established
            records = self.tls.receive(data)
            if handshaking and self.tls.established:
                timeout = self._host.settings.login_timeout_s
                self._limit_time(timeout, "login timed out")
            self._take(records)
        except Malformed as exc:
            self._log_failure("client sent something unexpected", exc)
            self._send_plaintext()  # the HTTP answer that says so
            self.close(str(exc))
        except RemoteProtocolError as exc:
            self._log_failure("TLS failed", exc)
            self.close(str(exc))
        else:
            if self.tls.closed and self._transport and not self._transport.is_closing():
                self.close("client closed the connection")
            self.flush()
            if self.backlog() > MAX_BACKLOG:  # TLS itself answers: a KeyUpdate with another
                self.close("client does not read")

    def connection_lost(self, exc: Exception | None) -> None:
        self._release("connection lost" if exc else "connection closed")

    # plaintext

    def _take(self, records: list[bytes]) -> None:
        if self.channel.state is State.OPEN:
            self._take_packets(records)
            return
        for record in records:
            event = self.channel.receive(record)
            self._send_plaintext()
            if event is not None:
                self._task = asyncio.ensure_future(self._answer(event))
            elif self.channel.state is State.CLOSING:
                self.close("request refused")

    def _take_packets(self, records: list[bytes]) -> None:
        tunnel, reader = self._tunnel, self.channel.reader
        if tunnel is None or not records:
            return
        tunnel.peer.liveness.heard_tls(self._host.now())
        if not tunnel.proved:
            self._host.prove(tunnel)
        packets: list[memoryview] = []
        for record in records:
            for kind, payload in reader.receive(record):
                if kind == PacketType.DATA:
                    packets.append(payload)
                    continue
                if kind in ENDS:  # what came before it is still good
                    self._deliver(tunnel, packets)
                if not self._control(kind, payload):
                    return
        self._deliver(tunnel, packets)

    def _deliver(self, tunnel: Tunnel, packets: list[memoryview]) -> None:
        if packets:
            if tunnel.peer.dtls_active:
                tunnel.peer.liveness.doubt_dtls(self._host.now())
            self._host.packets_from_tls(tunnel.peer, packets)

    def _control(self, kind: int, payload: memoryview) -> bool:
        """Handle a CSTP packet that is not data; return False when the tunnel is over."""
        if kind == PacketType.DPD_REQUEST:
            self.send_control(cstp.encode(PacketType.DPD_RESPONSE, payload))
        elif kind in ENDS:
            said = cstp.parse_disconnect(payload)
            self._end_tunnel(
                f"client left: {said.text or 'no reason'}", temporary=said.is_temporary
            )
            self.close("client left")
            return False
        elif kind == PacketType.COMPRESSED:
            raise Malformed("compressed packet, but no compression was agreed")
        return True

    def _end_tunnel(self, reason: str, *, temporary: bool) -> None:
        tunnel, self._tunnel = self._tunnel, None
        if tunnel is not None:
            self._host.close_tunnel(tunnel, reason, final=not temporary)

    # questions to the master

    async def _answer(self, event: Event) -> None:
        try:
            if isinstance(event, LoginStep):
                await self._login(event)
            elif isinstance(event, LogoutRequested):
                if event.cookie:
                    self._host.control.send(Logout(event.cookie, self.outer))
                self.channel.logged_out()
            else:
                await self._connect(event)
        except PeerGone as exc:
            self.close(str(exc))
        except Exception:  # a bug of ours: this client must not hang, nor others notice
            logging.getLogger(__name__).exception("request of %s failed", self.outer)
            self.close("request failed")
        self._send_plaintext()
        self.flush()
        if self.channel.state is State.CLOSING:
            self.close("refused")

    async def _login(self, step: LoginStep) -> None:
        reply = await self._host.control.ask(
            LoginQuery(
                address=self.address[0],
                login_cookie=step.login_cookie,
                values=dict(step.fields),
                group=step.group,
                restart=step.restart,
                certificate=facts(self.tls.peer_certificate()),
            )
        )
        if self._gone or not isinstance(reply, LoginReply):
            return
        if reply.outcome == "form":
            inputs = tuple(Input(i.name, i.type, i.label) for i in reply.inputs)  # type: ignore[arg-type]  # the master names only known types
            self.channel.login_form(AuthForm(reply.message, reply.error, inputs), reply.cookie)
        elif reply.outcome == "accepted":
            self.channel.login_accepted(reply.cookie)
        elif reply.outcome == "busy":
            self.channel.login_busy()
        else:
            self.channel.login_refused(reply.message)

    async def _connect(self, event: TunnelRequested) -> None:
        connect = event.connect
        reply = await self._host.control.ask(
            OpenQuery(
                cookie=connect.cookie,
                address=self.outer,
                certificate=facts(self.tls.peer_certificate()),
                hostname=connect.hostname,
                user_agent=connect.user_agent,
                wants_ipv4=connect.wants_ipv4,
                wants_ipv6=connect.wants_ipv6,
                is_own=connect.is_own,
                rekey=connect.rekey,
                renewal=renewal.encode(connect.renewal) if connect.renewal else "",
                certificate_der=der(self.tls.peer_certificate()) if connect.renewal else "",
            )
        )
        if not isinstance(reply, OpenReply):
            return
        if self._gone:  # the client left while we asked
            self._host.give_back(reply, "connection lost")
            return
        if reply.refused:
            self.channel.tunnel_refused(reply.refused, reply.reason)
            return
        self._tunnel = self._host.open_tunnel(self, event, reply)
        if self._tunnel is None:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._pending = False
        self._host.admission.pending -= 1
        self._forget_login()

    # sending

    def backlog(self) -> int:
        """Return the bytes of ciphertext that wait for the kernel (dataplane.PacketStream)."""
        return self._transport.get_write_buffer_size() if self._transport else 0

    def send_packets(self, slots: list[memoryview]) -> None:
        """Send CSTP packets, one TLS record each (dataplane.PacketStream)."""
        self.tls.send_records(slots)
        self.flush()

    def send_control(self, packet: bytes) -> None:
        if self.channel.state is not State.OPEN or self._gone:
            return
        if self.backlog() > MAX_BACKLOG:
            self.close("client does not read")
            return
        self.tls.send_records([packet])
        self.flush()

    def _send_plaintext(self) -> None:
        data = self.channel.data_to_send()
        if data and not self._gone:
            self.tls.send(data)

    def flush(self) -> None:
        """Hand the ciphertext that waits to the kernel."""
        data = self.tls.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    # ending

    @property
    def outer(self) -> str:
        return log.endpoint(self.address)

    @property
    def _gone(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def finish(self, reason: str, *, final: bool) -> None:
        """End the tunnel and close; `final` when its session is over."""
        self._end_tunnel(reason, temporary=not final)
        self.close(reason)

    def close(self, reason: str) -> None:
        """Send what waits, then close; the session, if any, stays resumable."""
        if self._gone or self._transport is None:
            return
        if self.channel.state is not State.CLOSING:
            self.channel.close()
        self.tls.shutdown()
        self.flush()
        self._transport.close()
        self._limit_time(CLOSE_TIMEOUT, "")
        self._end_tunnel(reason, temporary=True)

    def _limit_time(self, seconds: float, complaint: str) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(seconds, self._too_late, complaint)

    def _too_late(self, complaint: str) -> None:
        if complaint:
            log.event("connection closed", address=self.outer, reason=complaint)
        if self._transport is not None:
            self._transport.abort()

    def _log_failure(self, what: str, exc: Exception) -> None:
        tunnel = self._tunnel
        # scanners and browsers fail here all day: a certificate or a session makes it news
        news = tunnel is not None or self.tls.certificate_refused
        log.event(
            what,
            level=logging.WARNING if news else logging.DEBUG,
            user=tunnel.user if tunnel else "",
            session=tunnel.session if tunnel else "",
            address=self.outer,
            reason=str(exc),
        )

    def _release(self, reason: str) -> None:
        self._end_tunnel(reason, temporary=True)
        if self._deadline is not None:
            self._deadline.cancel()
        if self._admitted:
            self._admitted = False
            self._host.admission.leave(self._network, pending=self._pending)
            self._forget_login()

    def _forget_login(self) -> None:
        logins = self._host.admission.logins
        mine = logins.get(self._network, {})
        mine.pop(self, None)
        if not mine:
            logins.pop(self._network, None)

    def give_way(self) -> None:
        """Close at once: an address with fewer logins needs the place."""
        self._release(TOO_MANY_LOGINS)
        self._host.admission.tell_refusal(self.outer, GAVE_WAY, self._host.now())
        self._too_late("")


def connection_factory(
    host: TunnelHost, context: Callable[[], SSL.Context]
) -> Callable[[], ClientConnection]:
    """Return what asyncio calls for each accepted connection."""
    return lambda: ClientConnection(host, context())
