"""`vpnctl client`: devices that log in with a certificate.

    key pair and request   here
    certificate            a child that is the CA's user, from the request alone
    files                  NAME.toml and NAME.p12, both or none
    registration           the daemon; if it refuses, the files are removed again

So the store knows every certificate that leaves this process, and a certificate it does not
know is worth nothing.
"""

import argparse
import os
from datetime import UTC, datetime
from pathlib import Path

from vpnctl import output
from vpnctl.connection import call
from vpnctl.output import day_text
from vpnd.config.profile import ClientProfile, Remote, encode_profile
from vpnd.errors import VpnError
from vpnd.ipc.api import Client, Profile
from vpnd.pki import jobs
from vpnd.pki.bundle import encode_bundle, new_password
from vpnd.pki.certificates import encode_chain, serial_text
from vpnd.pki.child import CA_USER, Account, ensure_directory, run_as, system_account
from vpnd.pki.files import PRIVATE, write_all_new
from vpnd.pki.keys import (
    KEY_TYPES,
    KeyType,
    PrivateKey,
    encode_key,
    generate,
    is_same_key,
    request,
)
from vpnd.pki.names import check_name
from vpnd.pki.reading import load_certificates, not_after

NAME = "client"
HEADINGS = ("USER", "CLIENT", "STATE", "UNTIL", "SESSIONS", "SERIAL")
HELP = "add, list and revoke clients: devices that log in with a certificate"


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    adding = actions.add_parser("add", help="make a client's NAME.toml and NAME.p12")
    adding.add_argument("name", metavar="NAME", help="name of the device, unique for its user")
    adding.add_argument(
        "--user",
        metavar="USER",
        help="user it belongs to, made where there is none (default: NAME)",
    )
    adding.add_argument(
        "--foreign",
        action="store_true",
        help="for other makers' clients, which cannot renew: valid 2 years instead of 90 days",
    )
    adding.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where the two files are written (default: the current directory)",
    )
    adding.add_argument(
        "--key-type",
        choices=KEY_TYPES,
        default="p256",
        help="kind of the client's key (default: %(default)s)",
    )
    adding.add_argument(
        "--ca-dir",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="where the certificate authority is",
    )
    adding.set_defaults(run_action=lambda args: add(args, system_account(CA_USER)))
    listing = actions.add_parser("list", help="show all clients, revoked ones too")
    listing.set_defaults(run_action=_list)
    revoke = actions.add_parser("revoke", help="end a client's sessions and refuse it for good")
    revoke.add_argument("name", metavar="NAME", help="name of the device")
    revoke.add_argument(
        "--user",
        metavar="USER",
        help="user it belongs to; needed where several users have a client of that name",
    )
    revoke.set_defaults(run_action=_revoke)


def run(args: argparse.Namespace) -> int:
    """Carry out one action and return the exit status.  Raises VpnError."""
    status: int = args.run_action(args)
    return status


def add(args: argparse.Namespace, account: Account) -> int:
    """Make a client with the CA in `args.ca_dir`, which belongs to `account`.

    Either files and registration are there afterwards or neither is.  Raises VpnError.
    """
    name = check_name(args.name, "client")
    user = check_name(args.user or args.name, "user")
    files = _free_files(args.output.absolute(), name)
    server = call(args, lambda daemon: daemon.get_profile())
    made = Issued.make(
        user,
        name,
        args.key_type,
        foreign=args.foreign,
        ca_dir=Path(args.ca_dir).absolute(),
        account=account,
    )
    made.check_trusted(server, Path(args.ca_dir))
    password = new_password()
    _write(files, made.profile(server), made.bundle(password))
    try:
        call(
            args,
            lambda daemon: daemon.add_client(
                user, name, made.serial, made.not_after, foreign=args.foreign
            ),
        )
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        raise
    _print_added(args, made, server, files, password)
    return 0


