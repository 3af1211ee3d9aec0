"""The master process of a client: it owns the interface, and speaks with the person.

It never touches a packet and never talks to the server; the worker does both.  Its life:
interface up, worker up, apply what the server gives, until a signal, `vpnctl down` or an end
that the server means.  Then the worker first, the network last.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpnd import __version__, log
from vpnd.client.admin import Admin
from vpnd.client.certificate import ClientCertificate
from vpnd.client.memory import SessionMemory
from vpnd.client.network import Network
from vpnd.client.prompts import Answers, Relay
from vpnd.client.script import Script, gateway
from vpnd.config.load_profile import in_order
from vpnd.config.profile_options import ClientConfig
from vpnd.errors import ConfigError, HelperError, VpnError
from vpnd.host import systemd
from vpnd.host.process import harden
from vpnd.host.systemd import Kept
from vpnd.host.watch import NetworkWatch
from vpnd.ipc.api import SOCKET_NAME
from vpnd.ipc.server import IpcServer, serve
from vpnd.policy.split_tunnel import Link, Offer, Unusable, Wishes, plan
from vpnd.server.supervisor import Supervisor
from vpnd.worker.messages import (
    CertificateKept,
    CertificateRenewed,
    ClientState,
    Ended,
    HeldSession,
    LinkReady,
    LinkUp,
    Message,
    NetworkChanged,
    Prompt,
    RemoteEntry,
    StartClient,
)

MAX_HOSTNAME = 64  # characters of this host's name that a server is told


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a client ended."""

    reason: str
    exit_status: int = 0


STOPPED = Outcome("stopped by a signal")


async def run(
    config: ClientConfig, run_dir: Path, state_dir: Path, answers: Answers, relay: Relay | None
) -> int:
    """Be connected until the end; return the exit status.  Raises VpnError."""
    if os.geteuid() == 0:
        raise ConfigError(
            "vpnd does not run as root; start it as user pyvpn-client (./run.sh client does that)"
        )
    harden()
    certificate = ClientCertificate(config, state_dir)
    outcome = await Client(config, certificate, run_dir, answers, relay).run()
    if relay is not None:
        relay.tell(ended=outcome.reason)
    return outcome.exit_status


