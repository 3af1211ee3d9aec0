"""The worker process in the client role: find a server, log in, carry packets, stay connected.

    dial ──► log in (unless a cookie is held) ──► CONNECT ──► tunnel ──lost──► dial ...
                                                                └─rotate: a second tunnel, then
                                                                  the first is let go

The master owns the TUN and the host's network and talks to people; this process knows nothing
of either.  It never gives up by itself while `reconnect_timeout_s` allows.
"""

import asyncio
import random
import socket
import time

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
from vpnd.worker.client_tunnels import ClientTunnels
from vpnd.worker.connector import Connector, Fatal, SessionEnded
from vpnd.worker.control import TUN_GONE, ControlChannel
from vpnd.worker.dialler import explain
from vpnd.worker.messages import (
    ClientState,
    Ended,
    HeldSession,
    LinkReady,
    LinkUp,
    Message,
    NetworkChanged,
    OffloadStatus,
    Ping,
    Ready,
    RemoteEntry,
    Rotate,
    StartClient,
    StatusQuery,
    StatusReply,
    Stop,
)
from vpnd.worker.worker import has_aes_instructions

TICK = 0.25  # seconds between two looks at the clocks: a lost way is noticed within 3 s


class ClientWorker:
    """Everything of the client's worker process."""

    def __init__(self, settings: StartClient, fds: list[int]) -> None:
        self._settings = settings
        self._tun = TunQueue(fds[0])
        self._drops = Drops()
        self._peers = PeerTable()
        self._tunnels = ClientTunnels(self._peers, self._another, rekey_s=settings.rekey_s)
        self._used: RemoteEntry | None = None
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._says_good_bye = False
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
            on_session=self._on_session,
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
        if self._says_good_bye:
            self._tunnels.close("client is stopping", code=cstp.USER_LOGOUT)
        else:  # the master is to be started again, or died
            self._tunnels.leave()
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

    def _on_session(self, held: HeldSession) -> None:
        self.control.send(held)

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
            reason = await self._tunnels.serve(tunnel)
            bye = self._tunnels.current.bye if self._tunnels.current is not None else None
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

    # one connection after the other

    async def _establish(self, attempt: int, reason: str) -> ClientTunnel:
        """Return a tunnel through the first server that gives one, with the link set up.

        Raises the last server's trouble, or Fatal.
        """
        trouble: Exception = ConnectionFailed("no server is configured")
        for remote in self._connector.in_order(self._settings.remotes):
            self._used = remote
            self._tell(
                "reconnecting" if self._connector.has_session(remote) else "connecting",
                reason,
                attempt,
            )
            try:
                connection, params = await self._connector.reach(remote)
                return await self._set_up(connection, params)
            except SessionEnded:
                raise
            except ServerNotTrusted as exc:
                trouble = exc
                log.error("the server is not trusted", name=remote.host, reason=str(exc))
            except (ProtocolError, ConnectionFailed, OSError, TimeoutError) as exc:
                trouble = exc
        raise trouble

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
            connection,
            params,
            self._tun,
            self._drops,
            self._dtls,
            mtu,
            on_rekey=self._tunnels.rotate_soon,
        )

    async def _another(self, old: ClientTunnel) -> ClientTunnel:
        """Return a second tunnel of the session, beside `old`; raises as `_establish` does."""
        assert self._used is not None  # `old` came from there
        connection, params = await self._connector.reach(self._used, rekey=True)
        given = (params.address4, params.address6)
        if given != (old.params.address4, old.params.address6):
            connection.close()
            raise ConnectionFailed("the server gave another address")
        return self._make_tunnel(connection, params, old.peer.mtu)

    # clocks and the master

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._tunnels.expire(time.monotonic())
            tunnel = self._tunnels.living()
            if tunnel and tunnel.params.is_pyvpn and self._connector.renewal.take_turn():
                self._tunnels.rotate_soon()

    async def _on_message(self, message: Message) -> Message | None:
        if isinstance(message, StatusQuery):
            return self._status()
        if isinstance(message, Ping):
            return Ready()
        if isinstance(message, Rotate):
            return await self._tunnels.rotate()
        if isinstance(message, NetworkChanged):
            self._network_changed(message.reason)
        elif isinstance(message, Stop):
            self._says_good_bye = message.good_bye
            self._stopping.set()
        return None

    def _network_changed(self, reason: str) -> None:
        """Ask at once whether the server is still there, or try at once if it was not."""
        self._hurry.set()
        tunnel = self._tunnels.living()
        if tunnel is None:
            return
        log.event("the network has changed", reason=reason)
        if not can_bind(tunnel.connection.local[0]):
            tunnel.give_up("our address is gone")
        else:
            tunnel.doubt()

    def _status(self) -> StatusReply:
        tunnel = self._tunnels.living()
        return StatusReply(
            [tunnel.status()] if tunnel is not None else [],
            dict(self._drops.as_dict()),
            _offloads(self._tunnels.current),
        )


def _offloads(tunnel: ClientTunnel | None) -> list[OffloadStatus]:
    udp = tunnel.datagrams.offload if tunnel and tunnel.datagrams else None
    if udp is None:
        return []
    reason = "" if udp.gro else "not supported by this kernel"
    return [
        OffloadStatus("UDP GSO", udp.gso, udp.gso_reason),
        OffloadStatus("UDP GRO", udp.gro, reason),
    ]


def can_bind(address: str) -> bool:
    """Return whether `address` is still one of this host's own."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
