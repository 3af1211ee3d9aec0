"""Cookies are long, random and storable only as hashes."""

import hashlib
import re

from vpnd.auth.cookies import cookie_hash, new_cookie, new_session_id


def test_a_cookie_has_256_bits_in_an_alphabet_that_every_client_keeps_whole() -> None:
    """openconnect's --cookie splits at `=`."""
    cookies = {new_cookie() for _ in range(100)}
    assert len(cookies) == 100
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", cookie) for cookie in cookies)


def test_any_text_a_peer_sends_has_a_hash() -> None:
    """A lone surrogate in a header must not end the login with a traceback."""
    assert cookie_hash("abc") == hashlib.sha256(b"abc").digest()
    assert len(cookie_hash("\ud800" * 10_000)) == 32


def test_session_ids_are_short_names() -> None:
    assert re.fullmatch(r"[0-9a-f]{16}", new_session_id())
    assert new_session_id() != new_session_id()
