"""The master process of the server: it wires the parts together and owns what lives long.

It never touches a packet.  Its life: store and network up, worker up, serve until a signal,
then the worker first, the network last.
"""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from vpnd import __version__, log
from vpnd.auth.hasher import PasswordHasher
from vpnd.config.model import ServerConfig
from vpnd.errors import ConfigError, StoreError, VpnError
from vpnd.host import systemd
from vpnd.host.process import harden
from vpnd.host.systemd import Kept
from vpnd.ipc.api import SOCKET_NAME
from vpnd.ipc.server import IpcServer, serve
from vpnd.policy.leases import Pool
from vpnd.server.admin import Admin
from vpnd.server.checks import TooEarly, check_keys, fit
from vpnd.server.logins import Logins
from vpnd.server.network import Descriptors, Network
from vpnd.server.reload import Reloader
from vpnd.server.renewal import Renewals
from vpnd.server.rotation import Rotation
from vpnd.server.sessions import Sessions
from vpnd.server.supervisor import Supervisor
from vpnd.store.leasing import own_ula_network
from vpnd.store.sqlite import open_store
from vpnd.worker.control import PeerGone
from vpnd.worker.messages import (
    EndTunnel,
    LoginQuery,
    Logout,
    Message,
    OpenQuery,
    OpenReply,
    Reload,
    Reloaded,
    Start,
    TunnelEnded,
    TunnelProved,
    TunnelTakesOver,
)

CLOCK_WAIT = 10.0  # seconds, of which StartLimitBurst= of the unit fill StartLimitIntervalSec=
EXPIRE_INTERVAL = 5.0  # seconds between two searches for sessions whose time is over


async def run(config: ServerConfig, *, config_file: Path, state_dir: Path, run_dir: Path) -> None:
    """Serve until SIGTERM or SIGINT.  Raises VpnError when it cannot begin.

    `config` is what `config_file` says now; a reload reads it again.
    """
    if os.geteuid() == 0:
        raise ConfigError(
            "vpnd does not run as root; start it as user pyvpn (./run.sh server does that)"
        )
    harden()
    fitted = fit(config, config_file)
    await _check_keys(config, state_dir)
    if fitted.left_out:
        log.warning("this host cannot do all that is configured", reason=fitted.left_out)
    await Master(fitted.config, config_file, state_dir, run_dir).run()


async def _check_keys(config: ServerConfig, state_dir: Path) -> None:
    """Check, and where the clock is behind give it a while to be set.

    systemd starts us again at once when we end, ten times at most within a minute; a board
    without a battery has the right time later than that.
    """
    try:
        check_keys(config, state_dir, datetime.now(UTC))
    except TooEarly as exc:
        if not systemd.is_there():
            raise
        log.warning("waiting for the clock to be set", reason=str(exc))
        systemd.status("waiting for the clock to be set")
        await asyncio.sleep(CLOCK_WAIT)
        check_keys(config, state_dir, datetime.now(UTC))


