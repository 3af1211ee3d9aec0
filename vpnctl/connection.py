"""A command's connection to vpnd: one Varlink call, and errors that a person can act on.

Everything that goes wrong is a VpnError with one sentence and an exit status: 3 when vpnd is
not there, 4 when the caller may not, 1 when vpnd refused.
"""

import argparse
import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from asyncvarlink import (
    FileDescriptorArray,
    VarlinkClientProtocol,
    VarlinkErrorReply,
    VarlinkInterfaceProxy,
    connect_unix_varlink,
)
from asyncvarlink.conversion import ConversionError
from asyncvarlink.serviceinterface import (
    InterfaceNotFound,
    InvalidParameter,
    MethodNotFound,
    MethodNotImplemented,
    PermissionDenied,
)
from asyncvarlink.types import JSONObject

from vpnctl.daemons import CLIENT_PREFIX, LOGS
from vpnd.errors import VpnError
from vpnd.ipc.api import (
    ADMIN_GROUP,
    SOCKET_NAME,
    Client,
    Daemon,
    KeyRotation,
    Profile,
    Reloaded,
    Setting,
    Status,
    User,
)

TIMEOUT_S = 30.0  # the slowest call hashes one password or ends one client's sessions
OTHER_VERSION = (MethodNotFound, MethodNotImplemented, InterfaceNotFound, InvalidParameter)

T = TypeVar("T")


class DaemonAbsent(VpnError):
    """Nobody answers on vpnd's socket."""

    exit_status = 3


class NotPermitted(VpnError):
    """The caller may not do this."""

    exit_status = 4


class Refused(VpnError):
    """vpnd understood and declined; `reply` is its typed error from `vpnd.ipc.api`."""

    def __init__(self, reply: VarlinkErrorReply) -> None:
        super().__init__(str(reply))
        self.reply = reply


class _Answers(VarlinkClientProtocol):
    """The library's client, for which what is no Varlink answer is the end of the connection."""

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:
        try:
            super().message_received(data, fds)
        except (RecursionError, ValueError) as exc:  # nested too deep, or not UTF-8
            self.error_received(exc, b"", None)

    def request_received(self, obj: JSONObject, fds: FileDescriptorArray | None) -> None:
        try:
            super().request_received(obj, fds)
        except IndexError as exc:  # more answers than questions
            self.error_received(exc, b"", None)

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        del err, data, fds
        self.connection_lost(ConnectionAbortedError("what it says is no Varlink"))


class DaemonProxy:
    """The methods of org.pyvpn.Daemon with their types; see `vpnd.ipc.api.Daemon`."""

    def __init__(self, proxy: VarlinkInterfaceProxy, path: Path) -> None:
        """Call through `proxy`; `path` is for error texts."""
        self._proxy = proxy
        self._path = path

    async def get_status(self) -> Status:
        """Return the daemon's state; counts only where `restricted` is true."""
        status: Status = await self._ask("GetStatus", "status")
        return status

    async def get_profile(self) -> Profile:
        profile: Profile = await self._ask("GetProfile", "profile")
        return profile

    async def list_users(self) -> list[User]:
        users: list[User] = await self._ask("ListUsers", "users")
        return users

    async def add_user(self, name: str, groups: list[str], password: str | None) -> None:
        await self._ask("AddUser", None, name=name, groups=groups, password=password)

    async def set_password(self, name: str, password: str) -> None:
        await self._ask("SetPassword", None, name=name, password=password)

    async def list_clients(self) -> list[Client]:
        clients: list[Client] = await self._ask("ListClients", "clients")
        return clients

    async def add_client(
        self, user: str, name: str, serial: str, not_after: int, *, foreign: bool
    ) -> None:
        """Register a client; `serial` in lower case hexadecimal digits, time in Unix seconds."""
        await self._ask(
            "AddClient",
            None,
            user=user,
            name=name,
            serial=serial,
            not_after=not_after,
            foreign=foreign,
        )

    async def revoke_client(self, name: str, user: str | None = None) -> int:
        """Revoke a client and return how many of its sessions were ended."""
        ended: int = await self._ask("RevokeClient", "ended_sessions", name=name, user=user)
        return ended

    async def disconnect(self) -> None:
        """Have a client leave its server and end; returns before that is done."""
        await self._ask("Disconnect", None)

    async def rotate_keys(self, session: str) -> KeyRotation:
        """Have a session's keys changed; returns when it has new ones, or why it has not."""
        rotation: KeyRotation = await self._ask("RotateKeys", "rotation", session=session)
        return rotation

    async def reload(self) -> Reloaded:
        """Have the configuration read anew; return what became of it, by key."""
        reloaded: Reloaded = await self._ask("Reload", "reloaded")
        return reloaded

    async def get_settings(self) -> list[Setting]:
        """Return the configuration in force."""
        settings: list[Setting] = await self._ask("GetSettings", "settings")
        return settings

    async def _ask(self, method: str, result: str | None, **parameters: Any) -> Any:
        with _explained(self._path):
            async with asyncio.timeout(TIMEOUT_S):
                reply = await getattr(self._proxy, method)(**parameters)
        return None if result is None else reply[result]


