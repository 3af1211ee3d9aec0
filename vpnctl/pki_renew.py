"""One run of the renewal: certificates that are due, clients' requests, the revocation list.

Runs every day and whenever a client has asked.  Nothing here needs the network; the running
server is asked over its own socket, and what needs it waits when there is none.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from vpnctl.connection import DaemonAbsent, call
from vpnctl.homes import Home
from vpnd.errors import VpnError
from vpnd.ipc.api import Client
from vpnd.pki import renewal_jobs
from vpnd.pki.child import ensure_directory
from vpnd.pki.schedule import ALERT_BEFORE

BATCH = 16  # requests in one answer of the authority's process
FOREIGN_ALERT = timedelta(days=30)  # somebody has to carry a file to somebody
MAX_BATCHES = 256  # in one run: more than the spool holds


@dataclass(slots=True)
class Renewed:
    """What a run has done, in words."""

    done: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    alerts: list[str] = field(default_factory=list)
    """What an operator has to look after."""
    clients: int = 0
    """Clients' certificates renewed."""


def renew(
    ca_home: Home,
    server_home: Home,
    now: datetime,
    *,
    force: bool,
    list_clients: Callable[[], list[Client]],
    tell_server: Callable[[], str],
) -> Renewed:
    """Renew what is due; `force`: the server's certificate in any case.

    `list_clients` asks the running server (DaemonAbsent: then only what needs no store is
    done), `tell_server` has it take new certificates and returns what to say of it, or raises
    VpnError, which is an alert.  Raises VpnError.
    """
    ensure_directory(ca_home.directory, ca_home.account, widest=0o700)
    ensure_directory(server_home.directory, server_home.account, widest=0o755)
    renewed = Renewed()
    if _renew_server(ca_home, server_home, now, renewed, force=force):
        try:
            renewed.done.append(tell_server())
        except VpnError as exc:
            renewed.alerts.append(f"the running server did not take its new certificate: {exc}")
    try:
        clients = [plain_client(client) for client in list_clients()]
    except DaemonAbsent:
        renewed.done.append("the server does not run: clients' requests and the list wait for it")
        return renewed
    _renew_clients(ca_home, server_home, now, clients, renewed)
    renewed.alerts += _ending(clients, now)
    made = ca_home.run(renewal_jobs.make_list, clients=clients, now=now.timestamp())
    server_home.run(renewal_jobs.install_list, crl=made["crl"])
    return renewed


def _renew_server(
    ca_home: Home, server_home: Home, now: datetime, renewed: Renewed, *, force: bool
) -> bool:
    """Renew the issuing CA and the server's certificate; return whether anything is new."""
    server_home.run(renewal_jobs.complete)
    state = server_home.run(renewal_jobs.server_state)
    if not state:
        raise VpnError(
            f"{server_home.directory}: there is no server.crt; make it with vpnctl pki init"
        )
    wanted = {name: state[name] for name in ("certificate", "ca", "request")}
    answer = ca_home.run(renewal_jobs.renew, **wanted, force=force, now=now.timestamp())
    renewed.done += [f"renewed {what}" for what in answer["done"]]
    renewed.alerts += answer["alerts"]
    if not answer["certificate"]:
        return False
    server_home.run(renewal_jobs.install, certificate=answer["certificate"], ca=answer["ca"])
    return True


def _renew_clients(
    ca_home: Home,
    server_home: Home,
    now: datetime,
    clients: list[dict[str, Any]],
    renewed: Renewed,
) -> None:
    """Answer all requests, those that come meanwhile too."""
    for _ in range(MAX_BATCHES):
        waiting = server_home.run(renewal_jobs.pending, at_most=BATCH)["requests"]
        if not waiting:
            return
        answers = ca_home.run(
            renewal_jobs.sign_clients, requests=waiting, clients=clients, now=now.timestamp()
        )["answers"]
        server_home.run(renewal_jobs.answer, answers=answers)
        for answer in answers:
            _note(answer, clients, renewed)


def _ending(clients: list[dict[str, Any]], now: datetime) -> list[str]:
    """Return a line for each client that is about to be locked out."""
    found = []
    for client in clients:
        left = client["not_after"] - now.timestamp()
        soon = (FOREIGN_ALERT if client["foreign"] else ALERT_BEFORE).total_seconds()
        if client["revoked_at"] is None and 0 < left < soon:
            end = datetime.fromtimestamp(client["not_after"], UTC)
            why = (
                "other makers' clients cannot renew: revoke it and add it anew"
                if client["foreign"]
                else "it has not asked for another one"
            )
            name = f"client {client['name']} of user {client['user']}"
            found.append(f"{name} ends on {end:%Y-%m-%d}: {why}")
    return found


def _note(answer: Mapping[str, str], clients: list[dict[str, Any]], renewed: Renewed) -> None:
    whose = next((c for c in clients if c["serial"] == answer["serial"]), None)
    name = f"client {whose['name']} of user {whose['user']}" if whose else "an unknown client"
    if answer["refusal"]:
        renewed.refused.append(f"{name} (serial {answer['serial']}): {answer['refusal']}")
    else:
        renewed.clients += 1
        renewed.done.append(f"renewed the certificate of {name}")


def plain_client(client: Client) -> dict[str, Any]:
    """Return what the authority has to know of a client."""
    names = ("user", "name", "serial", "not_after", "foreign", "revoked_at")
    return {name: getattr(client, name) for name in names}


def running_server(args: argparse.Namespace) -> Callable[[], list[Client]]:
    """Return what asks the server on the command line's run directory for its clients."""
    return lambda: call(args, lambda daemon: daemon.list_clients())
