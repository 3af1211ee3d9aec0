"""`vpnctl pki`: the certificate authority and the server's keys.

As root nothing is read or written in the CA's or the server's directory but by a child that
has become its user (`vpnd.pki.child`).  Anybody else must own both directories.
"""

import argparse
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509

from vpnctl import output
from vpnd.config import values
from vpnd.errors import ConfigError
from vpnd.pki import ca, jobs, server_files
from vpnd.pki.child import CA_USER, SERVER_USER, Account, ensure_directory, run_as, system_account
from vpnd.pki.keys import KEY_TYPES, KeyType, parse_public_key
from vpnd.pki.pins import certificate_pin, key_pin

NAME = "pki"
NEXT = """\
root.key is needed only for a new issuing CA: you may keep it on another machine.
Next: start the server and make a client with `vpnctl client add NAME`."""
HELP = "make the certificate authority and the server's keys"


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    init = actions.add_parser("init", help="make both; what is there already is never overwritten")
    init.add_argument(
        "--name",
        action="append",
        metavar="HOST",
        help="host name or address of the server, the one for profiles first "
        "(may be repeated; default: this host's full name, its address towards the internet)",
    )
    init.add_argument(
        "--key-type",
        choices=KEY_TYPES,
        default="p256",
        help="kind of all keys that are made (default: %(default)s)",
    )
    for name, what in (
        ("--ca-dir", "where the certificate authority is made"),
        ("--state-dir", "where the server's keys and certificate are made"),
    ):
        init.add_argument(name, type=Path, default=argparse.SUPPRESS, metavar="DIR", help=what)


def run(args: argparse.Namespace) -> int:
    """Make the PKI and say what was made.  Raises VpnError."""
    made = initialise(
        _names(args.name),
        args.key_type,
        ca_home=Home(Path(args.ca_dir).absolute(), system_account(CA_USER)),
        server_home=Home(Path(args.state_dir).absolute(), system_account(SERVER_USER)),
    )
    if args.json:
        output.print_json(made)
    else:
        output.print_facts(args, _facts(made))
        print(NEXT)
    return 0


@dataclass(frozen=True, slots=True)
class Home:
    """A directory and the user it belongs to."""

    directory: Path
    account: Account

    def run(self, job: Any, **request: Any) -> Any:
        """Return the result of one of `vpnd.pki.jobs` in this directory, as its user."""
        return run_as(self.account, job, {"directory": str(self.directory), **request})


def initialise(
    names: Sequence[str], key_type: KeyType, *, ca_home: Home, server_home: Home
) -> dict[str, Any]:
    """Make the authority and the server's keys and certificate; return what was made.

    Either everything is there afterwards or nothing new is.  Raises VpnError, also when one of
    the files exists.
    """
    ensure_directory(ca_home.directory, ca_home.account, widest=0o700)
    ensure_directory(server_home.directory, server_home.account, widest=0o755)
    for home, files in ((ca_home, ca.FILES), (server_home, server_files.FILES)):
        _refuse_existing(home, files)
    with ExitStack() as undo:
        keys = server_home.run(jobs.make_server_keys, key_type=key_type)
        undo.callback(server_home.run, jobs.remove_server_files)
        signed = ca_home.run(
            jobs.create_authority, key_type=key_type, request=keys["request"], names=list(names)
        )
        undo.callback(ca_home.run, jobs.remove_authority)
        server_home.run(
            jobs.install_server_certificates, certificate=signed["certificate"], ca=signed["ca"]
        )
        undo.pop_all()
    leaf = x509.load_pem_x509_certificates(signed["certificate"].encode())[0]
    following = parse_public_key(keys["next"].encode(), "server-next.pub")
    return {
        "names": list(names),
        "not_after": int(leaf.not_valid_after_utc.timestamp()),
        "pins": [certificate_pin(leaf), key_pin(following)],
        "ca_dir": str(ca_home.directory),
        "state_dir": str(server_home.directory),
    }


def _refuse_existing(home: Home, files: Sequence[str]) -> None:
    found = home.run(jobs.existing, files=list(files))["files"]
    if found:
        raise ConfigError(
            f"{home.directory}: {', '.join(found)} exist{'s' if len(found) == 1 else ''} already "
            "and will not be overwritten; to begin anew, move what is there elsewhere"
        )


def _names(written: Sequence[str] | None) -> list[str]:
    """Return checked host names; without any, this host's own."""
    names = []
    for name in written or _own_names():
        try:
            names.append(values.host(name))
        except values.BadValue as exc:
            raise ConfigError(f"--name: {exc}") from None
    return list(dict.fromkeys(names))


def _own_names() -> list[str]:
    """Return what this host is reached by, best first: a name without dots is known to nobody."""
    name = socket.gethostname()
    ipv4 = _own_address(socket.AF_INET, "192.0.2.1")
    address = ipv4 or _own_address(socket.AF_INET6, "2001:db8::1")
    return [name, *address] if "." in name else [*address, name]


def _own_address(family: socket.AddressFamily, somewhere: str) -> list[str]:
    """Return the address of this host that the internet would see, if any; nothing is sent."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((somewhere, 9))
            return [sock.getsockname()[0]]
    except OSError:
        return []


def _facts(made: dict[str, Any]) -> list[tuple[str, str]]:
    until = output.day_text(made["not_after"])
    current, following = made["pins"]
    return [
        ("certificate authority", made["ca_dir"]),
        ("server's keys", made["state_dir"]),
        ("server's name", f"{', '.join(made['names'])} (certificate valid until {until})"),
        ("pin of the key in use", current),
        ("pin of the next key", following),
    ]
