"""`vpnctl status`: the daemon and its sessions.

Exit status 0 when it is up, 1 when it answers but is down, 3 when it is not running.
"""

import argparse
import sys
from dataclasses import fields
from typing import Any

from vpnctl import output
from vpnctl.connection import call
from vpnd.ipc.api import ADMIN_GROUP, SessionStatus, Status

NAME = "status"
HELP = "show the daemon, its interface and its sessions (what a bare `vpnctl` does)"

EXIT_DOWN = 1
HEADINGS = ("USER", "INNER, OUTER", "CHANNEL", "BYTES (PACKETS)", "AGE, KEYS")


def register(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: none of its own."""
    del parser


def run(args: argparse.Namespace) -> int:
    """Ask the daemon and print its answer."""
    status = call(args, lambda daemon: daemon.get_status())
    if args.json:
        output.print_json(status)
    elif output.wants_table(args):
        _print_for_people(args, status)
    else:
        _print_for_scripts(args, status)
    return 0 if status.state == "up" else EXIT_DOWN


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
    since = "" if status.uptime_s is None else f" for {output.duration_text(status.uptime_s)}"
    facts: list[tuple[str, str]] = [
        (status.role, f"{status.state}{since}, version {status.version}")
    ]
    if not status.restricted:
        offloads = ", ".join(
            f"{offload.name} {offload.state}" + (f" ({offload.reason})" if offload.reason else "")
            for offload in status.offloads
        )
        facts += [
            ("interface", " ".join((status.interface or "none", *status.addresses))),
            ("listening on", ", ".join(status.listen)),
            ("firewall", status.firewall_backend or "none"),
            ("offloads", offloads),
            ("workers", str(status.workers)),
            ("certificate", _keys_text(status)),
            ("drops", output.counts_text(status.drops) or "none"),
        ]
    return [*facts, ("users", str(status.users)), ("sessions", str(status.sessions_count))]


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
        if name not in {"sessions", "offloads", "keys"}
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