class Issued:
    """A client's key and certificate, fresh from the CA and not yet known to the store."""

    def __init__(self, user: str, name: str, key: PrivateKey, signed: dict[str, str]) -> None:
        """Take what the CA's child answered; raise VpnError if it is for another key."""
        self.user, self.name, self._key = user, name, key
        self._chain = load_certificates(signed["certificate"].encode())
        self._cas = load_certificates(signed["ca"].encode())
        if not is_same_key(self._chain[0].public_key(), key.public_key()):
            raise VpnError("the CA signed another key than the client's: nothing was written")

    @classmethod
    def make(
        cls,
        user: str,
        name: str,
        key_type: KeyType,
        *,
        foreign: bool,
        ca_dir: Path,
        account: Account,
    ) -> "Issued":
        """Make a key pair and have it certified by the CA in `ca_dir`, as its user."""
        if not os.path.lexists(ca_dir):
            raise VpnError(f"{ca_dir}: there is no CA yet; make it with vpnctl pki init")
        ensure_directory(ca_dir, account, widest=0o700)
        key = generate(key_type)
        wanted = {"user": user, "client": name, "foreign": foreign}
        asked = {"directory": str(ca_dir), "request": request(key).decode()}
        return cls(user, name, key, run_as(account, jobs.sign_client, wanted | asked))

    @property
    def serial(self) -> str:
        """The serial number as the store keeps it."""
        return serial_text(self._chain[0])

    @property
    def not_after(self) -> int:
        """The end of the certificate in Unix seconds."""
        return int(not_after(self._chain[0]).timestamp())

    def check_trusted(self, server: Profile, ca_dir: Path) -> None:
        """Raise VpnError if the server trusts another CA: it would refuse the client."""
        trusted = load_certificates(server.ca_pem.encode())
        if self._cas[0] not in trusted:
            raise VpnError(
                f"{ca_dir}: not the CA that the running server trusts; "
                "name the right pair with --ca-dir and --run-dir"
            )

    def profile(self, server: Profile) -> bytes:
        """Return the text of NAME.toml."""
        remotes = [Remote(r, server.server_name, tuple(server.pins)) for r in server.remotes]
        profile = ClientProfile(
            user=self.user,
            name=self.name,
            until=day_text(self.not_after),
            remotes=remotes,
            ca=encode_chain(self._cas[:1]).decode(),  # the root: the issuing CA's is renewed
            certificate=encode_chain(self._chain).decode(),
            key=encode_key(self._key).decode(),
        )
        return encode_profile(profile)

    def bundle(self, password: str) -> bytes:
        """Return NAME.p12: what the server needs for the chain, and the root for phones."""
        cas = [*self._chain[1:], self._cas[0]]
        return encode_bundle(self.name, self._key, self._chain[0], cas, password)


def _free_files(directory: Path, name: str) -> tuple[Path, Path]:
    """Return the names of the files to write; raise VpnError where one exists."""
    if not directory.is_dir():
        raise VpnError(f"{directory}: no such directory; create it or name another with --output")
    files = (directory / f"{name}.toml", directory / f"{name}.p12")
    for path in files:
        if os.path.lexists(path):
            raise VpnError(f"{path}: exists and will not be overwritten; move it away")
    return files


def _write(files: tuple[Path, Path], profile: bytes, bundle: bytes) -> None:
    try:
        write_all_new({files[0]: (profile, PRIVATE), files[1]: (bundle, PRIVATE)})
    except OSError as exc:
        raise VpnError(
            f"{files[0].parent}: cannot be written ({exc.strerror}); name another with --output"
        ) from exc


def _print_added(
    args: argparse.Namespace,
    made: Issued,
    server: Profile,
    files: tuple[Path, Path],
    password: str,
) -> None:
    line = ["openconnect", "--certificate", str(files[1])]
    line += [word for pin in server.pins for word in ("--servercert", pin)]
    line += [f"https://{server.remotes[0]}"]
    if args.json:
        output.print_json(
            {
                "user": made.user,
                "name": made.name,
                "serial": made.serial,
                "not_after": made.not_after,
                "foreign": args.foreign,
                "profile": str(files[0]),
                "bundle": str(files[1]),
                "bundle_password": password,
                "openconnect": line,
            }
        )
        return
    facts = [
        ("client", f"{made.name} of user {made.user}, valid until {_life(made, args.foreign)}"),
        ("profile", str(files[0])),
        ("bundle", str(files[1])),
        ("password", f"{password}  (of the bundle; it is not kept anywhere)"),
        ("connect", " ".join(line)),
    ]
    output.print_facts(args, facts)


def _life(made: Issued, is_foreign: bool) -> str:
    """Return the end of a certificate and what comes then."""
    then = (
        "it cannot renew itself, so make it anew before"
        if is_foreign
        else "pyvpn's own client renews it by itself"
    )
    return f"{day_text(made.not_after)}: {then}"


def _list(args: argparse.Namespace) -> int:
    clients = call(args, lambda daemon: daemon.list_clients())
    if args.json:
        output.print_json({"clients": clients})
    else:
        output.print_table(args, HEADINGS, [_row(client) for client in clients])
    return 0


def _row(client: Client) -> list[str]:
    until = day_text(client.not_after)
    return [client.user, client.name, _state(client), until, str(client.sessions), client.serial]


def _state(client: Client) -> str:
    if client.revoked_at is not None:
        return f"revoked {day_text(client.revoked_at)}"
    if client.not_after <= datetime.now(UTC).timestamp():
        return "expired"
    return "foreign" if client.foreign else "valid"


def _revoke(args: argparse.Namespace) -> int:
    ended = call(args, lambda daemon: daemon.revoke_client(args.name, args.user))
    if args.json:
        output.print_json({"ended_sessions": ended})
    else:
        sessions = "1 session" if ended == 1 else f"{ended} sessions"
        print(f"client {args.name} is revoked; {sessions} ended")
    return 0
