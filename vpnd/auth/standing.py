"""Whether a user, and the client's certificate, are still welcome: the store's word.

Asked at every login, CONNECT and renewal.  OpenSSL checks chain and dates, this checks
the rest; nothing here is cached.
"""

from vpnd.auth.contract import CertificateFacts
from vpnd.store.contract import NAME, Session, Store, User

SHOWN = 64  # characters of a peer's claim that get into a log


def user_refusal(user: User | None, now: float) -> str | None:
    """Return why this user may not have a session, None if he may."""
    if user is None:
        return "unknown user"
    if user.disabled:
        return "user is disabled"
    if user.valid_until is not None and now >= user.valid_until:
        return "user has expired"
    return None


def certificate_refusal(store: Store, certificate: CertificateFacts, now: float) -> str | None:
    """Return why this certificate opens no session, None if it does.  Raises StoreError."""
    if certificate.user is None or certificate.client is None:
        return "certificate names no user and client"
    if now >= certificate.not_after:
        return "certificate has expired"
    return client_refusal(store, certificate.user, certificate.client, certificate.serial, now)


def client_refusal(
    store: Store, user: str, client: str, serial: str | None, now: float
) -> str | None:
    """Return why a client with this serial number may not have a session, None if it may."""
    known = store.clients.get(user, client)
    if known is None:
        return "unknown client"
    if known.revoked_at is not None:
        return "client is revoked"
    if known.serial != serial:
        return "serial number is not that of the client's certificate"
    if now >= known.not_after:
        return "certificate has expired"
    return user_refusal(store.users.get(user), now)


def session_refusal(
    store: Store, user: str, client: str | None, serial: str | None, now: float
) -> str | None:
    """Return why a session may not go on or resume, None if it may.  Raises StoreError."""
    if client is None:
        return user_refusal(store.users.get(user), now)
    return client_refusal(store, user, client, serial, now)


def resume_refusal(
    store: Store, session: Session, certificate: CertificateFacts | None, now: float
) -> str | None:
    """Return why a session may not have another tunnel, None if it may.  Raises StoreError.

    The certificate beside its cookie is checked too; a stock client that has got the cookie from
    another program may show none.
    """
    if session.client is not None and certificate is not None:
        if (certificate.user, certificate.client) != (session.user, session.client):
            return "certificate of another client"  # and so the cookie is, too
        refusal = certificate_refusal(store, certificate, now)
        if refusal is not None:
            return refusal
    return session_refusal(store, session.user, session.client, session.serial, now)


def standing_end(store: Store, user: str, client: str | None) -> float | None:
    """Return when user or client will not be welcome any more, None for never."""
    known = store.users.get(user)
    device = store.clients.get(user, client) if client is not None else None
    ends = [known.valid_until if known else None, device.not_after if device else None]
    return min((end for end in ends if end is not None), default=None)


def shown(claim: str) -> str:
    """Return a name that a peer claims in a form that cannot disturb a log."""
    return claim if NAME.fullmatch(claim) else ascii(claim[:SHOWN])
