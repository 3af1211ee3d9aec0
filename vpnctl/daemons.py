"""Which daemon is meant: the server, a client by its name, or the one of --run-dir."""

import argparse
import re
from pathlib import Path

from vpnd.errors import ConfigError
from vpnd.ipc.api import SOCKET_NAME

SERVER_RUN_DIR = Path("/run/pyvpn-server")
CLIENT_PREFIX = "pyvpn-client-"  # of the run directories, beside the server's
LOGS = Path("/var/log/pyvpn")  # of clients that vpnctl has started, client-NAME.log
NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


def client_run_dir(name: str) -> Path:
    """Return the run directory of a client.  Raises ConfigError for what is no name."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a client: `vpnctl status` shows who is there")
    return SERVER_RUN_DIR.parent / f"{CLIENT_PREFIX}{name}"


def running_clients() -> list[str]:
    """Return the names of the clients that have a socket, in their order."""
    sockets = SERVER_RUN_DIR.parent.glob(f"{CLIENT_PREFIX}*/{SOCKET_NAME}")
    names = (path.parent.name.removeprefix(CLIENT_PREFIX) for path in sockets)
    return sorted(name for name in names if NAME.fullmatch(name))


def is_named(args: argparse.Namespace) -> bool:
    """Tell whether --run-dir says which daemon is meant."""
    return Path(args.run_dir) != SERVER_RUN_DIR


def meant(args: argparse.Namespace, name: str | None) -> argparse.Namespace:
    """Return the arguments with `run_dir` of the client `name`, unchanged without a name."""
    if name is None:
        return args
    return argparse.Namespace(**{**vars(args), "run_dir": client_run_dir(name)})
