"""The Varlink interface org.pyvpn.Daemon: its methods, for vpnd and vpnctl.

The interface description that `varlinkctl introspect` shows is computed from this file; what
methods answer with is in `answers`, how they refuse in `refusals`.  vpnd passes a `Backend` to
`vpnd.ipc.server.serve`; vpnctl uses the class `Daemon` only for its declarations.
"""
# Varlink wants its methods in CamelCase.
# ruff: noqa: N802

from dataclasses import replace
from typing import Protocol

from asyncvarlink import VarlinkInterface, varlinkmethod
from asyncvarlink.serviceinterface import (
    InterfaceNotFound,
    InvalidParameter,
    MethodNotFound,
    MethodNotImplemented,
    PermissionDenied,
)

from vpnd.ipc.answers import (
    Client,
    ConnectionStatus,
    KeyRotation,
    KeysStatus,
    Offload,
    Profile,
    Reloaded,
    SessionStatus,
    Setting,
    Status,
    User,
)
from vpnd.ipc.arguments import (
    groups_problem,
    name_problem,
    password_problem,
    serial_problem,
    session_problem,
    time_problem,
)
from vpnd.ipc.refusals import (
    INTERFACE,
    AlreadyExists,
    Ambiguous,
    Failed,
    InvalidValue,
    NotFound,
)

__all__ = [
    "ADMIN_GROUP",
    "INTERFACE",
    "SOCKET_NAME",
    "AlreadyExists",
    "Ambiguous",
    "Backend",
    "Client",
    "ConnectionStatus",
    "Daemon",
    "Failed",
    "InvalidValue",
    "KeyRotation",
    "KeysStatus",
    "NotFound",
    "Offload",
    "Profile",
    "Reloaded",
    "SessionStatus",
    "Setting",
    "Status",
    "User",
]

SOCKET_NAME = "vpnd.sock"  # in the run directory
ADMIN_GROUP = "pyvpn-admin"


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


class Configured(Protocol):
    """The configuration in force; a client refuses to read its own anew."""

    async def reload(self) -> Reloaded:
        """Read configuration, keys and certificates anew; no session ends.

        Raises Failed, and then nothing has changed.
        """

    async def get_settings(self) -> list[Setting]:
        """Return all keys with the values in force."""


class Backend(
    Overview, UserDirectory, ClientDirectory, Connected, KeyRotator, Configured, Protocol
):
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

    @varlinkmethod(return_parameter="reloaded")
    async def Reload(self) -> Reloaded:
        """Read configuration, keys and certificates anew; refused whole if one of them is bad."""
        return await self._backend.reload()

    @varlinkmethod(return_parameter="settings")
    async def GetSettings(self) -> list[Setting]:
        """Return the configuration in force, key by key."""
        return await self._backend.get_settings()


def _refuse(parameter: str, problem: str | None) -> None:
    if problem is not None:
        raise InvalidValue(parameter=parameter, reason=problem)
