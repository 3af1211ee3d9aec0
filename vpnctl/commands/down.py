"""`vpnctl down`: have a client leave its server and end, and wait until its network is undone."""

import argparse
import time
from pathlib import Path

from vpnctl import daemons, output
from vpnctl.connection import call, socket_path
from vpnd.errors import ConfigError, VpnError

NAME = "down"
HELP = "disconnect a client"

END_TIMEOUT_S = 20.0  # the worker says good-bye, then the helper takes the network back
POLL_S = 0.05


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "name", metavar="NAME", nargs="?", help="the client (default: the one that is up)"
    )


def run(args: argparse.Namespace) -> int:
    """Ask it to end and wait for that.  Raises VpnError."""
    if args.name is None and not daemons.is_named(args):
        args.name = _only_one()
    args = daemons.meant(args, args.name)
    call(args, lambda daemon: daemon.disconnect())
    _wait_gone(socket_path(args))
    name = str(args.name or args.run_dir)
    if args.json:
        output.print_json({"name": name, "state": "down"})
    else:
        print(f"client {name} is down")
    return 0


def _only_one() -> str:
    names = daemons.running_clients()
    if len(names) != 1:
        which = f"say which: {', '.join(names)}" if names else "there is nothing to do"
        raise ConfigError(f"{len(names)} clients are up; {which}")
    return names[0]


def _wait_gone(path: Path) -> None:
    deadline = time.monotonic() + END_TIMEOUT_S
    while path.exists():
        if time.monotonic() > deadline:
            raise VpnError(f"it was asked to end and still runs ({path}): see its log")
        time.sleep(POLL_S)
