"""`vpnctl pki`: the certificate authority and the server's keys.

As root nothing is read or written in the CA's or the server's directory but by a child that
has become its user (`vpnd.pki.child`).  Anybody else must own both directories.
"""

import argparse
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vpnctl import output
from vpnctl.connection import DaemonAbsent, call
from vpnctl.homes import Home, ca_home, server_home
from vpnctl.pki_init import chosen_names, initialise
from vpnctl.pki_renew import plain_client, renew, running_server
from vpnctl.pki_rotate import rotate
from vpnd.errors import VpnError
from vpnd.pki import renewal_jobs
from vpnd.pki.certificates import server_names
from vpnd.pki.keys import KEY_TYPES
from vpnd.pki.reading import load_certificates
from vpnd.pki.revocation import list_end
from vpnd.pki.schedule import Life, issuing_life, server_life

NAME = "pki"
HELP = "make, renew and show the certificate authority and the server's keys"
CONFIG = Path("/etc/pyvpn/server.toml")
NEXT = """\
root.key is needed once a year, to renew the issuing CA: you may keep it on another machine.
Next: start the server and make a client with `vpnctl client add NAME`."""
HEADINGS = ("CERTIFICATE", "UNTIL", "RENEWED FROM", "REMARK")


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    init = actions.add_parser(
        "init",
        help="make the authority and the server's keys; what is there is never overwritten",
    )
    init.add_argument(
        "--name",
        action="append",
        metavar="HOST",
        help="host name or address of the server, the one for profiles first (may be repeated; "
        "default: [server] name in server.toml, else this host's full name and address)",
    )
    init.add_argument(
        "--key-type",
        choices=KEY_TYPES,
        default="p256",
        help="kind of all keys that are made (default: %(default)s)",
    )
    init.add_argument(
        "--if-missing", action="store_true", help="do nothing where the server has its certificate"
    )
    init.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"server.toml with the name (default: {CONFIG})",
    )
    init.set_defaults(run_action=_init)
    status = actions.add_parser("status", help="show the certificates, their ends, and the pins")
    status.set_defaults(run_action=_status)
    renewing = actions.add_parser(
        "renew", help="renew what is due, answer clients' requests, write the revocation list"
    )
    renewing.add_argument(
        "--force",
        action="store_true",
        help="renew the server's certificate although it is not due",
    )
    renewing.set_defaults(run_action=_renew)
    rotating = actions.add_parser(
        "rotate-server-key",
        help="put the server's next key in use; profiles that know it stay good",
    )
    rotating.add_argument(
        "--key-type",
        choices=KEY_TYPES,
        default="p256",
        help="kind of the key that will follow it (default: %(default)s)",
    )
    rotating.add_argument(
        "--force",
        action="store_true",
        help="do it although clients whose profiles are older are locked out",
    )
    rotating.set_defaults(run_action=_rotate)
    crl = actions.add_parser("crl", help="print the revocation list, for programs of others")
    crl.add_argument("--output", type=Path, metavar="FILE", help="write it there instead")
    crl.set_defaults(run_action=_crl)
    for action in (init, status, renewing, rotating, crl):
        for option, what in (
            ("--ca-dir", "where the certificate authority is"),
            ("--state-dir", "where the server's keys and certificate are"),
        ):
            action.add_argument(
                option, type=Path, default=argparse.SUPPRESS, metavar="DIR", help=what
            )


def run(args: argparse.Namespace) -> int:
    """Carry out one action and return the exit status.  Raises VpnError."""
    status: int = args.run_action(args)
    return status


def _init(args: argparse.Namespace) -> int:
    names = chosen_names(args.name, args.config or CONFIG, needed=args.config is not None)
    made = initialise(
        names,
        args.key_type,
        ca_home=ca_home(args),
        server_home=server_home(args),
        if_missing=args.if_missing,
    )
    if args.json:
        output.print_json(made or {})
    elif made is None:
        print(f"{args.state_dir}: the server has its certificate already; nothing was made")
    else:
        output.print_facts(args, _facts(made))
        print(NEXT)
    return 0


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


# status


def _status(args: argparse.Namespace) -> int:
    """Show everything; exit status 1 when something needs an operator."""
    now = datetime.now(UTC)
    shown = status_of(ca_home(args), server_home(args), now)
    if args.json:
        output.print_json(shown)
    else:
        output.print_table(args, HEADINGS, [_row(entry) for entry in shown["certificates"]])
        facts = [("pin of the key in use", shown["pins"][0])]
        facts += [("pin of the next key", pin) for pin in shown["pins"][1:]]
        until = shown["revocation_list_until"]
        facts.append(
            ("revocation list", f"good until {output.day_text(until)}" if until else "none")
        )
        output.print_facts(args, facts)
        _print_alerts(shown["alerts"])
    return 1 if shown["alerts"] else 0


