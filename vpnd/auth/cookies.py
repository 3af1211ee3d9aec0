"""Bearer secrets: made at random, kept as hashes only."""

import hashlib
import secrets

COOKIE_BYTES = 32  # 256 bits: never guessed, so an unsalted hash is enough
SESSION_ID_BYTES = 8  # a name for people and logs, no secret


def new_cookie() -> str:
    """Return 43 characters of [A-Za-z0-9_-]; `=` would break openconnect's --cookie."""
    return secrets.token_urlsafe(COOKIE_BYTES)


def cookie_hash(cookie: str) -> bytes:
    """Return the 32 bytes that the store keeps, for any text that a peer may send."""
    return hashlib.sha256(cookie.encode("utf-8", "surrogatepass")).digest()


def new_session_id() -> str:
    """Return 16 hex digits that carry no meaning."""
    return secrets.token_hex(SESSION_ID_BYTES)
