"""`vpnctl user`: add users, set passwords, list.

A password comes from the terminal (twice, unseen) or from standard input, never from an
argument: arguments are in every process list.
"""

import argparse
import getpass
import sys

from vpnctl import output
from vpnctl.connection import Refused, call
from vpnd.errors import ConfigError, VpnError
from vpnd.ipc.api import NotFound, User

NAME = "user"
HELP = "add users, set their passwords, list them"

MAX_LINE = 4096  # bytes of standard input; a password has at most 256 characters
SHORT = 8  # characters; fewer are accepted with a warning
HEADINGS = ("USER", "GROUPS", "PASSWORD", "CLIENTS", "SESSIONS", "STATE")


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser("add", help="add a user who logs in by password")
    add.add_argument("name", metavar="NAME", help="what the user logs in as")
    add.add_argument(
        "--group",
        action="append",
        default=[],
        metavar="GROUP",
        help="a group the user is in; may be repeated",
    )
    source = add.add_mutually_exclusive_group()
    source.add_argument("--password-stdin", action="store_true", help=STDIN_HELP)
    source.add_argument(
        "--no-password", action="store_true", help="the user logs in by certificate only"
    )
    passwd = actions.add_parser("passwd", help="give a user a new password")
    passwd.add_argument("name", metavar="NAME", help="the user")
    passwd.add_argument("--password-stdin", action="store_true", help=STDIN_HELP)
    actions.add_parser("list", help="list all users")


STDIN_HELP = "read the password from the first line of standard input instead of asking for it"


def run(args: argparse.Namespace) -> int:
    """Do what was asked.  Raises VpnError."""
    users = call(args, lambda daemon: daemon.list_users())  # may we, before we ask for a secret
    known = {user.name: user for user in users}
    if args.action == "list":
        _print_users(args, users)
    elif args.action == "add":
        _add(args, known)
    else:
        _set_password(args, known)
    return 0


def _add(args: argparse.Namespace, known: dict[str, User]) -> None:
    if args.name in known:
        raise VpnError(
            f"the user {args.name!r} exists already: "
            f"`vpnctl user passwd {args.name}` sets a new password"
        )
    password = None if args.no_password else _password(args)
    call(args, lambda daemon: daemon.add_user(args.name, args.group, password))
    _print_done(args, f"user {args.name} added")


def _set_password(args: argparse.Namespace, known: dict[str, User]) -> None:
    if args.name not in known:
        raise Refused(NotFound(kind="user", name=args.name))
    password = _password(args)
    call(args, lambda daemon: daemon.set_password(args.name, password))
    _print_done(args, f"password of {args.name} set; sessions that are open stay open")


def _password(args: argparse.Namespace) -> str:
    """Return the password that the operator gives.  Raises VpnError."""
    password = _from_stdin() if args.password_stdin else _from_terminal(args.name)
    if not password:
        raise VpnError("the password is empty: nothing was changed")
    if len(password) < SHORT:
        print(
            f"vpnctl: warning: a password of fewer than {SHORT} characters is soon guessed",
            file=sys.stderr,
        )
    return password


def _from_stdin() -> str:
    line = sys.stdin.buffer.readline(MAX_LINE)
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise VpnError("standard input is not UTF-8: nothing was changed") from None


def _from_terminal(name: str) -> str:
    if not sys.stdin.isatty():
        raise ConfigError(
            "no terminal to ask for the password: give it on standard input, with --password-stdin"
        )
    try:
        password = getpass.getpass(f"New password for {name}: ")
        again = getpass.getpass("Once more: ")
    except EOFError:
        raise VpnError("no password given: nothing was changed") from None
    if password != again:
        raise VpnError("the two passwords differ: nothing was changed")
    return password


def _print_done(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text)
        return
    users = call(args, lambda daemon: daemon.list_users())
    output.print_json(next((user for user in users if user.name == args.name), {}))


def _print_users(args: argparse.Namespace, users: list[User]) -> None:
    if args.json:
        output.print_json({"users": users})
    else:
        output.print_table(args, HEADINGS, [_row(user) for user in users])


def _row(user: User) -> list[str]:
    state = "disabled" if user.disabled else "enabled"
    if user.valid_until is not None:
        state += f" until {output.day_text(user.valid_until)}"
    return [
        user.name,
        ",".join(user.groups),
        "yes" if user.has_password else "no",
        str(user.clients),
        str(user.sessions),
        state,
    ]
