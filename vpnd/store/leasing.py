"""Leases decided by policy and kept in the store."""

import secrets
from collections.abc import Container
from dataclasses import replace
from ipaddress import IPv6Network

from vpnd.errors import StoreError
from vpnd.policy.leases import ULA_RANDOM_SIZE, Lease, Pool, assign, ula_network
from vpnd.store.contract import Conflict, Leases, Sessions, Settings

MAX_TRIES = 8  # against other gateways' writes; each try sees their result
ULA_SETTING = "network.ipv6"


class KeysInUse:
    """The lease keys of all sessions, live or resumable, as of the first question.

    Most logins find their lease and never ask; reading a thousand sessions takes 4 ms.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._keys: frozenset[str] | None = None

    def __contains__(self, key: object) -> bool:
        if self._keys is None:
            self._keys = frozenset(session.lease_key for session in self._sessions.all())
        return key in self._keys


def take_lease(
    leases: Leases, pool: Pool, key: str, *, in_use: Container[str], now: float
) -> Lease:
    """Return the stored lease of `key`, used `now`; a new one takes the place of an idle one.

    `in_use`: the keys of all sessions that live or may still be resumed (`KeysInUse`).
    Raises PoolExhausted, StoreError.
    """
    for _ in range(MAX_TRIES):
        try:
            return _take_once(leases, pool, key, in_use, now)
        except Conflict:
            continue
    raise StoreError(f"lease {key}: other programs keep changing the leases; try again")


def _take_once(leases: Leases, pool: Pool, key: str, in_use: Container[str], now: float) -> Lease:
    stored = leases.get(key)
    if stored is not None and stored.index in pool:
        return leases.put(replace(stored, last_used=now))
    assignment = assign(pool, key, leases.all(), in_use)
    if assignment.taken_from is not None:
        leases.delete(assignment.taken_from.key)
    revision = 0 if stored is None else stored.revision
    return leases.put(Lease(key, assignment.index, now, revision))


def touch_lease(leases: Leases, key: str, *, now: float) -> None:
    """Note that a session with this lease has just ended."""
    stored = leases.get(key)
    if stored is None:
        return
    try:
        leases.put(replace(stored, last_used=now))
    except Conflict:  # somebody else uses it, later than we did
        return


def forget_idle(leases: Leases, *, in_use: Container[str], unused_since: float) -> int:
    """Forget the leases that no session has had since then; return how many there were."""
    idle = [lease for lease in leases.all() if lease.last_used <= unused_since]
    gone = [lease.key for lease in idle if lease.key not in in_use]
    for key in gone:
        leases.delete(key)
    return len(gone)


def own_ula_network(settings: Settings) -> IPv6Network:
    """Return this server's random /64, chosen at the first call and kept ever after."""
    fresh = ula_network(secrets.token_bytes(ULA_RANDOM_SIZE))
    kept = settings.keep(ULA_SETTING, str(fresh))
    try:
        return IPv6Network(kept)
    except ValueError as exc:
        raise StoreError(
            f"setting {ULA_SETTING}: {kept!r} is no IPv6 network; set network.ipv6 in server.toml"
        ) from exc
