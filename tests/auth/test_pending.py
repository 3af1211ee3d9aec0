"""The table of half-finished logins is bounded, also under a flood."""

from vpnd.auth import pending
from vpnd.auth.cookies import cookie_hash
from vpnd.auth.pending import MAX_PENDING_LOGINS, MAX_PENDING_PER_SOURCE, PendingLogins


def test_a_login_is_found_by_its_cookie_until_its_deadline() -> None:
    logins = PendingLogins(60)
    cookie, login = logins.add("192.0.2.1", 100.0)
    assert logins.find(cookie, 159.9) is login
    assert logins.find(cookie, 160.0) is None
    assert logins.find("another", 100.0) is None


def test_the_cookie_itself_is_not_kept() -> None:
    """A look into the memory of the process gives nobody a login."""
    logins = PendingLogins(60)
    cookie, _ = logins.add("192.0.2.1", 100.0)
    assert list(logins._logins) == [cookie_hash(cookie)]


def test_one_source_pushes_out_its_own_logins_first() -> None:
    """Somebody who opens forms all day does not take anybody else's."""
    logins = PendingLogins(60)
    others, _ = logins.add("192.0.2.1", 0.0)
    flood = [logins.add("2001:db8::1", 1.0)[0] for _ in range(MAX_PENDING_PER_SOURCE + 5)]
    assert logins.find(others, 2.0) is not None
    assert [logins.find(cookie, 2.0) is not None for cookie in flood[:6]] == [False] * 5 + [True]
    assert len(logins) == MAX_PENDING_PER_SOURCE + 1


def test_many_sources_push_out_the_oldest() -> None:
    """The table never grows beyond its bound."""
    logins = PendingLogins(60)
    cookies = [
        logins.add(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 0.0)[0]
        for n in range(MAX_PENDING_LOGINS + 1)
    ]
    assert len(logins) == MAX_PENDING_LOGINS
    assert logins.find(cookies[0], 1.0) is None
    assert logins.find(cookies[1], 1.0) is not None


def test_what_expires_or_is_dropped_leaves_nothing_behind() -> None:
    """Counts per source would otherwise grow for ever."""
    logins = PendingLogins(60)
    cookie, _ = logins.add("192.0.2.1", 0.0)
    logins.drop(cookie)
    logins.drop(cookie)
    for number in range(10):
        logins.add(f"192.0.2.{number}", float(number))
    logins.expire(64.0)
    assert len(logins) == 5
    logins.expire(1000.0)
    assert logins._by_source == {}
    assert pending.MAX_PENDING_PER_SOURCE < MAX_PENDING_LOGINS
