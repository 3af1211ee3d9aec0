"""The Varlink interface org.pyvpn.Daemon: values, errors and methods, for vpnd and vpnctl.

The interface description that `varlinkctl introspect` shows is computed from this file, and
`vpnctl --json` prints these dataclasses as they are: one schema for all.  Times are Unix
seconds, durations seconds, sizes bytes, all whole numbers.  "rx" is received from the peer,
"tx" is sent to it.

vpnd passes a `Backend` to `vpnd.ipc.server.serve`; vpnctl uses the class `Daemon` only for
its declarations.
"""
# Varlink wants its methods in CamelCase, and an error declares its fields in a nested class.
# ruff: noqa: D106, N802

from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from asyncvarlink import TypedVarlinkErrorReply, VarlinkInterface, varlinkmethod
from asyncvarlink.serviceinterface import (
    InterfaceNotFound,
    InvalidParameter,
    MethodNotFound,
    MethodNotImplemented,
    PermissionDenied,
)

from vpnd.ipc.arguments import (
    groups_problem,
    name_problem,
    password_problem,
    serial_problem,
    session_problem,
    time_problem,
)

INTERFACE = "org.pyvpn.Daemon"
SOCKET_NAME = "vpnd.sock"  # in the run directory
ADMIN_GROUP = "pyvpn-admin"


@dataclass(frozen=True, slots=True)
class Offload:
    """One piece of work that the kernel does for us, or why it does not."""

    name: str
    """For example "TUN TSO", "UDP GSO" or "UDP GRO"."""
    state: Literal["on", "off"]
    reason: str = ""
    """Why it is off; empty when it is on."""


@dataclass(frozen=True, slots=True)
class KeysStatus:
    """The age of what the server proves its name with."""

    certificate_age_s: int
    certificate_not_after: int
    key_age_s: int | None = None
    """Age of the key pair, which outlives its certificates."""


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """One session: a user who is connected."""

    id: str
    user: str
    client: str | None
    """The client (device) of a certificate login; None after a password login."""
    address4: str | None
    """Inner IPv4 address."""
    address6: str | None
    """Inner IPv6 address."""
    outer: str
    """Where the peer is, as "192.0.2.7:40122" or "[2001:db8::7]:40122"."""
    channel: Literal["DTLS", "TLS"]
    """The channel that carries the packets now."""
    cipher: str
    """Cipher of that channel."""
    tls_version: str
    tls_cipher: str
    key_exchange_group: str
    """For example "X25519MLKEM768" or "x25519"; empty where OpenSSL does not tell."""
    method: str
    """How the user logged in: "certificate" or "password"."""
    connected_at: int
    keys_age_s: int
    rx_bytes: int = 0
    rx_packets: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    drops: dict[str, int] = field(default_factory=dict)
    """Dropped packets by reason."""
    user_agent: str = ""
    """What the peer says it is; not to be believed."""
    hostname: str = ""
    """What the peer says its name is; not to be believed."""


@dataclass(frozen=True, slots=True)
class ConnectionStatus:
    """A client's connection to its server."""

    name: str
    """Name of the profile."""
    state: str
    """starting, resolving, connecting, logging-in, connected, reconnecting, waiting, ended."""
    reason: str = ""
    """Why it is in this state, where that needs a word."""
    remote: str = ""
    """The server that is connected to, or tried."""
    attempt: int = 0
    next_try_s: int = 0
    """Seconds until the next try, as they were when the state began."""
    routes: list[str] = field(default_factory=list)
    """Networks that go through the tunnel."""
    exclude: list[str] = field(default_factory=list)
    """Parts of them that do not."""
    blocks_ipv6: bool = False
    refused: list[str] = field(default_factory=list)
    """What the server wanted and did not get, and why."""
    dns: list[str] = field(default_factory=list)
    """DNS servers of the tunnel; they are not put in use."""
    default_domain: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """The daemon as a whole."""

    role: Literal["server", "client"]
    version: str
    state: Literal["up", "down"]
    """"up" when the interface is there and workers serve it; of a client: when connected."""
    users: int
    """How many users there are."""
    sessions_count: int
    restricted: bool = False
    """True when the caller may see no more than the fields above."""
    started_at: int | None = None
    uptime_s: int | None = None
    interface: str | None = None
    addresses: list[str] = field(default_factory=list)
    """The server's own inner addresses with prefix length."""
    listen: list[str] = field(default_factory=list)
    """Where it listens, as "0.0.0.0:55555" or "[::]:55555"."""
    firewall_backend: str | None = None
    offloads: list[Offload] = field(default_factory=list)
    workers: int = 0
    sessions: list[SessionStatus] = field(default_factory=list)
    drops: dict[str, int] = field(default_factory=dict)
    """Dropped packets by reason, of all sessions and of none."""
    keys: KeysStatus | None = None
    client: ConnectionStatus | None = None
    """A client's connection; None of a server."""

    def for_stranger(self) -> "Status":
        """Return what any local user may know: role, version, up or down, and counts."""
        return Status(
            role=self.role,
            version=self.version,
            state=self.state,
            users=self.users,
            sessions_count=self.sessions_count,
            restricted=True,
        )