class Master:
    """Everything of the master process."""

    def __init__(
        self, config: ServerConfig, config_file: Path, state_dir: Path, run_dir: Path
    ) -> None:
        self._config_file = config_file
        self._state_dir = state_dir
        self._run_dir = run_dir
        self._store = open_store(state_dir)
        network = config.network
        ipv6 = own_ula_network(self._store.settings) if network.ipv6 == "auto" else network.ipv6
        pool = Pool(network.ipv4, ipv6)
        self._hasher = PasswordHasher()
        self._sessions = Sessions(config, self._store, pool, self._end_tunnel)
        self._renewals = Renewals(state_dir, self._store, self._sessions)
        self._logins = Logins(config.auth, self._store, self._hasher, self._sessions)
        self._network = Network(config, pool, Kept.of_this_start(), self._tell_status)
        self._descriptors: Descriptors | None = None
        self._status = ""  # as systemd was told it last; empty until all is up
        self._refusal = ""  # of the last reload
        self._reloading: set[asyncio.Task[None]] = set()
        self._ipc: IpcServer | None = None
        self._worker = Supervisor(self._start_message, self._on_message, self._on_worker_gone)
        self._rotation = Rotation(self._sessions, self._worker.send)
        self._reloader = Reloader(
            config,
            config_file,
            state_dir,
            check=self._check,
            network=self._network,
            tell_worker=self._reload_worker,
            adopt=self._adopt,
        )

    async def run(self) -> None:
        """Serve until a signal."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload_soon)
        resumable = self._sessions.recover(time.time())
        try:
            await self._worker.prepare()
            self._descriptors = await self._network.up()
            ipc = await self._serve_ipc()
            tasks = [
                asyncio.create_task(self._worker.run()),
                asyncio.create_task(self._network.keep()),
                asyncio.create_task(self._expire()),
                asyncio.create_task(systemd.watch(self._worker.answer)),
            ]
            try:
                await self._serve(stop, tasks, resumable)
            finally:
                await self._close(ipc, tasks)
        finally:
            await self._worker.stop()
            self._network.down()
            self._hasher.close()
            self._store.close()

    @property
    def _config(self) -> ServerConfig:
        return self._reloader.config

    def _check(self, config: ServerConfig) -> ServerConfig:
        check_keys(config, self._state_dir, datetime.now(UTC))
        return fit(config, self._config_file).config

    def _adopt(self, config: ServerConfig) -> None:
        """Tell the parts of this process what a reload has changed."""
        self._sessions.config = config
        self._logins.adopt(config.auth)
        if self._ipc is not None:
            self._ipc.admit(config.ipc.admin_group)

    async def _serve_ipc(self) -> IpcServer:
        admin = Admin(
            reloader=self._reloader,
            state_dir=self._state_dir,
            store=self._store,
            sessions=self._sessions,
            hasher=self._hasher,
            network=self._network,
            worker=self._worker,
            rotation=self._rotation,
        )
        group = self._config.ipc.admin_group
        self._ipc = await serve(self._run_dir / SOCKET_NAME, admin, admin_group=group)
        return self._ipc

    async def _serve(
        self, stop: asyncio.Event, tasks: list[asyncio.Task[None]], resumable: int
    ) -> None:
        stopped = asyncio.create_task(stop.wait())
        ready = asyncio.create_task(self._worker.wait_ready())
        await asyncio.wait({stopped, ready, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and ready.result():
            listen = " ".join(map(log.endpoint, self._network.listen))
            log.event(
                "vpnd is ready",
                version=__version__,
                interface=self._config.network.interface,
                listen=listen,
                backend=self._network.firewall_backend,
                count=resumable,
            )
            self._status = self._describe()
            systemd.ready(self._status)
            await asyncio.wait({stopped, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        elif not stopped.done():
            raise VpnError("the worker did not start; the lines above say why")
        stopped.cancel()
        ready.cancel()
        for failed in (task for task in tasks if task.done()):
            failed.result()

    async def _close(self, ipc: IpcServer, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._status = ""
        systemd.stopping()
        log.event("vpnd is stopping")
        ipc.close()
        await ipc.wait_closed()
        await self._worker.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._descriptors is not None:
            self._descriptors.close()

    # systemd

    def _describe(self) -> str:
        """Return how the service is, in one line."""
        words = [
            f"serving on {' '.join(map(log.endpoint, self._network.listen))}"
            if self._worker.is_ready
            else "restarting the worker process",
            f"{len(self._sessions.live)} connected",
        ]
        if not self._network.has_helper:
            words.append("the helper is gone: traffic goes on, changes wait")
        if self._refusal:
            words.append(f"the last reload was refused: {self._refusal}")
        return ", ".join(words)

    def _reload_soon(self) -> None:
        if self._status:  # else the configuration has only just been read
            task = asyncio.create_task(self._reload())
            self._reloading.add(task)
            task.add_done_callback(self._reloading.discard)

    async def _reload(self) -> None:
        """What SIGHUP asks for; the reloader logs how it went."""
        systemd.reloading()
        self._refusal = ""
        try:
            await self._reloader.reload()
        except VpnError as exc:
            self._refusal = str(exc)
        self._status = self._describe()
        systemd.ready(self._status)

    def _tell_status(self) -> None:
        """Tell systemd how the service is, if that is news and the start is over."""
        status = self._describe()
        if self._status and status != self._status:
            self._status = status
            systemd.status(status)

    # the worker

    def _start_message(self) -> tuple[Start, list[int]]:
        assert self._descriptors is not None
        return self._worker_settings(self._config), self._descriptors.all()

    async def _reload_worker(self, config: ServerConfig) -> None:
        """Raises ConfigError where the worker cannot work like that."""
        settings = Reload(self._worker_settings(config))
        try:
            reply = await self._worker.ask(settings)
        except PeerGone:  # the next one may have been told already how to work
            if not await self._worker.wait_ready():
                return
            reply = await self._worker.ask(settings)
        if isinstance(reply, Reloaded) and reply.refusal:
            raise ConfigError(reply.refusal)

    def _worker_settings(self, config: ServerConfig) -> Start:
        assert self._descriptors is not None
        return Start(
            tcp_listeners=len(self._descriptors.tcp),
            udp_sockets=len(self._descriptors.udp),
            certificate=str(config.tls.certificate_file(self._state_dir)),
            key=str(config.tls.key_file(self._state_dir)),
            client_ca=str(config.tls.client_ca_file(self._state_dir)),
            allow_tls12=config.tls.min_version == "1.2",
            dtls=config.dtls.enabled,
            port=config.server.port,
            connections=config.limits.connections,
            connections_per_address=config.limits.connections_per_address,
            handshakes_pending=config.limits.handshakes_pending,
            login_timeout_s=config.auth.login_timeout_s,
            log_level=config.log.level,
            log_anonymise=config.log.anonymise,
        )

    async def _on_message(self, message: Message) -> Message | None:
        """Answer a worker; when the store fails, traffic goes on and logins wait."""
        now = time.time()
        if isinstance(message, LoginQuery):
            self._renewals.adopt(message.certificate)
            return await self._logins.step(message)
        if isinstance(message, OpenQuery):
            try:
                return self._renewals.open(message, now)
            except StoreError as exc:
                log.error("tunnel refused", address=message.address, error=str(exc))
                return OpenReply(refused=503, reason="Try again later")
        if isinstance(message, TunnelEnded):
            self._sessions.ended(message, now)
        if isinstance(message, TunnelTakesOver):
            self._sessions.take_over(message)
        if isinstance(message, TunnelProved):
            self._sessions.proved(message)
        if isinstance(message, Logout):
            try:
                self._sessions.log_out(message.cookie, message.address)
            except StoreError as exc:
                log.error("session not ended", address=message.address, error=str(exc))
        return None

    def _end_tunnel(self, number: int, reason: str) -> None:
        self._worker.send(EndTunnel(number, reason, bye=True))

    def _on_worker_gone(self) -> None:
        self._sessions.workers_gone(time.time())
        self._tell_status()

    # clocks

    async def _expire(self) -> None:
        while True:
            await asyncio.sleep(EXPIRE_INTERVAL)
            self._tell_status()
            now = time.time()
            self._logins.expire(now)
            self._rotation.renew_old(now)
            try:
                self._sessions.expire(now)
            except StoreError as exc:
                log.error("sessions not expired", error=str(exc))
