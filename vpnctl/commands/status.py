"""`vpnctl status`: the daemon and its sessions.

Exit status 0 when it is up, 1 when it answers but is down, 3 when it is not running.
"""

import argparse
import sys
from dataclasses import fields
from typing import Any

from vpnctl import daemons, output
from vpnctl.connection import DaemonAbsent, call
from vpnd.ipc.api import ADMIN_GROUP, ConnectionStatus, SessionStatus, Status

NAME = "status"
HELP = "show the daemon, its interface and its sessions (what a bare `vpnctl` does)"

EXIT_DOWN = 1
HEADINGS = ("USER", "INNER, OUTER", "CHANNEL", "BYTES (PACKETS)", "AGE, KEYS")


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="only this client")
    parser.set_defaults(name=None)


def run(args: argparse.Namespace) -> int:
    """Ask the daemons and print their answers; the exit status is the worst of them."""
    found = _ask_all(args)
    if args.json:
        output.print_json(found[0] if len(found) == 1 else {"daemons": found})
    for number, status in enumerate(() if args.json else found):
        if number:
            print()
        (_print_for_people if output.wants_table(args) else _print_for_scripts)(args, status)
    return 0 if all(status.state == "up" for status in found) else EXIT_DOWN


def _ask_all(args: argparse.Namespace) -> list[Status]:
    """Return the status of the daemon that is meant, or of the server and all clients."""
    name = getattr(args, "name", None)
    if name is not None or daemons.is_named(args):
        return [_ask(daemons.meant(args, name))]
    clients = daemons.running_clients()
    found = []
    for name in (None, *clients):
        try:
            found.append(_ask(daemons.meant(args, name)))
        except DaemonAbsent:
            if not clients:
                raise
    return found or [_ask(args)]


def _ask(args: argparse.Namespace) -> Status:
    return call(args, lambda daemon: daemon.get_status())


def _print_for_people(args: argparse.Namespace, status: Status) -> None:
    output.print_facts(args, _facts(status))
    if status.sessions:
        print()
        output.print_table(
            args, HEADINGS, [_stacked(session, status) for session in status.sessions]
        )
    if status.restricted:
        print(
            f"(names and addresses are shown to root and the group {ADMIN_GROUP} only)",
            file=sys.stderr,
        )


def _facts(status: Status) -> list[tuple[str, str]]:
    since = ""
    if status.uptime_s is not None:
        runs = output.duration_text(status.uptime_s)
        since = f" for {runs}" if status.state == "up" else f", started {runs} ago"
    facts: list[tuple[str, str]] = [
        (status.role, f"{status.state}{since}, version {status.version}")
    ]
    connection = status.client
    if connection is not None:
        facts += _connection_facts(connection)
    if not status.restricted:
        offloads = ", ".join(
            f"{offload.name} {offload.state}" + (f" ({offload.reason})" if offload.reason else "")
            for offload in status.offloads
        )
        facts += [
            ("interface", " ".join((status.interface or "none", *status.addresses))),
            ("offloads", offloads),
            ("workers", str(status.workers)),
            ("drops", output.counts_text(status.drops) or "none"),
        ]
    if status.role == "client":
        return facts
    if not status.restricted:
        facts += [
            ("listening on", ", ".join(status.listen)),
            ("firewall", status.firewall_backend or "none"),
            ("certificate", _keys_text(status)),
        ]
    return [*facts, ("users", str(status.users)), ("sessions", str(status.sessions_count))]


def _connection_facts(connection: ConnectionStatus) -> list[tuple[str, str]]:
    tries = f"try {connection.attempt}" if connection.attempt > 1 else ""
    pause = f"next in {connection.next_try_s} s" if connection.next_try_s else ""
    state = ", ".join(filter(None, (connection.state, connection.reason, tries, pause)))
    blocked = " (other IPv6 is blocked)" if connection.blocks_ipv6 else ""
    facts = [
        ("profile", connection.name),
        ("connection", state),
        ("server", connection.remote),
        ("routes", (", ".join(connection.routes) or "none") + blocked),
        ("outside", ", ".join(connection.exclude) or "none"),
        ("DNS", f"{', '.join(connection.dns)} (not put in use)" if connection.dns else "none"),
    ]
    if connection.certificate_not_after is not None:
        whose = "renewed" if connection.certificate_renewed else "the profile's"
        until = output.day_text(connection.certificate_not_after)
        facts.append(("certificate", f"valid until {until}, {whose}"))
    return facts + [("refused", reason) for reason in connection.refused]


def _keys_text(status: Status) -> str:
    keys = status.keys
    if keys is None:
        return "none"
    text = (
        f"valid until {output.day_text(keys.certificate_not_after)}, "
        f"{output.duration_text(keys.certificate_age_s)} old"
    )
    if keys.key_age_s is not None:
        text += f"; its key is {output.duration_text(keys.key_age_s)} old"
    return text


def _stacked(session: SessionStatus, status: Status) -> list[str]:
    """Return the cells of one session, the most asked for on the first lines."""
    age = (status.started_at or 0) + (status.uptime_s or 0) - session.connected_at
    cells = [
        [session.user, session.client or "", f"by {session.method}"],
        [session.address4 or "", session.address6 or "", session.outer],
        [
            session.channel,
            session.cipher,
            f"{session.tls_version} {session.key_exchange_group}",
            session.tls_cipher if session.tls_cipher != session.cipher else "",
        ],
        [
            f"rx {output.bytes_text(session.rx_bytes)} ({session.rx_packets})",
            f"tx {output.bytes_text(session.tx_bytes)} ({session.tx_packets})",
            f"drops: {output.counts_text(session.drops) or 'none'}",
        ],
        [output.duration_text(age), output.duration_text(session.keys_age_s)],
    ]
    # one line a fact: a line end inside a peer's text must not make a second one
    return ["\n".join(output.clean(line.strip()) for line in lines if line) for lines in cells]


def _print_for_scripts(args: argparse.Namespace, status: Status) -> None:
    keys = status.keys
    facts = [
        (name, _cell(getattr(status, name)))
        for name in (field.name for field in fields(Status))
        if name not in {"sessions", "offloads", "keys", "client"}
    ]
    if status.client is not None:
        facts += [
            (f"client {field.name}", _cell(getattr(status.client, field.name)))
            for field in fields(status.client)
        ]
    facts += [(f"offload {each.name}", f"{each.state} {each.reason}") for each in status.offloads]
    if keys is not None:
        facts += [
            (f"keys {field.name}", _cell(getattr(keys, field.name))) for field in fields(keys)
        ]
    output.print_facts(args, facts)
    if status.sessions:
        print()
        columns = [field.name for field in fields(SessionStatus)]
        rows = [[_cell(getattr(each, column)) for column in columns] for each in status.sessions]
        output.print_table(args, columns, rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{key}={count}" for key, count in sorted(value.items()))
    return str(value)
