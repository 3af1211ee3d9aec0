"""`vpnctl reload`: have the server read its configuration, keys and certificates anew.

A file that is bad in one place is refused whole, with the line that says where.
"""

import argparse

from vpnctl import output
from vpnctl.connection import call
from vpnd.ipc.api import Reloaded

NAME = "reload"
HELP = "have the server read its configuration, keys and certificates anew; no session ends"


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: there are none."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Reload and say what was applied.  Raises VpnError."""
    reloaded = call(args, lambda daemon: daemon.reload())
    if args.json:
        output.print_json(reloaded)
    else:
        output.print_facts(args, _facts(reloaded))
    return 0


def _facts(reloaded: Reloaded) -> list[tuple[str, str]]:
    waiting = ", ".join(reloaded.needs_restart)
    return [
        ("applied", ", ".join(reloaded.applied) or "nothing, nothing has changed"),
        *([("needs a restart", waiting)] if waiting else []),
    ]
