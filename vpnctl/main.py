"""vpnctl: the operator's command line.

Exit status: 0 done; 1 refused or failed; 2 wrong arguments or configuration; 3 vpnd is not
running; 4 not permitted.  Errors are one line on standard error.
"""

import argparse
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vpnctl import daemons, output
from vpnctl.commands import client, config, down, pki, reload, rotate_keys, status, up, user
from vpnd import __version__
from vpnd.errors import VpnError

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells say
EXIT_NOBODY_READS = 141  # 128 + SIGPIPE


class Command(Protocol):
    """What a module of vpnctl.commands declares."""

    NAME: str
    HELP: str

    def register(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own arguments and actions."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it and return the exit status.  Raises VpnError."""


COMMANDS: tuple[Command, ...] = (
    status,
    up,
    down,
    user,
    client,
    rotate_keys,
    config,
    reload,
    pki,
)
DEFAULT = status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a user's name in a C locale
    args = _parse(sys.argv[1:] if argv is None else argv)
    command: Command = args.command
    try:
        code = command.run(args)
        sys.stdout.flush()
    except VpnError as exc:
        print(f"vpnctl: {output.clean(str(exc))}", file=sys.stderr)
        return exc.exit_status
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else the last flush complains
        return EXIT_NOBODY_READS
    return code


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; the general options may stand before or after the command."""
    args, rest = general_options().parse_known_args(argv)
    return parser().parse_args(rest, args)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; manual and completions are made from it."""
    top = argparse.ArgumentParser(
        prog="vpnctl",
        description="Look at and change a running pyvpn daemon, and its certificates.",
        epilog="General options may stand after the command too. Exit status: 1 refused or "
        "failed, 2 wrong arguments, 3 vpnd is not running, 4 not permitted. "
        "Examples: man vpnctl.",
        parents=[general_options()],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"pyvpn {__version__}")
    top.set_defaults(command=DEFAULT)
    commands = top.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        subparser = commands.add_parser(command.NAME, help=command.HELP)
        subparser.set_defaults(command=command)
        command.register(subparser)
    _describe(commands)
    return top


def _describe(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Begin the help of each command, and of its actions, with what it does."""
    for pseudo in commands._choices_actions:  # noqa: SLF001 - argparse keeps the texts there
        subparser, text = commands.choices[pseudo.dest], pseudo.help or ""
        if subparser.description is None:
            subparser.description = f"{text[:1].upper()}{text[1:]}."
        for action in subparser._actions:  # noqa: SLF001 - likewise
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001 - has no other name
                _describe(action)


def general_options() -> argparse.ArgumentParser:
    """Return the options that all commands have."""
    options = argparse.ArgumentParser("vpnctl", add_help=False, allow_abbrev=False)
    for name, default, what in (
        ("--run-dir", daemons.SERVER_RUN_DIR, "where the daemon's socket is"),
        ("--state-dir", "/var/lib/pyvpn", "where the server keeps its keys"),
        ("--ca-dir", "/var/lib/pyvpn-ca", "where the certificate authority is"),
    ):
        options.add_argument(
            name,
            type=Path,
            default=Path(default),
            metavar="DIR",
            help=f"{what} (default: %(default)s)",
        )
    form = options.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    form.add_argument(
        "--table",
        action="store_true",
        help="print tables even when standard output is no terminal",
    )
    return options
