"""What vpnctl may ask of the server (ipc.api.Backend)."""

import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from vpnd import __version__, log
from vpnd.auth.hasher import PasswordHasher
from vpnd.config.model import ServerConfig
from vpnd.config.text import settings
from vpnd.errors import StoreError
from vpnd.ipc import api
from vpnd.pki.certificates import load_chain, server_names
from vpnd.pki.pins import server_pins
from vpnd.pki.reading import not_after, not_before
from vpnd.server.figures import WorkerLink, figures, offloads
from vpnd.server.network import Network
from vpnd.server.reload import Reloader
from vpnd.server.rotation import Rotation
from vpnd.server.sessions import LiveTunnel, Sessions
from vpnd.store import contract
from vpnd.store.contract import Store
from vpnd.worker.messages import TunnelStatus

NEXT_PUBLIC_KEY = "server-next.pub"  # in the state directory, made by vpnctl pki init


class Admin:
    """Answers vpnctl; every change is in the store before the answer goes out."""

    def __init__(
        self,
        *,
        reloader: Reloader,
        state_dir: Path,
        store: Store,
        sessions: Sessions,
        hasher: PasswordHasher,
        network: Network,
        worker: WorkerLink,
        rotation: Rotation,
    ) -> None:
        self._reloader = reloader
        self._state_dir = state_dir
        self._store = store
        self._sessions = sessions
        self._hasher = hasher
        self._network = network
        self._worker = worker
        self._rotation = rotation
        self._started_at = time.time()

    @property
    def _config(self) -> ServerConfig:
        return self._reloader.config

    # what the daemon tells of itself

    async def get_status(self) -> api.Status:
        living = await figures(self._worker)
        tunnels = {status.tunnel: status for status in living.tunnels}
        sessions = [
            self._session(tunnel, tunnels[tunnel.number])
            for tunnel in self._sessions.live.values()
            if tunnel.number in tunnels
        ]
        return api.Status(
            role="server",
            version=__version__,
            state="up" if self._worker.is_ready else "down",
            users=len(self._store.users.all()),
            sessions_count=len(sessions),
            started_at=int(self._started_at),
            uptime_s=int(time.time() - self._started_at),
            interface=self._config.network.interface,
            addresses=self._network.addresses,
            listen=[log.endpoint(address) for address in self._network.listen],
            firewall_backend=self._network.firewall_backend,
            offloads=offloads(living, self._network.offload_reason),
            workers=int(self._worker.is_ready),
            sessions=sessions,
            drops=living.drops,
            keys=self._keys(),
        )

    @staticmethod
    def _session(tunnel: LiveTunnel, living: TunnelStatus) -> api.SessionStatus:
        session = tunnel.session
        return api.SessionStatus(
            id=session.id,
            user=session.user,
            client=session.client,
            address4=tunnel.address4 or None,
            address6=tunnel.address6 or None,
            outer=living.outer,
            channel="DTLS" if living.channel == "DTLS" else "TLS",
            cipher=living.cipher,
            tls_version=living.tls_version,
            tls_cipher=living.tls_cipher,
            key_exchange_group=living.group,
            method=session.method,
            connected_at=int(tunnel.opened_at),
            keys_age_s=living.keys_age_s,
            rx_bytes=living.rx_bytes,
            rx_packets=living.rx_packets,
            tx_bytes=living.tx_bytes,
            tx_packets=living.tx_packets,
            drops=living.drops,
            user_agent=tunnel.user_agent,
            hostname=tunnel.hostname,
        )

    def _keys(self) -> api.KeysStatus:
        now = time.time()
        leaf = load_chain(self._config.tls.certificate_file(self._state_dir))[0]
        key_file = self._config.tls.key_file(self._state_dir)
        return api.KeysStatus(
            certificate_age_s=int(now - not_before(leaf).timestamp()),
            certificate_not_after=int(not_after(leaf).timestamp()),
            key_age_s=int(now - key_file.stat().st_mtime),
        )

    async def get_profile(self) -> api.Profile:
        certificate_file = self._config.tls.certificate_file(self._state_dir)
        names = server_names(load_chain(certificate_file)[0])
        first = names[0] if names else ""
        return api.Profile(
            server_name=self._config.server.name or first,
            remotes=list(self._config.server.remotes_for(first)),
            pins=list(server_pins(certificate_file, self._state_dir / NEXT_PUBLIC_KEY)),
            ca_pem=self._config.tls.client_ca_file(self._state_dir).read_text("ascii"),
        )

    async def disconnect(self) -> None:
        raise api.Failed(reason="this is a server; end it with systemctl stop pyvpn-server")

    # users

    async def list_users(self) -> list[api.User]:
        sessions = Counter(tunnel.session.user for tunnel in self._sessions.live.values())
        clients = Counter(
            client.user for client in self._store.clients.all() if client.revoked_at is None
        )
        return [
            api.User(
                name=user.name,
                groups=list(user.groups),
                has_password=user.password_hash is not None,
                disabled=user.disabled,
                valid_until=None if user.valid_until is None else int(user.valid_until),
                clients=clients[user.name],
                sessions=sessions[user.name],
            )
            for user in self._store.users.all()
        ]

    async def add_user(self, name: str, groups: list[str], password: str | None) -> None:
        if self._store.users.get(name) is not None:
            raise api.AlreadyExists(kind="user", name=name)
        hashed = None if password is None else await self._hasher.hash(password)
        try:
            self._store.users.put(contract.User(name, tuple(groups), hashed))
        except contract.Conflict:
            raise api.AlreadyExists(kind="user", name=name) from None
        log.event("user added", user=name)

    async def set_password(self, name: str, password: str) -> None:
        if self._store.users.get(name) is None:
            raise api.NotFound(kind="user", name=name)
        hashed = await self._hasher.hash(password)
        user = self._store.users.get(name)  # it may have changed while we hashed
        if user is None:
            raise api.NotFound(kind="user", name=name)
        self._store.users.put(replace(user, password_hash=hashed))
        ended = self._sessions.end_client(name, None, "password changed")
        log.event("password changed", user=name, count=ended)

    # clients

    async def list_clients(self) -> list[api.Client]:
        live = Counter(
            (tunnel.session.user, tunnel.session.client) for tunnel in self._sessions.live.values()
        )
        return [
            api.Client(
                user=client.user,
                name=client.name,
                serial=client.serial,
                not_after=int(client.not_after),
                foreign=client.foreign,
                created=int(client.created),
                revoked_at=None if client.revoked_at is None else int(client.revoked_at),
                sessions=live[client.user, client.name],
            )
            for client in self._store.clients.all()
        ]

    async def add_client(
        self, user: str, name: str, serial: str, not_after: int, *, foreign: bool
    ) -> None:
        earlier = self._store.clients.get(user, name)
        if earlier is not None and earlier.revoked_at is None:
            raise api.AlreadyExists(kind="client", name=name)
        is_new_user = self._store.users.get(user) is None
        if is_new_user:
            self._store.users.put(contract.User(user))
        # a revoked client may be made anew: the old serial number is then nobody's
        revision = earlier.revision if earlier is not None else 0
        try:
            client = contract.Client(user, name, serial, time.time(), float(not_after), foreign)
            self._store.clients.put(replace(client, revision=revision))
        except StoreError:
            if is_new_user:  # made for this client alone
                self._store.users.delete(user)
            raise
        log.event("client added", user=user, client=name)

    async def revoke_client(self, name: str, user: str | None) -> int:
        found = [
            client
            for client in self._store.clients.all()
            if client.name == name and user in (None, client.user)
        ]
        if not found:
            raise api.NotFound(kind="client", name=name)
        if len(found) > 1:
            raise api.Ambiguous(name=name, users=[client.user for client in found])
        (client,) = found
        if client.revoked_at is None:
            self._store.clients.put(replace(client, revoked_at=time.time()))
        ended = self._sessions.end_client(client.user, client.name, "certificate revoked")
        log.event("client revoked", user=client.user, client=client.name, count=ended)
        return ended

    # keys

    async def rotate_keys(self, session: str) -> api.KeyRotation:
        return await self._rotation.rotate(session)

    # configuration

    async def reload(self) -> api.Reloaded:
        return api.Reloaded(*await self._reloader.reload())

    async def get_settings(self) -> list[api.Setting]:
        return [api.Setting(key, value) for key, value in settings(self._config).items()]
