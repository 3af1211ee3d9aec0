"""The command `vpnd`: arguments, configuration, role, exit status."""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from vpnd import __version__, log
from vpnd.config.load import load_server
from vpnd.errors import VpnError
from vpnd.server import master


def parser() -> argparse.ArgumentParser:
    """Return the parser of vpnd's command line."""
    top = argparse.ArgumentParser(prog="vpnd", description="pyvpn's daemon")
    top.add_argument("--version", action="version", version=f"pyvpn {__version__}")
    roles = top.add_subparsers(dest="role", required=True, metavar="ROLE")
    server = roles.add_parser("server", help="serve clients")
    server.add_argument(
        "--config", type=Path, default=Path("/etc/pyvpn/server.toml"), metavar="FILE"
    )
    server.add_argument("--state-dir", type=Path, default=Path("/var/lib/pyvpn"), metavar="DIR")
    server.add_argument("--run-dir", type=Path, default=Path("/run/pyvpn-server"), metavar="DIR")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run vpnd; return its exit status: 0, 1 for trouble, 2 for a bad configuration."""
    options = parser().parse_args(arguments)
    log.setup("info")
    try:
        config = load_server(options.config)
        log.setup(config.log.level)
        asyncio.run(master.run(config, options.state_dir, options.run_dir))
    except VpnError as exc:
        print(f"vpnd: {exc}", file=sys.stderr)  # noqa: T201 - one line for the operator
        return exc.exit_status
    except KeyboardInterrupt:
        return 130
    return 0
