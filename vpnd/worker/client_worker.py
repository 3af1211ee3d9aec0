"""The worker process in the client role: find a server, log in, carry packets, stay connected.

    dial ──► log in (unless a cookie is held) ──► CONNECT ──► tunnel ──lost──► dial ...
                                                                └─rotate: a second tunnel, then
                                                                  the first is let go

The master owns the TUN and the host's network and talks to people; this process knows nothing
of either.  It never gives up by itself while `reconnect_timeout_s` allows.
"""

import asyncio
import os
import random
import socket
import time
from typing import Any

from vpnd import log
from vpnd.dataplane.counters import Drops
from vpnd.dataplane.outbound import Outbound
from vpnd.dataplane.peer import PeerTable
from vpnd.dataplane.tun_queue import TunQueue
from vpnd.errors import ProtocolError, VpnError
from vpnd.protocol.backoff import delays
from vpnd.protocol.dtls_client import DtlsClientContext, client_psk_supported
from vpnd.protocol.tls_client import ServerNotTrusted
from vpnd.wire import cstp
from vpnd.wire.params_client import ServerParams
from vpnd.worker.client_stream import ConnectionFailed, ServerConnection
from vpnd.worker.client_tunnel import ClientTunnel
from vpnd.worker.connector import Connector, Fatal, SessionEnded
from vpnd.worker.control import TUN_GONE, ControlChannel
from vpnd.worker.messages import (
    ClientState,
    Ended,
    LinkReady,
    LinkUp,
    Message,
    NetworkChanged,
    OffloadStatus,
    Ping,
    Ready,
    RemoteEntry,
    Rotate,
    Rotated,
    StartClient,
    StatusQuery,
    StatusReply,
    Stop,
)
from vpnd.worker.worker import TICK, has_aes_instructions

DTLS_WAIT = 5.0  # seconds a rotation waits for the new DTLS channel
OVERLAP = 3.0  # seconds the old tunnel is still read after a rotation
RECORDS_LEFT = 1 << 20  # rotate when a channel has fewer to seal


