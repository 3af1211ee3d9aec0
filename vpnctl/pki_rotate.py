"""Putting the server's next key in use: the one that every profile has announced already.

A profile carries the pins of the key in use and of the next one.  One that is older than the
next key knows neither afterwards; its clients are named before anything is done.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from vpnctl.homes import Home
from vpnd.errors import VpnError
from vpnd.ipc.api import Client
from vpnd.pki import jobs, renewal_jobs
from vpnd.pki.certificates import parse_names
from vpnd.pki.keys import KeyType

SHOWN = 10  # clients named in a refusal; `vpnctl client list` shows all


def rotate(
    ca_home: Home,
    server_home: Home,
    key_type: KeyType,
    now: datetime,
    *,
    force: bool,
    list_clients: Callable[[], list[Client]],
) -> dict[str, Any]:
    """Put the next key in use and make another one; return pins and who is locked out.

    Without `force` nobody may be, which only the running server can say.  Raises VpnError.
    """
    following = server_home.run(renewal_jobs.next_key)
    state = server_home.run(renewal_jobs.server_state)
    late = _older(list_clients(), state["next_made"]) if state["next_made"] else []
    if late and not force:
        raise VpnError(_refusal(late, state["next_made"]))
    signed = ca_home.run(
        jobs.sign_server,
        request=following["request"],
        names=list(parse_names(state["certificate"])),
        now=now.timestamp(),
    )
    made = server_home.run(
        renewal_jobs.rotate, certificate=signed["certificate"], key_type=key_type
    )
    return {"pins": made["pins"], "locked_out": [f"{c.user}/{c.name}" for c in late]}


def _older(clients: Sequence[Client], made: int) -> list[Client]:
    """Return the clients whose profiles do not know the next key."""
    return [client for client in clients if client.revoked_at is None and client.created < made]


def _refusal(late: Sequence[Client], made: int) -> str:
    names = ", ".join(f"{client.user}/{client.name}" for client in late[:SHOWN])
    rest = f" and {len(late) - SHOWN} more" if len(late) > SHOWN else ""
    day = datetime.fromtimestamp(made, UTC)
    return (
        f"the next key is of {day:%Y-%m-%d %H:%M} UTC, and older profiles do not know it: {names}"
        f"{rest}; revoke these clients and add them anew, or lock them out with --force"
    )
