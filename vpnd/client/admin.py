"""What vpnctl may ask of a client (ipc.api.Backend)."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from vpnd import __version__
from vpnd.client.certificate import ClientCertificate
from vpnd.client.network import Network
from vpnd.config.profile_options import ClientConfig
from vpnd.ipc import api
from vpnd.server.figures import WorkerLink, figures, offloads
from vpnd.worker.control import PeerGone
from vpnd.worker.messages import (
    ClientState,
    LinkUp,
    Rotate,
    Rotated,
    TunnelStatus,
)

ROTATION_TIMEOUT = 25.0  # seconds; the worker gives up before


class Admin:
    """Answers vpnctl; what concerns servers is refused."""

    state: ClientState | None
    """What the worker said last."""

    def __init__(
        self,
        config: ClientConfig,
        certificate: ClientCertificate,
        network: Network,
        worker: WorkerLink,
        disconnect: Callable[[], None],
    ) -> None:
        """`disconnect` ends the client; it must return before the end begins."""
        self.state = None
        self._config = config
        self._certificate = certificate
        self._network = network
        self._worker = worker
        self._end = disconnect
        self._up: LinkUp | None = None
        self._started_at = time.time()
        self._connected_at = 0.0

    def link_up(self, up: LinkUp) -> None:
        """The server's offer is in force."""
        if self._up is None:
            self._connected_at = time.time()
        self._up = up

    def worker_gone(self) -> None:
        """The worker died: with it everything that it knew of the connection."""
        self.state = ClientState("reconnecting", "the worker process died", "", 0, 0.0)

    # what the daemon tells of itself

    async def get_status(self) -> api.Status:
        living = await figures(self._worker)
        sessions = self._sessions(living.tunnels)
        connected = self.state is not None and self.state.state == "connected"
        link = self._network.link
        return api.Status(
            role="client",
            version=__version__,
            state="up" if connected else "down",
            users=0,
            sessions_count=len(sessions),
            started_at=int(self._started_at),
            uptime_s=int(time.time() - self._started_at),
            interface=self._network.interface,
            addresses=list(link.addresses) if link is not None else [],
            offloads=offloads(living, self._network.offload_reason),
            workers=int(self._worker.is_ready),
            sessions=sessions,
            drops=living.drops,
            client=self._connection(),
        )

    def _connection(self) -> api.ConnectionStatus:
        state = self.state or ClientState("starting", "", "", 0, 0.0)
        link, up = self._network.link, self._up
        return api.ConnectionStatus(
            name=self._config.client.name,
            state=state.state,
            reason=state.reason,
            remote=state.remote,
            attempt=state.attempt,
            next_try_s=max(0, round(state.next_try_s)),
            routes=list(link.routes) if link is not None else [],
            exclude=list(link.exclude) if link is not None else [],
            blocks_ipv6=link.block_ipv6 if link is not None else False,
            refused=list(link.reasons) if link is not None else [],
            dns=list(up.dns) if up is not None else [],
            default_domain=up.default_domain if up is not None else "",
            certificate_not_after=self._certificate.not_after,
            certificate_renewed=bool(self._certificate.renewed_pem),
        )

    def _sessions(self, tunnels: Sequence[TunnelStatus]) -> list[api.SessionStatus]:
        up = self._up
        if up is None:
            return []
        return [self._session(tunnel, up) for tunnel in tunnels[:1]]

    def _session(self, living: TunnelStatus, up: LinkUp) -> api.SessionStatus:
        return api.SessionStatus(
            id="",
            user=self._config.client.user,
            client=self._config.client.name,
            address4=up.address4 or None,
            address6=up.address6 or None,
            outer=living.outer,
            channel="DTLS" if living.channel == "DTLS" else "TLS",
            cipher=living.cipher,
            tls_version=living.tls_version,
            tls_cipher=living.tls_cipher,
            key_exchange_group=living.group,
            method="certificate" if self._config.tls.certificate else "password",
            connected_at=int(self._connected_at),
            keys_age_s=living.keys_age_s,
            rx_bytes=living.rx_bytes,
            rx_packets=living.rx_packets,
            tx_bytes=living.tx_bytes,
            tx_packets=living.tx_packets,
            drops=living.drops,
        )

    async def disconnect(self) -> None:
        self._end()

    async def rotate_keys(self, session: str) -> api.KeyRotation:
        if session:
            raise api.NotFound(kind="session", name=session)
        began = time.monotonic()
        try:
            reply = await asyncio.wait_for(self._worker.ask(Rotate()), ROTATION_TIMEOUT)
        except (PeerGone, TimeoutError) as exc:
            reply = Rotated(False, str(exc) or "the worker did not answer", 0)
        rotated = isinstance(reply, Rotated) and reply.ok
        return api.KeyRotation(
            session="",
            user=self._config.client.user,
            client=self._config.client.name,
            rotated=rotated,
            overlapped=rotated,
            reason=reply.reason if isinstance(reply, Rotated) and not rotated else "",
            took_ms=round((time.monotonic() - began) * 1000),
        )

    # what only servers have

    async def get_profile(self) -> api.Profile:
        _refuse()

    async def list_users(self) -> list[api.User]:
        _refuse()

    async def add_user(self, name: str, groups: list[str], password: str | None) -> None:
        del name, groups, password
        _refuse()

    async def set_password(self, name: str, password: str) -> None:
        del name, password
        _refuse()

    async def list_clients(self) -> list[api.Client]:
        _refuse()

    async def add_client(
        self, user: str, name: str, serial: str, not_after: int, *, foreign: bool
    ) -> None:
        del user, name, serial, not_after, foreign
        _refuse()

    async def revoke_client(self, name: str, user: str | None) -> int:
        del name, user
        _refuse()

    async def reload(self) -> api.Reloaded:
        raise api.Failed(
            reason="a client reads its profile when it starts: `vpnctl down` and `vpnctl up` it"
        )

    async def get_settings(self) -> list[api.Setting]:
        _refuse()


def _refuse() -> NoReturn:
    raise api.Failed(reason="this is a client; ask the server (its --run-dir, on its host)")