def status_of(ca_home: Home, server_home: Home, now: datetime) -> dict[str, Any]:
    """Return the certificates, the pins and what is wrong.  Raises VpnError."""
    server = server_home.run(renewal_jobs.server_state)
    if not server:
        raise VpnError(
            f"{server_home.directory}: there is no server.crt; make it with vpnctl pki init"
        )
    authority = ca_home.run(renewal_jobs.authority_state)
    root, issuing, leaf = (
        load_certificates(pem.encode())[0]
        for pem in (authority["root"], authority["issuing"], server["certificate"])
    )
    until = list_end(server["crl"].encode()) if server["crl"] else None
    is_late = until is not None and until <= now.timestamp()
    late = ["the revocation list is late; vpnctl pki renew makes another"] if is_late else []
    with_root = "its key is here" if authority["has_root_key"] else "its key is elsewhere"
    return {
        "certificates": [
            _entry("root CA", issuing_life(root), with_root, renewed=False),
            _entry("issuing CA", issuing_life(issuing), f"{authority['issued']} clients' made"),
            _entry("server", server_life(leaf), ", ".join(server_names(leaf))),
        ],
        "pins": server["pins"],
        "revocation_list_until": until,
        "alerts": [*renewal_jobs.complaints(root, issuing, leaf, now), *late],
    }


def _entry(what: str, life: Life, remark: str, *, renewed: bool = True) -> dict[str, Any]:
    return {
        "certificate": what,
        "not_after": int(life.end.timestamp()),
        "renewal": int(life.renewal.timestamp()) if renewed else None,
        "remark": remark,
    }


def _row(entry: dict[str, Any]) -> list[str]:
    renewal = entry["renewal"]
    return [
        entry["certificate"],
        output.day_text(entry["not_after"]),
        "by hand" if renewal is None else output.day_text(renewal),
        entry["remark"],
    ]


def _print_alerts(alerts: list[str]) -> None:
    for line in alerts:
        print(f"vpnctl: {output.clean(line)}", file=sys.stderr)


# renew


def _renew(args: argparse.Namespace) -> int:
    """Renew; exit status 0 also where something waits: the alerts say so."""
    renewed = renew(
        ca_home(args),
        server_home(args),
        datetime.now(UTC),
        force=args.force,
        list_clients=running_server(args),
        tell_server=_teller(args),
    )
    if args.json:
        output.print_json(renewed)
        return 0
    for line in renewed.done or ["nothing is due"]:
        print(output.clean(line))
    _print_alerts([f"refused: {line}" for line in renewed.refused] + renewed.alerts)
    return 0


def _teller(args: argparse.Namespace) -> Callable[[], str]:
    """Return what has the running server take its new certificate."""

    def tell() -> str:
        try:
            call(args, lambda daemon: daemon.reload())
        except DaemonAbsent:
            return "the server does not run: it takes the certificate when it starts"
        return "the server has taken it"

    return tell


def _rotate(args: argparse.Namespace) -> int:
    made = rotate(
        ca_home(args),
        server_home(args),
        args.key_type,
        datetime.now(UTC),
        force=args.force,
        list_clients=running_server(args),
    )
    told = _teller(args)()
    if args.json:
        output.print_json(made)
        return 0
    facts = [("pin of the key in use", made["pins"][0]), ("pin of the next key", made["pins"][1])]
    facts += [("locked out", name) for name in made["locked_out"]]
    output.print_facts(args, facts)
    print(f"{told}; profiles that are made from now on know the next key too")
    return 0


# the revocation list


def _crl(args: argparse.Namespace) -> int:
    clients = [plain_client(c) for c in call(args, lambda daemon: daemon.list_clients())]
    now = datetime.now(UTC)
    made = ca_home(args).run(renewal_jobs.make_list, clients=clients, now=now.timestamp())
    if args.output is None:
        output.print_json(made) if args.json else sys.stdout.write(made["crl"])
        return 0
    try:
        fd = os.open(args.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(fd, "w") as file:
            file.write(made["crl"])
    except OSError as exc:
        raise VpnError(f"{args.output}: cannot be written ({exc.strerror})") from exc
    return 0