@dataclass(frozen=True, slots=True)
class User:
    """A user as the operator sees it; the password hash stays in the store."""

    name: str
    groups: list[str] = field(default_factory=list)
    has_password: bool = False
    disabled: bool = False
    valid_until: int | None = None
    clients: int = 0
    """How many clients that are not revoked."""
    sessions: int = 0
    """How many sessions now."""


@dataclass(frozen=True, slots=True)
class Client:
    """One device of a user: one certificate, one sticky lease."""

    user: str
    name: str
    serial: str
    """The certificate's serial number in lower case hexadecimal digits."""
    not_after: int
    foreign: bool
    """For other makers' clients: a long-lived certificate in a .p12 file."""
    created: int
    revoked_at: int | None = None
    sessions: int = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """What a client must know of the server."""

    server_name: str
    remotes: list[str]
    """"host:port", in the order to be tried."""
    pins: list[str]
    """"pin-sha256:..." of the current and of the next key."""
    ca_pem: str


@dataclass(frozen=True, slots=True)
class KeyRotation:
    """How changing the keys of one session went."""

    session: str
    user: str
    client: str | None
    rotated: bool
    """The session runs on new keys."""
    overlapped: bool
    """The old keys served until the new ones did; otherwise there was a short break."""
    reason: str
    """Why there are no new keys; empty where there are."""
    took_ms: int


class NotFound(TypedVarlinkErrorReply, interface=INTERFACE):
    """There is no such user, client or session."""

    class Parameters:
        kind: str
        name: str

    def __str__(self) -> str:
        if self.p_kind == "session":
            return f"there is no session {self.p_name!r} now; `vpnctl status` shows all"
        return f"there is no {self.p_kind} {self.p_name!r}; `vpnctl {self.p_kind} list` shows all"


class AlreadyExists(TypedVarlinkErrorReply, interface=INTERFACE):
    """A user or client of this name is there already."""

    class Parameters:
        kind: str
        name: str

    def __str__(self) -> str:
        return f"the {self.p_kind} {self.p_name!r} exists already; choose another name"


class InvalidValue(TypedVarlinkErrorReply, interface=INTERFACE):
    """A parameter has a value that is refused; `reason` says what is accepted."""

    class Parameters:
        parameter: str
        reason: str

    def __str__(self) -> str:
        return f"{self.p_parameter}: {self.p_reason}"


class Ambiguous(TypedVarlinkErrorReply, interface=INTERFACE):
    """Several users have a client of this name: say whose."""

    class Parameters:
        name: str
        users: list[str]

    def __str__(self) -> str:
        users = ", ".join(self.p_users)
        return f"several users have a client {self.p_name!r}: say which with --user ({users})"


class Failed(TypedVarlinkErrorReply, interface=INTERFACE):
    """The daemon could not do it; `reason` is one sentence for the operator."""

    class Parameters:
        reason: str

    def __str__(self) -> str:
        return str(self.p_reason)


class Overview(Protocol):
    """What the daemon tells of itself."""

    async def get_status(self) -> Status: ...

    async def get_profile(self) -> Profile: ...


class UserDirectory(Protocol):
    """The users.  Names, groups and passwords have been checked when they get here.

    May raise NotFound, AlreadyExists, InvalidValue, or any VpnError (sent on as Failed).
    """

    async def list_users(self) -> list[User]: ...

    async def add_user(self, name: str, groups: list[str], password: str | None) -> None: ...

    async def set_password(self, name: str, password: str) -> None: ...


