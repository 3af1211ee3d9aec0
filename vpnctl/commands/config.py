"""`vpnctl config`: check a configuration before it is used, and show what is in force.

Neither needs vpnd to run.  What the root helper would refuse is found out too, from its policy.
"""

import argparse
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helper.messages import Hello, OpenSockets, Refused, Request, SetFirewall, SetLink
from helper.policy import load as load_policy
from vpnctl import output
from vpnctl.connection import DaemonAbsent, NotPermitted, call
from vpnctl.connection import Refused as RefusedByDaemon
from vpnd.config.live import EFFECTS, Effect
from vpnd.config.load import load_server, load_with_origin, parse, read
from vpnd.config.load_profile import load_profile
from vpnd.config.model import ServerConfig
from vpnd.config.profile_options import ClientConfig
from vpnd.config.text import settings
from vpnd.errors import ConfigError
from vpnd.pki.child import SERVER_USER

NAME = "config"
HELP = "check a configuration file, or show what is in force"

SERVER_FILE = Path("/etc/pyvpn/server.toml")
POLICY_FILE = Path("/etc/pyvpn/helper.toml")
CLIENT_USER = "pyvpn-client"
SOME_ULA = "fd00::/8"  # where a network.ipv6 of "auto" lies, RFC 4193 section 3
HEADINGS = ("KEY", "VALUE", "FROM", "RUNNING")
FILE_HELP = "the file (default: %(default)s)"
Demand = tuple[str, Request]
"""A key of the configuration, and what the helper will be asked for because of it."""


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check", help="say whether a server's configuration, or a client's profile, can be used"
    )
    check.add_argument("file", metavar="FILE", nargs="?", type=Path, default=SERVER_FILE,
                       help=FILE_HELP)  # fmt: skip
    check.add_argument("--policy", metavar="FILE", type=Path, default=POLICY_FILE,
                       help="the root helper's policy (default: %(default)s)")  # fmt: skip
    check.set_defaults(run_action=_check)
    show = actions.add_parser(
        "show", help="show every value, where it is from, and where the running server differs"
    )
    show.add_argument("file", metavar="FILE", nargs="?", type=Path, default=SERVER_FILE,
                      help=FILE_HELP)  # fmt: skip
    show.set_defaults(run_action=_show)


def run(args: argparse.Namespace) -> int:
    """Check or show.  Raises ConfigError, with exit status 2, for what cannot be used."""
    status: int = args.run_action(args)
    return status


# check


def _check(args: argparse.Namespace) -> int:
    if _is_profile(args.file):
        kind, user = "profile", CLIENT_USER
        demands = _demands_of_profile(load_profile(args.file))
    else:
        kind, user = "server", SERVER_USER
        config = load_server(args.file)
        _check_files(args.file, config)
        demands = _demands_of_server(config)
    _check_policy(args.file, args.policy, user, demands)
    if args.json:
        output.print_json({"file": str(args.file), "kind": kind, "ok": True})
    else:
        print(f"{output.clean(str(args.file))}: in order")
    return 0


def _is_profile(path: Path) -> bool:
    """Return whether a file is a client's: that always names servers."""
    return "remotes" in parse(path, read(path, "name another"))


def _check_files(path: Path, config: ServerConfig) -> None:
    """Raise ConfigError for a file that the configuration names and that is not there."""
    tls = config.tls
    named = (("certificate", tls.certificate), ("key", tls.key), ("client_ca", tls.client_ca))
    for key, file in named:
        try:
            is_missing = file is not None and not file.is_file()
        except OSError:  # in a folder that is not for us
            continue
        if is_missing:
            raise ConfigError(
                f'{path}: tls.{key}: {file} is no file; name another, or "" for the one that '
                "vpnctl pki init made"
            )


def _check_policy(path: Path, policy: Path, user: str, demands: Iterator[Demand]) -> None:
    """Raise ConfigError for what the helper would refuse."""
    try:
        rights = load_policy(policy).get(user)
    except Refused as exc:
        raise ConfigError(str(exc)) from exc
    if rights is None:
        raise ConfigError(f"{policy}: user {user} may do nothing; add a table [user.{user}]")
    key = ""
    try:
        for key, request in demands:  # noqa: B007 - making a request may be what is refused
            rights.check(request)
    except Refused as exc:
        raise ConfigError(f"{path}: {key}: {exc}") from exc


def _demands_of_server(config: ServerConfig) -> Iterator[Demand]:
    network, server = config.network, config.server
    yield "network.interface", Hello(network.interface)
    listen = tuple((str(address), server.port) for address in server.addresses)
    yield "server.port", OpenSockets(listen, 1, 65536)
    ipv6 = SOME_ULA if network.ipv6 == "auto" else network.ipv6
    for key, prefix in (("network.ipv4", network.ipv4), ("network.ipv6", ipv6)):
        if prefix is not None:
            yield key, SetFirewall((str(prefix),), masquerade=True, clamp_mss=True,
                                   client_to_client=False)  # fmt: skip


def _demands_of_profile(config: ClientConfig) -> Iterator[Demand]:
    network = config.network
    if network.interface:
        yield "network.interface", Hello(network.interface)
    routes = () if network.include is None else tuple(map(str, network.include))
    if network.include == ():
        routes = ("0.0.0.0/0",)
    yield "network.include", SetLink(1400, (), routes, forwarding=False)


# show


def _show(args: argparse.Namespace) -> int:
    config, said = load_with_origin(args.file)
    running, why_not = _running(args)
    rows = [
        (key, value, "file" if key in said else "default", running.get(key, value))
        for key, value in settings(config).items()
    ]
    if args.json:
        shown = [
            {
                "key": key,
                "value": _value(value),
                "from": origin,
                "effect": EFFECTS[key].value,
                "running": None if why_not else _value(in_force),
            }
            for key, value, origin, in_force in rows
        ]
        output.print_json({"file": str(args.file), "settings": shown, "running_unknown": why_not})
        return 0
    output.print_table(args, HEADINGS, [(k, v, o, "" if r == v else r) for k, v, o, r in rows])
    if output.wants_table(args):
        differ = [key for key, value, _, in_force in rows if value != in_force]
        if why_not:
            print(f"vpnctl: what is in force is not known: {why_not}", file=sys.stderr)
        elif differ:
            print(_until(differ))
    return 0


def _until(differ: list[str]) -> str:
    """Return when what is in force will be what the file says."""
    waiting = [key for key in differ if EFFECTS[key] is Effect.RESTART]
    text = "The server goes by what RUNNING says until `vpnctl reload`"
    return f"{text}, with {', '.join(waiting)} until a restart" if waiting else text


def _running(args: argparse.Namespace) -> tuple[dict[str, str], str]:
    """Return what the running server goes by; or nothing, and why that is not known."""
    try:
        found = call(args, lambda daemon: daemon.get_settings())
    except DaemonAbsent:
        return {}, "the server is not running"
    except (NotPermitted, RefusedByDaemon) as exc:
        return {}, str(exc)
    return {setting.key: setting.value for setting in found}, ""


def _value(literal: str) -> Any:
    return tomllib.loads(f"value = {literal}")["value"]
