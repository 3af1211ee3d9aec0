"""`vpnctl rotate-keys`: give sessions new keys now, and tell how it went with each.

Each session is one call of its own, several at a time, so that progress can be shown, and an
interrupted command asks for no more.
"""

import argparse
import sys

from vpnctl import daemons, output
from vpnctl.connection import DaemonProxy, NotPermitted, Refused, call, call_for_each
from vpnd.errors import VpnError
from vpnd.ipc.api import ADMIN_GROUP, KeyRotation, NotFound, SessionStatus, Status

NAME = "rotate-keys"
HELP = "change the keys of sessions now"

CONNECTIONS = 16  # calls at a time; the daemon takes 64 connections of one user
EXIT_NOT_ALL = 1
HEADINGS = ("SESSION", "USER", "CLIENT", "NEW KEYS", "SECONDS", "REMARK")


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--session", metavar="ID", help="one session; `vpnctl status --json` shows its id"
    )
    which.add_argument("--user", metavar="NAME", help="all sessions of a user")
    which.add_argument("--all", action="store_true", help="all sessions (the default)")
    which.add_argument("--client", metavar="NAME", help="the session of a client on this machine")


def run(args: argparse.Namespace) -> int:
    """Rotate and report; 1 where a session got no new keys.  Raises VpnError."""
    args = daemons.meant(args, args.client)
    chosen = _chosen(args, call(args, lambda daemon: daemon.get_status()))
    rotations: list[KeyRotation] = []

    async def rotate(daemon: DaemonProxy, session: SessionStatus) -> None:
        rotations.append(await _rotate(daemon, session))
        _show_progress(args, len(rotations), len(chosen))

    call_for_each(args, rotate, chosen, connections=CONNECTIONS)
    rotations.sort(key=lambda rotation: (rotation.user, rotation.client or "", rotation.session))
    if args.json:
        output.print_json({"rotations": rotations})
    else:
        _report(args, rotations)
    return 0 if all(rotation.rotated for rotation in rotations) else EXIT_NOT_ALL


def _chosen(args: argparse.Namespace, status: Status) -> list[SessionStatus]:
    if status.restricted:
        raise NotPermitted(f"only root and members of the group {ADMIN_GROUP} may do this")
    if args.session is not None:
        found = [each for each in status.sessions if each.id == args.session]
        if not found:
            raise Refused(NotFound(kind="session", name=args.session))
        return found
    if args.user is not None:
        return [each for each in status.sessions if each.user == args.user]
    if status.role == "client" and not status.sessions:
        raise VpnError("the client is not connected; it gets new keys when it connects")
    return status.sessions


async def _rotate(daemon: DaemonProxy, session: SessionStatus) -> KeyRotation:
    try:
        return await daemon.rotate_keys(session.id)
    except Refused as exc:
        if not isinstance(exc.reply, NotFound):
            raise
        reason = "it has left meanwhile"
        return KeyRotation(session.id, session.user, session.client, False, False, reason, 0)


def _show_progress(args: argparse.Namespace, done: int, total: int) -> None:
    if output.wants_table(args) and sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total}", end=end, file=sys.stderr, flush=True)


def _report(args: argparse.Namespace, rotations: list[KeyRotation]) -> None:
    if rotations or not output.wants_table(args):
        output.print_table(args, HEADINGS, [_row(rotation) for rotation in rotations])
    if output.wants_table(args):
        done = sum(rotation.rotated for rotation in rotations)
        print(f"{done} of {len(rotations)} sessions run on new keys")


def _row(rotation: KeyRotation) -> list[str]:
    remark = rotation.reason
    if rotation.rotated:
        remark = "without a break" if rotation.overlapped else "reconnected"
    return [
        rotation.session,
        rotation.user,
        rotation.client or "",
        "yes" if rotation.rotated else "no",
        f"{rotation.took_ms / 1000:.1f}",
        remark,
    ]
