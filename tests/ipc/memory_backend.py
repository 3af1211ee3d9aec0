"""A whole `Backend` in dictionaries: what the tests of ipc and vpnctl talk to."""

from dataclasses import replace

from vpnd.ipc.api import (
    AlreadyExists,
    Ambiguous,
    Client,
    Failed,
    KeyRotation,
    KeysStatus,
    NotFound,
    Offload,
    Profile,
    Reloaded,
    SessionStatus,
    Setting,
    Status,
    User,
)

NOW = 1_750_000_000

SESSION = SessionStatus(
    id="s-1f",
    user="alice",
    client="laptop",
    address4="10.8.0.2",
    address6="fd5e:1::2",
    outer="192.0.2.7:40122",
    channel="DTLS",
    cipher="PSK-AES256-GCM-SHA384",
    tls_version="TLSv1.3",
    tls_cipher="TLS_AES_256_GCM_SHA384",
    key_exchange_group="X25519MLKEM768",
    method="certificate",
    connected_at=NOW - 5000,
    keys_age_s=1400,
    rx_bytes=1_500_000,
    rx_packets=1200,
    tx_bytes=2_500_000_000,
    tx_packets=1_900_000,
    drops={"source": 3},
    user_agent="Open AnyConnect VPN Agent v9.01",
    hostname="alices-laptop",
)

STATUS = Status(
    role="server",
    version="0.1.0",
    state="up",
    users=2,
    sessions_count=1,
    started_at=NOW - 7200,
    uptime_s=7200,
    interface="pyvpn0",
    addresses=["10.8.0.1/24", "fd5e:1::1/64"],
    listen=["0.0.0.0:55555", "[::]:55555"],
    firewall_backend="nftables",
    offloads=[Offload("TUN TSO", "on"), Offload("UDP GRO", "off", "the kernel lacks it")],
    workers=1,
    sessions=[SESSION],
    drops={"source": 3, "replayed": 1},
    keys=KeysStatus(certificate_age_s=7200, certificate_not_after=NOW + 90 * 86400),
)

PROFILE = Profile(
    server_name="vpn.example.org",
    remotes=["vpn.example.org:55555"],
    pins=["pin-sha256:AAAA", "pin-sha256:BBBB"],
    ca_pem="-----BEGIN CERTIFICATE-----\n",
)


class MemoryBackend:
    """Users and clients in memory; `passwords` keeps what was set, for the test to see."""

    def __init__(self, status: Status = STATUS) -> None:
        self.status = status
        self.users: dict[str, User] = {}
        self.clients: dict[tuple[str, str], Client] = {}
        self.passwords: dict[str, str] = {}
        self.status_calls = 0
        self.disconnects = 0
        self.rotations: dict[str, KeyRotation] = {}
        self.rotated: list[str] = []
        self.reloaded = Reloaded([], [])
        self.reload_refusal = ""
        self.settings: list[Setting] = []

    async def get_status(self) -> Status:
        self.status_calls += 1
        return self.status

    async def get_profile(self) -> Profile:
        return PROFILE

    async def disconnect(self) -> None:
        self.disconnects += 1

    async def list_users(self) -> list[User]:
        return list(self.users.values())

    async def add_user(self, name: str, groups: list[str], password: str | None) -> None:
        if name in self.users:
            raise AlreadyExists(kind="user", name=name)
        self.users[name] = User(name, groups, has_password=password is not None)
        if password is not None:
            self.passwords[name] = password

    async def set_password(self, name: str, password: str) -> None:
        if name not in self.users:
            raise NotFound(kind="user", name=name)
        self.users[name] = replace(self.users[name], has_password=True)
        self.passwords[name] = password

    async def list_clients(self) -> list[Client]:
        return list(self.clients.values())

    async def add_client(
        self, user: str, name: str, serial: str, not_after: int, *, foreign: bool
    ) -> None:
        if (user, name) in self.clients:
            raise AlreadyExists(kind="client", name=name)
        self.users.setdefault(user, User(user))
        self.clients[user, name] = Client(user, name, serial, not_after, foreign, created=NOW)

    async def revoke_client(self, name: str, user: str | None) -> int:
        found = [key for key in self.clients if key[1] == name and user in (None, key[0])]
        if not found:
            raise NotFound(kind="client", name=name)
        if len(found) > 1:
            raise Ambiguous(name=name, users=[*sorted(key[0] for key in found)])
        self.clients[found[0]] = replace(self.clients[found[0]], revoked_at=NOW)
        return 1

    async def rotate_keys(self, session: str) -> KeyRotation:
        if session not in self.rotations:
            raise NotFound(kind="session", name=session)
        self.rotated.append(session)
        return self.rotations[session]

    async def reload(self) -> Reloaded:
        if self.reload_refusal:
            raise Failed(reason=self.reload_refusal)
        return self.reloaded

    async def get_settings(self) -> list[Setting]:
        return self.settings
