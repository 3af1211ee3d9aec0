"""Two homes on a directory of their own, of two users where root runs the tests."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vpnctl.homes import Home
from vpnd.pki.child import Account

CA = Account("the CA's user", 64321, 64322)
SERVER = Account("the server's user", 64323, 64324)


@contextmanager
def open_place() -> Iterator[Path]:
    """A directory that other users may pass through, as /var/lib is."""
    path = Path(tempfile.mkdtemp(prefix="pyvpn-t-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def homes(place: Path) -> dict[str, Home]:
    """Return the two homes."""
    return homes_of(CA, SERVER, place) if os.geteuid() == 0 else homes_of_one_user(place)


def homes_of_one_user(place: Path) -> dict[str, Home]:
    """Return two homes of whoever runs this: no job waits for a network namespace of its own."""
    return homes_of(Account.current(), Account.current(), place)


def homes_of(ca: Account, server: Account, place: Path) -> dict[str, Home]:
    return {"ca_home": Home(place / "ca", ca), "server_home": Home(place / "state", server)}
