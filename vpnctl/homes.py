"""The directories of the authority and of the server, each worked in as its own user."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpnd.pki.child import CA_USER, SERVER_USER, Account, run_as, system_account


@dataclass(frozen=True, slots=True)
class Home:
    """A directory and the user it belongs to."""

    directory: Path
    account: Account

    def run(self, job: Any, **request: Any) -> Any:
        """Return the result of one of `vpnd.pki`'s jobs in this directory, as its user."""
        return run_as(self.account, job, {"directory": str(self.directory), **request})


def ca_home(args: argparse.Namespace) -> Home:
    """Return the authority's home that the command line names."""
    return Home(Path(args.ca_dir).absolute(), system_account(CA_USER))


def server_home(args: argparse.Namespace) -> Home:
    """Return the server's home that the command line names."""
    return Home(Path(args.state_dir).absolute(), system_account(SERVER_USER))
