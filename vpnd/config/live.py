"""Which keys of a server's configuration take effect while it runs, and which at its next start.

The table below is the whole truth: the reload goes by it, and so do its report and the sample.
"""

from dataclasses import dataclass, fields, replace
from enum import Enum
from typing import Any

from vpnd.config.model import ServerConfig


class Effect(Enum):
    """When a new value is in force."""

    LIVE = "live"
    """After a reload, for what begins then; what is there already goes on as it was."""
    RESTART = "restart"
    """After a restart: clients have been told it, or the helper opened it."""


LIVE, RESTART = Effect.LIVE, Effect.RESTART
EFFECTS: dict[str, Effect] = {
    "server.addresses": RESTART,
    "server.port": RESTART,
    "server.name": LIVE,
    "server.remotes": LIVE,
    "network.interface": RESTART,
    "network.ipv4": RESTART,
    "network.ipv6": RESTART,
    "network.mtu": LIVE,
    "network.dns": LIVE,
    "network.default_domain": LIVE,
    "network.routes": LIVE,
    "network.exclude": LIVE,
    "network.client_to_client": LIVE,
    "tls.certificate": LIVE,
    "tls.key": LIVE,
    "tls.client_ca": LIVE,
    "tls.min_version": LIVE,
    "dtls.enabled": LIVE,
    "auth.methods": LIVE,
    "auth.login_timeout_s": LIVE,
    "auth.password_attempts": LIVE,
    "session.cookie_timeout_s": LIVE,
    "session.session_timeout_s": LIVE,
    "session.idle_timeout_s": LIVE,
    "session.dpd_s": LIVE,
    "session.keepalive_s": LIVE,
    "session.rekey_s": LIVE,
    "limits.connections": LIVE,
    "limits.connections_per_address": LIVE,
    "limits.handshakes_pending": LIVE,
    "firewall.backend": RESTART,
    "firewall.masquerade": LIVE,
    "firewall.clamp_mss": LIVE,
    "helper.socket": RESTART,
    "ipc.admin_group": LIVE,
    "log.level": LIVE,
    "log.anonymise": LIVE,
    "log.keep_days": LIVE,
}


@dataclass(frozen=True, slots=True)
class Merged:
    """What a running server makes of a new configuration."""

    config: ServerConfig
    """To run with from now on: what needs a restart is as it was."""
    applied: tuple[str, ...]
    needs_restart: tuple[str, ...]


def flat(config: ServerConfig) -> dict[str, Any]:
    """Return all values by their keys, "network.mtu" and the like."""
    return {
        f"{table.name}.{key.name}": getattr(getattr(config, table.name), key.name)
        for table in fields(config)
        for key in fields(getattr(config, table.name))
    }


def merge(running: ServerConfig, wanted: ServerConfig) -> Merged:
    """Return `wanted`, but with the running values of all keys that need a restart."""
    before, after = flat(running), flat(wanted)
    changed = [key for key in after if after[key] != before[key]]
    kept = [key for key in changed if EFFECTS[key] is RESTART]
    config = wanted
    for key in kept:
        table, _, name = key.partition(".")
        change: dict[str, Any] = {name: before[key]}
        config = replace(config, **{table: replace(getattr(config, table), **change)})
    applied = tuple(key for key in changed if key not in kept)
    return Merged(config, applied, tuple(kept))
