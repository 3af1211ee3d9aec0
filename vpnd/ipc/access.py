"""Who is calling, by the kernel's word, and what such a caller may do.

The socket itself is open to every local user: status is for all, names and changes are not.
A method that is not named here is for administrators.
"""

import grp
import os
import socket
from dataclasses import dataclass
from struct import Struct

from vpnd.ipc.api import INTERFACE

PEER_CREDENTIALS = Struct("=iII")  # struct ucred, linux/socket.h: pid, uid, gid
SO_PEERGROUPS = 59  # asm-generic/socket.h; Python has no name for it
MAX_GROUPS = 256  # Python asks getsockopt for at most 1024 bytes, four a group

METHODS_FOR_ALL = frozenset({f"{INTERFACE}.GetStatus"})
CHANGES = frozenset(
    f"{INTERFACE}.{method}"
    for method in (
        "AddUser",
        "SetPassword",
        "AddClient",
        "RevokeClient",
        "Disconnect",
        "RotateKeys",
        "Reload",
    )
)


@dataclass(frozen=True, slots=True)
class Caller:
    """The process that connected, as it was then."""

    pid: int
    uid: int
    groups: frozenset[int]
    """The primary and the supplementary groups of the process."""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """Whom this daemon takes for an administrator."""

    own_uid: int
    admin_gid: int | None
    """None where the host has no such group: then root and our own user only."""

    def is_admin(self, caller: Caller) -> bool:
        """Return True for root, the daemon's own user and members of the admin group."""
        return caller.uid in (0, self.own_uid) or self.admin_gid in caller.groups


def rules_for(admin_group: str) -> AccessRules:
    """Return the rules of this process; the group is looked up once, here."""
    try:
        admin_gid = grp.getgrnam(admin_group).gr_gid
    except KeyError:
        admin_gid = None
    return AccessRules(own_uid=os.geteuid(), admin_gid=admin_gid)


def caller_of(connection: socket.socket) -> Caller:
    """Return who connected (SO_PEERCRED, unix(7)).  Raises OSError."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
    pid, uid, gid = PEER_CREDENTIALS.unpack(raw)
    return Caller(pid=pid, uid=uid, groups=frozenset({gid, *_supplementary_groups(connection)}))


def _supplementary_groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MAX_GROUPS)
    except OSError:  # ERANGE, more groups than fit: then only the primary one counts
        return ()
    return tuple(gid for (gid,) in Struct("=I").iter_unpack(raw))


def permits(method: str, *, is_admin: bool) -> bool:
    """Return whether a fully qualified method may be called.

    Other interfaces than ours have only introspection to offer, which is for all.
    """
    return is_admin or method in METHODS_FOR_ALL or not method.startswith(f"{INTERFACE}.")