class ClientWorker:
    """Everything of the client's worker process."""

    def __init__(self, settings: StartClient, fds: list[int]) -> None:
        self._settings = settings
        self._tun = TunQueue(fds[0])
        self._drops = Drops()
        self._peers = PeerTable()
        self._tunnel: ClientTunnel | None = None
        self._old: set[ClientTunnel] = set()
        self._used: RemoteEntry | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._rotating = asyncio.Lock()
        self._background: set[asyncio.Task[Rotated]] = set()
        self.exit_status = 0
        chacha_first = not has_aes_instructions()
        self._dtls = (
            DtlsClientContext(chacha_first=chacha_first)
            if settings.dtls and client_psk_supported()
            else None
        )
        self._connector = Connector(
            settings,
            wants_dtls=self._dtls is not None,
            chacha_first=chacha_first,
            ask=self._ask,
            on_login=lambda: self._tell("logging-in", "", 1),
        )
        self.control: ControlChannel

    async def run(self, border: socket.socket) -> None:
        """Work until the master says stop or is gone, or nothing more can be done."""
        reader, writer = await asyncio.open_connection(sock=border)
        self.control = ControlChannel(reader, writer, self._on_message)
        self._watch_tun()
        tasks = {
            asyncio.create_task(self.control.run()),
            asyncio.create_task(self._stopping.wait()),
            asyncio.create_task(self._tick()),
            asyncio.create_task(self._stay_connected()),
        }
        self.control.send(Ready())
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for tunnel in self._tunnels():
            tunnel.close("client is stopping", code=cstp.USER_LOGOUT)
        await asyncio.sleep(0)  # lets the transports write what they hold
        self.control.close()
        for task in pending:
            task.cancel()
        for finished in done:
            finished.result()  # a bug must not look like an orderly end

    def _watch_tun(self) -> None:
        loop = asyncio.get_running_loop()
        outbound = Outbound(self._tun, self._peers, self._drops, time.monotonic)

        def on_tun() -> None:
            outbound.on_readable()
            if self._tun.gone:
                loop.remove_reader(self._tun.fd)
                self.exit_status = TUN_GONE
                self._stopping.set()

        loop.add_reader(self._tun.fd, on_tun)

    async def _ask(self, message: Message) -> Message:
        return await self.control.ask(message)

    def _tunnels(self) -> list[ClientTunnel]:
        return [tunnel for tunnel in (self._tunnel, *self._old) if tunnel is not None]

    # staying connected

    async def _stay_connected(self) -> None:
        waits = delays(random.random)
        attempt, lost_at, reason = 0, time.monotonic(), ""
        thrown_out = False
        while True:
            attempt += 1
            try:
                tunnel = await self._establish(attempt, reason)
            except Fatal as exc:
                self._end(str(exc), exc.exit_status)
                return
            except (VpnError, OSError, TimeoutError) as exc:
                if thrown_out and attempt == 1 and isinstance(exc, SessionEnded):
                    # it was there all the time, and meant us
                    self._end("the server ended the session", 1)
                    return
                reason = explain(exc, self._used.host if self._used else "")
                limit = self._settings.reconnect_timeout_s
                if limit and time.monotonic() - lost_at > limit:
                    self._end(f"not connected within {limit} s: {reason}", 1)
                    return
                await self._wait(next(waits), attempt, reason)
                continue
            self._tell("connected", "", attempt)
            reason = await self._serve(tunnel)
            bye = self._tunnel.bye if self._tunnel is not None else None
            if bye:
                self._end(f"the server ended the session: {bye}", 1)
                return
            thrown_out = bye is not None
            log.warning("connection lost", reason=reason)
            waits = delays(random.random)
            attempt, lost_at = 0, time.monotonic()

    def _end(self, reason: str, exit_status: int) -> None:
        self.control.send(Ended(reason, exit_status))

    async def _wait(self, seconds: float, attempt: int, reason: str) -> None:
        """Wait for the next try, or for a change of the network that may help."""
        self._tell("waiting", reason, attempt, seconds)
        self._hurry.clear()
        try:
            await asyncio.wait_for(self._hurry.wait(), seconds)
        except TimeoutError:
            return

    def _tell(self, state: str, reason: str, attempt: int, next_try_s: float = 0) -> None:
        remote = self._used.host if self._used else ""
        self.control.send(ClientState(state, reason, remote, attempt, float(next_try_s)))

    async def _serve(self, tunnel: ClientTunnel) -> str:
        """Carry packets until the tunnel that is current then is lost; return why."""
        self._tunnel = tunnel
        self._peers.gateway = tunnel.peer
        while True:
            current = self._tunnel
            reason = await asyncio.shield(current.connection.lost)
            async with self._rotating:  # some servers end the old tunnel once there is a new one
                pass
            if self._tunnel is current:
                current.abandon()
                self._peers.gateway = None
                return reason

    # one connection after the other

    async def _establish(self, attempt: int, reason: str) -> ClientTunnel:
        """Return a tunnel through the first server that gives one, with the link set up.

        Raises the last server's trouble, or Fatal.
        """
        trouble: Exception = ConnectionFailed("no server is configured")
        for remote in self._settings.remotes:
            self._used = remote
            self._tell(
                "reconnecting" if self._connector.has_session(remote) else "connecting",
                reason,
                attempt,
            )
            try:
                connection, params = await self._connector.reach(remote, self._given())
                return await self._set_up(connection, params)
            except SessionEnded:
                raise
            except ServerNotTrusted as exc:
                trouble = exc
                log.error("the server is not trusted", name=remote.host, reason=str(exc))
            except (ProtocolError, ConnectionFailed, OSError, TimeoutError) as exc:
                trouble = exc
        raise trouble

    def _given(self) -> ServerParams | None:
        """Return what the session was given before, if it had a tunnel."""
        return self._tunnel.params if self._tunnel is not None else None

    async def _set_up(self, connection: ServerConnection, params: ServerParams) -> ClientTunnel:
        """Have the master set up the link; only then packets flow."""
        mtu = min(params.mtu, self._settings.mtu) if self._settings.mtu else params.mtu
        reply = await self.control.ask(
            LinkUp(
                address4=str(params.address4 or ""),
                prefix4=params.prefix4,
                address6=str(params.address6 or ""),
                prefix6=params.prefix6,
                mtu=mtu,
                split_include=[str(prefix) for prefix in params.split_include],
                split_exclude=[str(prefix) for prefix in params.split_exclude],
                dns=[str(server) for server in params.dns],
                default_domain=" ".join(params.domains),
                remote=connection.address[0],
                banner=params.banner,
            )
        )
        refusal = reply.refusal if isinstance(reply, LinkReady) else "no answer"
        if refusal:
            connection.close()
            raise Fatal(refusal)
        for remark in params.remarks:
            log.warning("the server says something odd", reason=remark)
        return self._make_tunnel(connection, params, mtu)

    def _make_tunnel(
        self, connection: ServerConnection, params: ServerParams, mtu: int
    ) -> ClientTunnel:
        return ClientTunnel(
            connection, params, self._tun, self._drops, self._dtls, mtu, self._rotate_soon
        )

    # new keys

    def _rotate_soon(self) -> None:
        """The server asks for new keys, or these have been used long enough."""
        if self._rotating.locked():
            return
        task = asyncio.create_task(self._rotate())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _rotate(self) -> Rotated:
        """Make a second tunnel of the same session, move over to it, let the first go."""
        async with self._rotating:
            old = self._tunnel
            if old is None or self._used is None or old.connection.lost.done():
                return Rotated(False, "not connected", 0)
            try:
                connection, params = await self._connector.reach(
                    self._used, old.params, rekey=True
                )
            except (VpnError, OSError, TimeoutError) as exc:
                return Rotated(False, str(exc) or "no answer in time", old.status().keys_age_s)
            same = (params.address4, params.address6) == (
                old.params.address4,
                old.params.address6,
            )
            if not same:
                connection.close()
                return Rotated(False, "the server gave another address", 0)
            mtu = old.peer.mtu
            new = self._make_tunnel(connection, params, mtu)
            await self._wait_as_good(new, old)
            if new.connection.lost.done():
                new.abandon()
                return Rotated(False, new.connection.lost.result(), old.status().keys_age_s)
            self._move(old, new)
            log.event("session keys changed", channel=new.status().channel)
            return Rotated(True, "", new.status().keys_age_s)

    @staticmethod
    async def _wait_as_good(new: ClientTunnel, old: ClientTunnel) -> None:
        """Wait for DTLS on the new tunnel if the old one has it; TLS will do after a while."""
        if new.datagrams is None or not old.peer.dtls_active:
            return
        active = asyncio.ensure_future(new.datagrams.active.wait())
        ends: set[asyncio.Future[Any]] = {active, old.connection.lost, new.connection.lost}
        await asyncio.wait(ends, timeout=DTLS_WAIT, return_when=asyncio.FIRST_COMPLETED)
        active.cancel()

    def _move(self, old: ClientTunnel, new: ClientTunnel) -> None:
        new.take_over(old)
        new.ask_tls()  # the server follows our first packet, and we may have no other
        self._tunnel = new
        self._peers.gateway = new.peer
        self._old.add(old)
        asyncio.get_running_loop().call_later(OVERLAP, self._let_go, old)
        if old.connection.lost.done():  # it went while we were making the new one
            self._let_go(old)

    def _let_go(self, old: ClientTunnel) -> None:
        if old in self._old:
            self._old.discard(old)
            old.close("keys changed", code=cstp.RECONNECTING)

    def _is_due(self, tunnel: ClientTunnel, now: float) -> bool:
        """Return whether this tunnel's keys have been used long enough, or often enough."""
        every = tunnel.params.rekey_s or self._settings.rekey_s
        if self._settings.rekey_s:
            every = min(every, self._settings.rekey_s)
        path = tunnel.peer.dtls
        used_up = path is not None and path.sealer.records_left < RECORDS_LEFT
        return used_up or bool(every and now - tunnel.rotated_at >= every)

    # clocks and the master

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            for tunnel in self._tunnels():
                tunnel.expire(now)
            current = self._tunnel
            if current is not None and self._is_due(current, now):
                self._rotate_soon()
                current.rotated_at = now  # a rotation that fails is tried again a period later

    async def _on_message(self, message: Message) -> Message | None:
        if isinstance(message, StatusQuery):
            return self._status()
        if isinstance(message, Ping):
            return Ready()
        if isinstance(message, Rotate):
            return await self._rotate()
        if isinstance(message, NetworkChanged):
            self._network_changed(message.reason)
        elif isinstance(message, Stop):
            self._stopping.set()
        return None

    def _network_changed(self, reason: str) -> None:
        """Ask at once whether the server is still there, or try at once if it was not."""
        self._hurry.set()
        tunnel = self._tunnel
        if tunnel is None or tunnel.connection.lost.done():
            return
        log.event("the network has changed", reason=reason)
        if not can_bind(tunnel.connection.local[0]):
            tunnel.connection.fail("our address is gone")
        else:
            tunnel.doubt()

    def _status(self) -> StatusReply:
        tunnel = self._tunnel
        alive = tunnel is not None and not tunnel.connection.lost.done()
        return StatusReply(
            [tunnel.status()] if tunnel is not None and alive else [],
            dict(self._drops.as_dict()),
            self._offloads(tunnel),
        )

    @staticmethod
    def _offloads(tunnel: ClientTunnel | None) -> list[OffloadStatus]:
        udp = tunnel.datagrams.offload if tunnel and tunnel.datagrams else None
        if udp is None:
            return []
        reason = "" if udp.gro else "not supported by this kernel"
        return [
            OffloadStatus("UDP GSO", udp.gso, udp.gso_reason),
            OffloadStatus("UDP GRO", udp.gro, reason),
        ]


def explain(trouble: Exception, host: str) -> str:
    """Return why a try to reach `host` failed, for a person."""
    if isinstance(trouble, socket.gaierror):
        return f"the name {host} is not resolved: {trouble.strerror}"
    if isinstance(trouble, OSError) and trouble.errno:
        return os.strerror(trouble.errno)
    return str(trouble) or "no answer in time"


def can_bind(address: str) -> bool:
    """Return whether `address` is still one of this host's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