def socket_path(args: argparse.Namespace) -> Path:
    """Return where the daemon of `--run-dir` listens."""
    return Path(args.run_dir) / SOCKET_NAME


def call(args: argparse.Namespace, method: Callable[[DaemonProxy], Awaitable[T]]) -> T:
    """Connect to the daemon of `args.run_dir`, await `method(daemon)` and return its result.

    For example `call(args, lambda daemon: daemon.list_users())`; several calls on one
    connection are an `async def` of the caller's.  Raises DaemonAbsent, NotPermitted, Refused
    or a plain VpnError; what `method` itself raises passes unchanged.
    """
    return asyncio.run(_call(socket_path(args), method))


def call_for_each(
    args: argparse.Namespace,
    method: Callable[[DaemonProxy, T], Awaitable[None]],
    items: Iterable[T],
    *,
    connections: int,
) -> None:
    """Await `method(daemon, item)` for each item, on so many connections at a time.

    The first error ends it all; errors as for `call`.
    """
    waiting = deque(items)

    async def work(daemon: DaemonProxy) -> None:
        while waiting:
            await method(daemon, waiting.popleft())

    async def main() -> None:
        path = socket_path(args)
        workers = min(connections, len(waiting))
        await asyncio.gather(*(_call(path, work) for _ in range(workers)))

    asyncio.run(main())


async def _call(path: Path, method: Callable[[DaemonProxy], Awaitable[T]]) -> T:
    with _explained(path):
        transport, protocol = await connect_unix_varlink(_Answers, path)
    try:
        return await method(DaemonProxy(protocol.make_proxy(Daemon), path))
    finally:
        transport.abort()
        await transport.closed_future


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what a call can end with into one sentence that says what to do."""
    try:
        yield
    except PermissionDenied as exc:
        raise NotPermitted(
            f"only root and members of the group {ADMIN_GROUP} may do this: "
            "use sudo, or have yourself added to the group"
        ) from exc
    except (*OTHER_VERSION, ConversionError, TypeError, ValueError) as exc:
        raise VpnError(
            "vpnd and vpnctl are of different versions: restart vpnd "
            f"(systemctl restart {_unit(path)})"
        ) from exc
    except VarlinkErrorReply as exc:
        raise Refused(exc) from exc
    except TimeoutError as exc:
        raise DaemonAbsent(
            f"vpnd did not answer on {path} within {TIMEOUT_S:.0f} s: see its log ({_log(path)})"
        ) from exc
    except PermissionError as exc:
        raise NotPermitted(f"{path}: permission denied: use sudo") from exc
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as exc:
        raise DaemonAbsent(
            f"vpnd is not running (nobody answers on {path}): start it ({_how_to_start(path)}), "
            "or name its directory with --run-dir"
        ) from exc
    except OSError as exc:
        raise DaemonAbsent(
            f"vpnd went away or turned us down on {path} ({exc}): see its log ({_log(path)})"
        ) from exc


def _client(path: Path) -> str:
    """Return the name of the client whose socket it is, "" for a server's."""
    folder = path.parent.name
    return folder.removeprefix(CLIENT_PREFIX) if folder.startswith(CLIENT_PREFIX) else ""


def _unit(path: Path) -> str:
    name = _client(path)
    return f"pyvpn-client@{name}" if name else "pyvpn-server"


def _log(path: Path) -> str:
    name = _client(path)
    here = f", or {LOGS / f'client-{name}.log'} after vpnctl up" if name else ""
    return f"journalctl -u {_unit(path)}{here}"


def _how_to_start(path: Path) -> str:
    name = _client(path)
    other = f"vpnctl up {name}" if name else "./run.sh server"
    return f"systemctl start {_unit(path)}, or {other}"