class Client:
    """Everything of the master process."""

    def __init__(
        self,
        config: ClientConfig,
        certificate: ClientCertificate,
        run_dir: Path,
        answers: Answers,
        relay: Relay | None,
    ) -> None:
        self._config = config
        self._certificate = certificate
        self._run_dir = run_dir
        self._answers = answers
        self._relay = relay
        self._kept = Kept.of_this_start()
        self._network = Network(
            config.helper.socket, config.network.interface, self._kept, self._tell_status
        )
        self._script: Script | None = None
        self._trouble = ""  # why there is no connection, as it was logged last
        self._watch: NetworkWatch | None = None
        self._renewing: asyncio.Task[None] | None = None
        self._tun = -1
        self._memory = SessionMemory(config, self._kept)
        self._sessions = self._memory.recall()  # for the next worker, by remote
        self._is_ready = False
        self._worker = Supervisor(self._start_message, self._on_message, self._on_worker_gone)
        self._admin = Admin(config, certificate, self._network, self._worker, self._disconnect)
        self._linking = asyncio.Lock()
        self._outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

    async def run(self) -> Outcome:
        """Be connected until a signal, or an end that is meant."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, STOPPED)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        ipc = await serve(
            self._run_dir / SOCKET_NAME, self._admin, admin_group=self._config.ipc.admin_group
        )
        try:
            await self._worker.prepare()
            self._tun = await self._network.up()
            self._kept.drop_rest()
            self._watch_network()
            await self._prepare_script()
            tasks = [
                asyncio.create_task(self._worker.run()),
                asyncio.create_task(self._network.keep(by_script=self._script is not None)),
                asyncio.create_task(systemd.watch(self._worker.answer)),
            ]
            try:
                return await self._serve(tasks)
            finally:
                await self._close(tasks)
        finally:
            await self._worker.stop()
            await self._close_ipc(ipc)
            if self._watch is not None:
                self._watch.close()
            self._network.down()
            if self._tun >= 0:
                os.close(self._tun)

    async def _prepare_script(self) -> None:
        path = self._config.network.script
        if path is not None:
            self._script = Script(path, self._network.interface)
            await self._script.prepare()

    async def _serve(self, tasks: list[asyncio.Task[None]]) -> Outcome:
        ready = asyncio.create_task(self._worker.wait_ready())
        ends: set[asyncio.Future[Any]] = {self._outcome, *tasks}
        await asyncio.wait({ready, *ends}, return_when=asyncio.FIRST_COMPLETED)
        if ready.done() and not ready.result() and not self._outcome.done():
            raise VpnError("the worker did not start; the lines above say why")
        log.event(
            "vpnd is ready",
            role="client",
            name=self._config.client.name,
            version=__version__,
            interface=self._network.interface,
        )
        self._is_ready = True
        systemd.ready(self._describe())
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        for failed in (task for task in tasks if task.done()):
            failed.result()
        return await self._outcome

    async def _close(self, tasks: Sequence[asyncio.Task[None]]) -> None:
        self._is_ready = False
        systemd.stopping()
        log.event("vpnd is stopping", reason=self._reason())
        comes_back = await self._comes_back()
        if not comes_back:
            self._memory.forget()
        await self._worker.stop(good_bye=not comes_back)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._script is not None:
            await self._script.disconnect()

    async def _comes_back(self) -> bool:
        """Return whether the next start is to go on with the session of this one."""
        if self._outcome.done() and self._outcome.result() is not STOPPED:
            return False
        return not await systemd.stops_for_good()

    @staticmethod
    async def _close_ipc(ipc: IpcServer) -> None:
        ipc.close()
        await ipc.wait_closed()

    def _reason(self) -> str:
        return self._outcome.result().reason if self._outcome.done() else ""

    def _end(self, outcome: Outcome) -> None:
        if not self._outcome.done():
            self._outcome.set_result(outcome)

    def _hang_up(self) -> None:
        """`systemctl reload`: a profile is a server's word, and read at the start alone."""
        log.warning("a profile is read at the start only: restart for another one to hold")
        systemd.reloading()
        systemd.ready(self._describe())

    def _describe(self) -> str:
        """Return how the service is, in one line."""
        state = self._admin.state
        said = f"{state.state} {state.remote} {state.reason}".strip() if state else "connecting"
        return said if self._network.has_helper else f"{said}, the helper is gone: changes wait"

    def _tell_status(self) -> None:
        if self._is_ready:
            systemd.status(self._describe())

    def _disconnect(self) -> None:
        self._end(Outcome("disconnected by vpnctl"))

    def _watch_network(self) -> None:
        try:
            self._watch = NetworkWatch(self._network.interface, self._network_changed)
        except OSError as exc:
            log.warning("changes of the network are found out late", error=str(exc))

    def _network_changed(self, reason: str) -> None:
        """Links, addresses or routes of this host changed, or it slept: look at once."""
        self._worker.send(NetworkChanged(reason))
        if self._script is None and (self._renewing is None or self._renewing.done()):
            self._renewing = asyncio.create_task(self._network.renew())

    # the worker

    def _start_message(self) -> tuple[StartClient, list[int]]:
        config = self._config
        start = StartClient(
            remotes=[
                RemoteEntry(r.host, r.port, r.server_name, list(r.pins), config.tls.ca)
                for r in in_order(config.remotes)
            ],
            path=config.client.path,
            user=config.client.user,
            certificate_pem=config.tls.certificate,
            key_pem=config.tls.key,
            allow_tls12=config.tls.min_version == "1.2",
            dtls=config.dtls.enabled,
            mtu=config.network.mtu,
            hostname=socket.gethostname()[:MAX_HOSTNAME],
            rekey_s=config.session.rekey_s,
            reconnect_timeout_s=config.session.reconnect_timeout_s,
            log_level=config.log.level,
            sessions=list(self._sessions.values()),
            renewed_pem=self._certificate.renewed_pem,
            renew=self._certificate.can_keep(),
            log_anonymise=config.log.anonymise,
        )
        return start, [self._tun]

    async def _on_message(self, message: Message) -> Message | None:
        if isinstance(message, Prompt):
            return await self._answers.answer(message)
        if isinstance(message, LinkUp):
            async with self._linking:
                return LinkReady(refusal=await self._link_up(message))
        if isinstance(message, CertificateRenewed):
            return CertificateKept(self._certificate.keep(message.certificate_pem))
        if isinstance(message, ClientState):
            await self._on_state(message)
        if isinstance(message, HeldSession):
            self._hold(message)
        if isinstance(message, Ended):
            log.error("disconnected for good", reason=message.reason)
            self._end(Outcome(message.reason, message.exit_status))
        return None

    def _hold(self, held: HeldSession) -> None:
        """Keep, in memory alone, what a new worker needs to go on when this one dies."""
        key = held.host, held.port
        self._sessions.pop(key, None)
        if held.cookie and any(key == (each.host, each.port) for each in self._config.remotes):
            self._sessions[key] = held
        self._memory.keep(self._sessions)

    async def _link_up(self, up: LinkUp) -> str:
        """Set up what the server gave; return why not, or ""."""
        options = self._config.network
        wishes = Wishes(
            include=options.include,
            exclude=options.exclude,
            default_route=options.default_route,
            block_ipv6=options.block_ipv6,
            mtu=options.mtu,
        )
        offer = Offer(
            up.address4,
            up.prefix4,
            up.address6,
            up.prefix6,
            up.mtu,
            up.split_include,
            up.split_exclude,
        )
        own = self._network.own_addresses()
        try:
            link = plan(offer, wishes, own=own, gateway=gateway(up.remote))
            again = link == self._network.link
            if self._script is None:
                await self._network.apply(link)
            else:
                await self._script.connected(up, link)
                self._network.adopt(link)
        except (Unusable, HelperError) as exc:
            log.error("tunnel refused", address=up.remote, error=str(exc))
            return str(exc)
        self._admin.link_up(up)
        if not again:
            self._log_link(up, link)
        return ""

    def _log_link(self, up: LinkUp, link: Link) -> None:
        for reason in link.reasons:
            log.warning("server's wish not followed", address=up.remote, reason=reason)
        inner = " ".join(link.addresses)
        log.event(
            "tunnel set up",
            interface=self._network.interface,
            inner=inner,
            address=up.remote,
            count=len(link.routes),
        )
        if any(route.endswith("/0") for route in link.routes):
            log.event(
                "networks of this host are inside too; network.exclude leaves them outside",
                address=" ".join(self._network.own_addresses()),
            )
        if up.dns:
            log.event("DNS servers of the tunnel, not put in use", address=" ".join(up.dns))
        if up.banner:
            log.event("the server greets", name=up.banner)

    async def _on_state(self, state: ClientState) -> None:
        before, self._admin.state = self._admin.state, state
        self._log_state(state, before)
        if state.state == "connected":
            self._answers.accepted()
        if state.state == "logging-in":
            self._answers.begin()
        if self._script is not None and state.state == "reconnecting" and state.attempt == 1:
            await self._script.reconnecting()
        self._tell_status()
        if self._relay is not None:
            self._relay.tell(state=state.state, reason=state.reason, remote=state.remote)

    def _log_state(self, state: ClientState, before: ClientState | None) -> None:
        """Log what is new: not each of a thousand tries that fail for the same reason."""
        if state.state == "connected":
            self._trouble = ""
            log.event("connected", address=state.remote, interface=self._network.interface)
        elif state.state == "waiting":
            if state.reason != self._trouble:
                self._trouble = state.reason
                log.warning("waiting", address=state.remote, reason=state.reason)
        elif state.attempt <= 1 and (before is None or before.state != state.state):
            log.event(state.state, address=state.remote, reason=state.reason)

    def _on_worker_gone(self) -> None:
        if not self._outcome.done():
            self._admin.worker_gone()
            self._tell_status()
