"""The command `vpnd`: arguments, configuration, role, exit status."""

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from vpnd import __version__, log
from vpnd.config.load import load_server
from vpnd.errors import VpnError
from vpnd.server import master as server

CLIENT_RUN_DIR = "/run/pyvpn-client-NAME"


def parser() -> argparse.ArgumentParser:
    """Return the parser of vpnd's command line."""
    top = argparse.ArgumentParser(prog="vpnd", description="Serve VPN clients, or be one.")
    top.add_argument("--version", action="version", version=f"pyvpn {__version__}")
    roles = top.add_subparsers(dest="role", required=True, metavar="ROLE")
    _server_options(roles.add_parser("server", help="serve clients", description="Serve clients."))
    _client_options(
        roles.add_parser("client", help="connect to a server", description="Connect to a server.")
    )
    return top


def _server_options(options: argparse.ArgumentParser) -> None:
    options.set_defaults(run=_run_server)
    for name, metavar, default, what in (
        ("--config", "FILE", "/etc/pyvpn/server.toml", "the configuration"),
        ("--state-dir", "DIR", "/var/lib/pyvpn", "users, sessions and the server's keys"),
        ("--run-dir", "DIR", "/run/pyvpn-server", "where the socket for vpnctl is made"),
    ):
        options.add_argument(
            name,
            type=Path,
            default=Path(default),
            metavar=metavar,
            help=f"{what} (default: %(default)s)",
        )


def _client_options(options: argparse.ArgumentParser) -> None:
    options.set_defaults(run=_run_client)
    options.add_argument(
        "profile",
        metavar="PROFILE",
        help="the file that `vpnctl client add` made, or https://HOST[:PORT][/PATH]",
    )
    options.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help=f"where the socket for vpnctl is made (default: {CLIENT_RUN_DIR})",
    )
    options.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where renewed certificates are kept (default: /var/lib/pyvpn-client/NAME)",
    )
    options.add_argument(
        "--script",
        type=Path,
        metavar="FILE",
        help="a vpnc-script, run without privileges, to set up addresses and routes",
    )
    options.add_argument(
        "--helper-socket",
        type=Path,
        metavar="FILE",
        help="the socket of the privileged helper (default: as the profile says)",
    )
    options.add_argument(
        "--interface",
        metavar="NAME",
        help="name of the TUN interface, pyvpn10 to pyvpn999 (default: as the profile says)",
    )
    options.add_argument("--user", metavar="NAME", help="log in as this user")
    options.add_argument(
        "--group", metavar="NAME", help="log in to this group, where the server offers several"
    )
    url = options.add_argument_group("with a URL")
    url.add_argument(
        "--pin",
        action="append",
        default=[],
        metavar="PIN",
        help="pin-sha256:... of the server's key, instead of CA and name; may be repeated",
    )
    url.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="CA certificates that the server's is checked against (default: the system's)",
    )
    url.add_argument(
        "--certificate", type=Path, metavar="FILE", help="the client's certificate, PEM"
    )
    url.add_argument("--key", type=Path, metavar="FILE", help="its private key, PEM")
    url.add_argument("--allow-tls12", action="store_true", help="for servers without TLS 1.3")
    numbers = options.add_argument_group("descriptors (secrets are never arguments)")
    for name, what in (
        ("--profile-fd", "read the profile from this descriptor; PROFILE is then its name only"),
        ("--password-fd", "lines: the password, and others to try when it is refused"),
        ("--otp-fd", "lines: one-time codes"),
        ("--prompt-fd", "a socket to whoever asks the person, for vpnctl"),
    ):
        numbers.add_argument(name, type=int, metavar="N", help=what)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run vpnd; return its exit status: 0, 1 for trouble, 2 for a bad configuration."""
    options = parser().parse_args(arguments)
    log.setup("info")
    try:
        status: int = options.run(options)
    except VpnError as exc:
        log.last_words(f"vpnd: {exc}")
        return exc.exit_status
    except KeyboardInterrupt:
        return 130
    return status


def _run_server(options: argparse.Namespace) -> int:
    config = load_server(options.config)
    log.setup(config.log.level, anonymise=config.log.anonymise)
    serving = server.run(
        config,
        config_file=options.config,
        state_dir=options.state_dir,
        run_dir=options.run_dir,
    )
    asyncio.run(serving)
    return 0


def _run_client(options: argparse.Namespace) -> int:
    from vpnd.client import start  # noqa: PLC0415 - a server needs none of it

    return start.start(options)
