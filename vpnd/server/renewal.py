"""Renewing clients' certificates, the part of the process that faces the network.

    CONNECT with a request ─► requests/SERIAL.json ··· the authority, another user ··· answers/
    a later CONNECT        ◄─ the certificate
    a TLS connection with it ─► the store knows the new serial number from then on

The old certificate stays good until the client has shown the new one, so that a client that
loses it on the way has lost nothing.  Nothing is decided here: who may have what is judged
where it is signed.
"""

from base64 import b64encode
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from vpnd import log
from vpnd.auth.contract import CertificateFacts
from vpnd.errors import StoreError
from vpnd.pki import spool
from vpnd.pki.certificates import serial_text
from vpnd.pki.reading import load_certificates
from vpnd.server.sessions import LiveTunnel, Sessions
from vpnd.store.contract import Client, Store
from vpnd.worker.messages import OpenQuery, OpenReply

ASK_AGAIN_S = 10.0  # seconds between two writes of one request: each starts the authority


class Renewals:
    """Requests of clients, answers to them, and what becomes of the store."""

    def __init__(self, state_dir: Path, store: Store, sessions: Sessions) -> None:
        """Make the two folders.  Raises StoreError."""
        self._state_dir = state_dir
        self._store = store
        self._sessions = sessions
        self._asked: dict[str, float] = {}
        try:
            spool.prepare(state_dir)
            self._forget_strangers()
        except OSError as exc:
            raise StoreError(
                f"{state_dir}: no folder can be made ({exc.strerror}); give it to this user"
            ) from exc

    def open(self, query: OpenQuery, now: float) -> OpenReply:
        """Decide about a CONNECT as `Sessions.open` does, and renew beside it."""
        self.adopt(query.certificate)
        reply = self._sessions.open(query, now)
        if query.renewal and not reply.refused:
            reply = replace(reply, renewed=self._exchange(query, now))
        return reply

    def _forget_strangers(self) -> None:
        """Remove answers to certificates that are nobody's any more."""
        for serial in spool.answered(self._state_dir):
            if self._store.clients.by_serial(serial) is None:
                spool.forget(self._state_dir, serial)

    def _exchange(self, query: OpenQuery, now: float) -> list[str]:
        """Return the certificate that waits for this client, or leave its request."""
        shown = query.certificate
        known = self._known(shown)
        if shown is None or known is None or known.serial != shown.serial or known.foreign:
            return []
        found = self._answer(known)
        if found:
            return [b64encode(each.public_bytes(Encoding.DER)).decode() for each in found]
        if 0 <= now - self._asked.get(known.serial, -ASK_AGAIN_S) < ASK_AGAIN_S:
            return []
        self._asked[known.serial] = now
        try:
            left = spool.put_request(
                self._state_dir, known.serial, query.renewal, query.certificate_der
            )
            problem = "" if left else "too many requests wait: see vpnctl pki renew"
        except OSError as exc:
            problem = str(exc.strerror)
        if problem:
            log.error("certificate not renewed", user=known.user, client=known.name, error=problem)
        else:
            log.event("certificate to be renewed", user=known.user, client=known.name)
        return []

    def adopt(self, shown: CertificateFacts | None) -> None:
        """Know a client by its next certificate, if that is what it shows."""
        try:
            known = self._known(shown)
            if shown is None or known is None or known.serial == shown.serial:
                return
            found = self._answer(known)
            if not found or serial_text(found[0]) != shown.serial:
                return
            self._supersede(known, shown)
        except StoreError as exc:  # the old one is still good, and the next try may work
            log.error("certificate not taken", user=shown and shown.user, error=str(exc))

    def _known(self, shown: CertificateFacts | None) -> Client | None:
        """Return the client that a certificate names, unless it is revoked."""
        if shown is None or shown.user is None or shown.client is None:
            return None
        known = self._store.clients.get(shown.user, shown.client)
        return None if known is None or known.revoked_at is not None else known

    def _answer(self, known: Client) -> list[x509.Certificate]:
        """Return the chain that the authority has made for a client, [] for none."""
        try:
            return load_certificates(spool.get_answer(self._state_dir, known.serial))
        except ValueError:
            return []

    def _supersede(self, known: Client, shown: CertificateFacts) -> None:
        """Put the new serial number in the place of the old one, for its sessions too."""
        self._store.clients.put(replace(known, serial=shown.serial, not_after=shown.not_after))
        for session in self._store.sessions.all():
            of_client = (session.user, session.client) == (known.user, known.name)
            if of_client and session.serial == known.serial:
                self._store.sessions.put(replace(session, serial=shown.serial))
        for tunnel in self._tunnels():
            tunnel.session = self._store.sessions.get(tunnel.session.id) or tunnel.session
        log.event("certificate renewed", user=known.user, client=known.name)
        self._asked.pop(known.serial, None)
        try:
            spool.forget(self._state_dir, known.serial)
        except OSError as exc:
            log.warning("answer not removed", client=known.name, error=str(exc.strerror))

    def _tunnels(self) -> Iterable[LiveTunnel]:
        return [*self._sessions.live.values(), *self._sessions.coming.values()]
