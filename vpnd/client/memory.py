"""The session over a restart of vpnd: kept by systemd in memory, never on a disk.

A cookie opens the tunnel without another login, so it is a secret.  It is in a sealed memfd in
systemd's store for this unit, which ends with a stop of the unit.
"""

import hashlib
import json

from vpnd.config.profile_options import ClientConfig
from vpnd.errors import Malformed
from vpnd.host.systemd import Kept
from vpnd.worker.control import decode, encode
from vpnd.worker.messages import HeldSession

NAME = "session"
LENGTH = 4  # bytes of the length in front of a message

Remote = tuple[str, int]


class SessionMemory:
    """What the next start is to know of the sessions of this one."""

    def __init__(self, config: ClientConfig, kept: Kept) -> None:
        self._kept = kept
        self._remotes = {(remote.host, remote.port) for remote in config.remotes}
        client = config.client
        # the key, not the certificate: a renewed one keeps key and session
        who = json.dumps([client.user, client.group, client.path, config.tls.key])
        self._who = hashlib.sha256(who.encode()).digest()

    def keep(self, sessions: dict[Remote, HeldSession]) -> None:
        """Keep these instead of what was kept before."""
        if sessions:
            self._kept.put_secret(NAME, self._who + b"".join(map(encode, sessions.values())))
        else:
            self.forget()

    def recall(self) -> dict[Remote, HeldSession]:
        """Return what was kept, by remote; nothing of another identity, remote or version."""
        data = self._kept.take_secret(NAME)
        if not data.startswith(self._who):
            return {}
        found: dict[Remote, HeldSession] = {}
        rest = data[len(self._who) :]
        try:
            while rest:
                end = LENGTH + int.from_bytes(rest[:LENGTH])
                held, _, _ = decode(rest[LENGTH:end])
                if isinstance(held, HeldSession) and (held.host, held.port) in self._remotes:
                    found[held.host, held.port] = held
                rest = rest[end:]
        except Malformed:
            return {}
        return found

    def forget(self) -> None:
        """The session is over."""
        self._kept.drop(NAME)