class ClientDirectory(Protocol):
    """The users' clients; checks and errors as in UserDirectory."""

    async def list_clients(self) -> list[Client]: ...

    async def add_client(
        self, user: str, name: str, serial: str, not_after: int, *, foreign: bool
    ) -> None:
        """Register a client; a user of that name is made when there is none."""

    async def revoke_client(self, name: str, user: str | None) -> int:
        """Revoke a client and end its sessions; return how many.

        Without `user` the name must be unique, or Ambiguous is raised.
        """


class Connected(Protocol):
    """What is done with a client's one connection; a server refuses it."""

    async def disconnect(self) -> None:
        """Leave the server and end; returns before that is done."""


class KeyRotator(Protocol):
    """Changing keys before they are due."""

    async def rotate_keys(self, session: str) -> KeyRotation:
        """Have a session's keys changed and return how it went, within half a minute.

        Raises NotFound when no such session is connected.
        """


class Backend(Overview, UserDirectory, ClientDirectory, Connected, KeyRotator, Protocol):
    """All that vpnd must offer to be served."""


class Daemon(VarlinkInterface, name=INTERFACE):
    """pyvpn's daemon.

    Root, the daemon's own user and the members of the admin group may call all methods;
    any other local user may call GetStatus only and gets no more than counts.
    """

    errors = (
        NotFound,
        AlreadyExists,
        InvalidValue,
        Ambiguous,
        Failed,
        PermissionDenied,
        InvalidParameter,
        MethodNotFound,
        MethodNotImplemented,
        InterfaceNotFound,
    )

    def __init__(self, backend: Backend, *, sees_names: bool) -> None:
        """Serve one caller, who `sees_names` or gets the counts only."""
        self._backend = backend
        self._sees_names = sees_names

    @varlinkmethod(return_parameter="status")
    async def GetStatus(self) -> Status:
        """Return the daemon's state and its sessions."""
        status = await self._backend.get_status()
        return replace(status, restricted=False) if self._sees_names else status.for_stranger()

    @varlinkmethod(return_parameter="profile")
    async def GetProfile(self) -> Profile:
        """Return what a client must know of this server."""
        return await self._backend.get_profile()

    @varlinkmethod(return_parameter="users")
    async def ListUsers(self) -> list[User]:
        """Return all users in the order of their names."""
        return sorted(await self._backend.list_users(), key=lambda user: user.name)

    @varlinkmethod
    async def AddUser(self, *, name: str, groups: list[str], password: str | None) -> None:
        """Add a user; without a password only certificates log in."""
        _refuse("name", name_problem(name))
        _refuse("groups", groups_problem(groups))
        if password is not None:
            _refuse("password", password_problem(password))
        await self._backend.add_user(name, groups, password)

    @varlinkmethod
    async def SetPassword(self, *, name: str, password: str) -> None:
        """Give a user a new password."""
        _refuse("name", name_problem(name))
        _refuse("password", password_problem(password))
        await self._backend.set_password(name, password)

    @varlinkmethod(return_parameter="clients")
    async def ListClients(self) -> list[Client]:
        """Return all clients, revoked ones too, in the order of user and name."""
        clients = await self._backend.list_clients()
        return sorted(clients, key=lambda client: (client.user, client.name, client.created))

    @varlinkmethod
    async def AddClient(
        self, *, user: str, name: str, serial: str, not_after: int, foreign: bool
    ) -> None:
        """Register a client's certificate; a user of that name is made when there is none."""
        _refuse("user", name_problem(user))
        _refuse("name", name_problem(name))
        _refuse("serial", serial_problem(serial))
        _refuse("not_after", time_problem(not_after))
        await self._backend.add_client(user, name, serial, not_after, foreign=foreign)

    @varlinkmethod(return_parameter="ended_sessions")
    async def RevokeClient(self, *, name: str, user: str | None) -> int:
        """Revoke a client, end its sessions and return how many; `user` where names repeat."""
        _refuse("name", name_problem(name))
        if user is not None:
            _refuse("user", name_problem(user))
        return await self._backend.revoke_client(name, user)

    @varlinkmethod
    async def Disconnect(self) -> None:
        """Have a client leave its server and end; the answer comes before that is done."""
        await self._backend.disconnect()

    @varlinkmethod(return_parameter="rotation")
    async def RotateKeys(self, *, session: str) -> KeyRotation:
        """Change the keys of a session that GetStatus names; the answer tells how it went."""
        _refuse("session", session_problem(session))
        return await self._backend.rotate_keys(session)


def _refuse(parameter: str, problem: str | None) -> None:
    if problem is not None:
        raise InvalidValue(parameter=parameter, reason=problem)
