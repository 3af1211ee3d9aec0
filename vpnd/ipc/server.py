"""The accept loop of org.pyvpn.Daemon on its Unix socket.

asyncvarlink's own server neither shows who calls nor limits how many; both happen here, before
a byte is read.  Trouble with one caller is a counter in `IpcServer.refusals`, not a log line:
any local user could otherwise fill the log.
"""

import asyncio
import errno
import logging
import os
import socket
import stat
from collections import Counter
from itertools import count
from pathlib import Path
from weakref import WeakSet

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from asyncvarlink.serviceinterface import VarlinkServiceInterface

from vpnd import __version__
from vpnd.errors import ConfigError, VpnError
from vpnd.ipc.access import AccessRules, caller_of, rules_for
from vpnd.ipc.api import ADMIN_GROUP, Backend, Daemon
from vpnd.ipc.connection import Connection

MAX_CONNECTIONS_PER_UID = 64
MAX_CONNECTIONS_OF_STRANGERS = 256  # of all uids that are not administrators together
BACKLOG = 128
ACCEPTS_PER_TURN = 16  # of the event loop; a flood of connections must not keep it
MAX_PATH = 107  # sockaddr_un.sun_path, unix(7), less the final NUL
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
CALLS_TIMEOUT_S = 5.0  # for calls that are being worked on when we close
OUT_OF_FILES_PAUSE_S = 1.0  # else the waiting connection would wake us without end

_log = logging.getLogger(__name__)


class IpcServer:
    """A listening socket and its connections; made by `serve`."""

    refusals: Counter[str]
    """How often a caller was turned away, by reason."""

    def __init__(
        self, listener: socket.socket, path: Path, backend: Backend, rules: AccessRules
    ) -> None:
        """Take over a bound and listening socket."""
        self.refusals = Counter()
        self._listener = listener
        self._path = path
        self._inode = path.stat().st_ino
        self._backend = backend
        self._rules = rules
        self._transports: dict[VarlinkTransport, tuple[int, bool]] = {}  # uid, is_admin
        self._connections: WeakSet[Connection] = WeakSet()
        self._accepting = asyncio.ensure_future(self._accept())

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        for accepted in count(1):
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except ConnectionAbortedError:
                continue
            except OSError as exc:
                if exc.errno not in OUT_OF_FILES:
                    raise
                _log.warning("%s: cannot accept: %s", self._path, exc.strerror)
                await asyncio.sleep(OUT_OF_FILES_PAUSE_S)
                continue
            self._admit(connection)
            if accepted % ACCEPTS_PER_TURN == 0:
                await asyncio.sleep(0)

    def _admit(self, connection: socket.socket) -> None:
        try:
            caller = caller_of(connection)
        except OSError:
            connection.close()
            return
        is_admin = self._rules.is_admin(caller)
        if not self._has_room(caller.uid, is_admin=is_admin):
            self.refusals["too many connections"] += 1
            connection.close()
            return
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(
            VarlinkServiceInterface("pyvpn", "vpnd", __version__, "", registry)
        )
        registry.register_interface(Daemon(self._backend, sees_names=is_admin))
        protocol = Connection(registry, caller, is_admin=is_admin, refused=self._count)
        transport = VarlinkTransport(
            asyncio.get_running_loop(),
            connection,
            connection,
            protocol,
            boundary_predictor=None,  # we take no file descriptors; and one read a wake-up
        )
        self._connections.add(protocol)
        self._transports[transport] = (caller.uid, is_admin)
        transport.closed_future.add_done_callback(lambda _: self._transports.pop(transport))

    def _has_room(self, uid: int, *, is_admin: bool) -> bool:
        of_uid = sum(1 for other, _ in self._transports.values() if other == uid)
        of_strangers = sum(1 for _, admin in self._transports.values() if not admin)
        return of_uid < MAX_CONNECTIONS_PER_UID and (
            is_admin or of_strangers < MAX_CONNECTIONS_OF_STRANGERS
        )

    def _count(self, reason: str) -> None:
        self.refusals[reason] += 1

    def admit(self, admin_group: str) -> None:
        """Take the members of another group for administrators, when they connect anew."""
        self._rules = _rules(admin_group)

    def close(self) -> None:
        """Stop listening, remove the socket and drop all connections."""
        self._accepting.cancel()
        self._listener.close()
        _remove_own_socket(self._path, self._inode)
        for transport in tuple(self._transports):
            transport.abort()

    async def wait_closed(self) -> None:
        """Return when the connections of a closed server are gone and their calls are done."""
        await asyncio.gather(self._accepting, return_exceptions=True)
        while self._transports:
            await asyncio.wait({transport.closed_future for transport in self._transports})
        calls = {connection.call for connection in self._connections if connection.call}
        if calls:
            await asyncio.wait(calls, timeout=CALLS_TIMEOUT_S)


async def serve(
    path: str | os.PathLike[str], backend: Backend, *, admin_group: str = ADMIN_GROUP
) -> IpcServer:
    """Listen on `path`, in a directory that the caller made, and serve until `close`.

    A socket file that nobody listens on is replaced.  Raises ConfigError or VpnError with one
    sentence: the path cannot be used, or another daemon answers there.
    """
    where = Path(path)
    rules = _rules(admin_group)
    return IpcServer(_listen(where), where, backend, rules)


def _rules(admin_group: str) -> AccessRules:
    rules = rules_for(admin_group)
    if rules.admin_gid is None:
        _log.warning("no group %s on this host: vpnctl works for root only", admin_group)
    return rules


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > MAX_PATH:
        raise ConfigError(
            f"{path}: the path of a Unix socket has at most {MAX_PATH} bytes: "
            "use a shorter --run-dir"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        _make_way(path)
        listener.bind(os.fspath(path))
        path.chmod(0o666)  # all may connect; what they may call is decided per method
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise ConfigError(
            f"{path}: cannot listen: {exc.strerror}: "
            "the run directory must exist and belong to the user vpnd runs as"
        ) from exc
    except VpnError:
        listener.close()
        raise
    return listener


def _make_way(path: Path) -> None:
    """Remove a socket that a dead daemon left behind; raise when it is anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} is there and is no socket: move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full: it lives
            pass
    raise VpnError(f"another vpnd answers on {path}: stop it, or give this one its own --run-dir")


def _remove_own_socket(path: Path, inode: int) -> None:
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass
    except OSError as exc:
        _log.warning("%s: cannot remove: %s", path, exc.strerror)
