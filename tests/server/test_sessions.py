"""Who gets a tunnel, with which addresses, and when it is over: over the memory store."""

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

import pytest

from vpnd.auth.contract import CertificateFacts
from vpnd.auth.login import LoginAccepted
from vpnd.config.model import NetworkOptions, ServerConfig, ServerLogOptions, SessionOptions
from vpnd.errors import StoreError
from vpnd.policy.leases import MAX_SLOTS, Pool, PoolExhausted
from vpnd.server.grant import OWN_DPD_S
from vpnd.server.retention import INTERVAL
from vpnd.server.sessions import Change, Sessions
from vpnd.store.contract import Client, Session, Store, User
from vpnd.store.memory import MemoryStore
from vpnd.store.sqlite import open_store
from vpnd.worker.messages import (
    OpenQuery,
    OpenReply,
    TunnelEnded,
    TunnelProved,
    TunnelTakesOver,
)

NOW = 10_000.0
COOKIE_TIMEOUT = 300
IPV4, IPV6 = IPv4Network("10.8.0.0/24"), IPv6Network("fd00::/64")
PASSWORD = LoginAccepted("alice", None, "password", None)
LAPTOP = LoginAccepted("alice", "laptop", "certificate", "1f")
SHOWN = CertificateFacts("alice", "laptop", "1f", NOW * 2)


class Server:
    """The sessions of one run of a server, and the tunnels that it has told to end."""

    def __init__(
        self, store: Store, *, pool: Pool | None = None, session_timeout_s: int = 0
    ) -> None:
        self.store = store
        self.told: list[tuple[int, str]] = []
        config = ServerConfig(
            network=NetworkOptions(ipv4=IPV4, routes=(IPv4Network("192.0.2.0/24"),)),
            session=SessionOptions(
                cookie_timeout_s=COOKIE_TIMEOUT, session_timeout_s=session_timeout_s
            ),
        )
        self.sessions = Sessions(
            config, store, pool or Pool(IPV4, IPV6), lambda n, why: self.told.append((n, why))
        )

    def connect(
        self, cookie: str, now: float = NOW, *, ipv4: bool = True, ipv6: bool = True
    ) -> OpenReply:
        query = OpenQuery(cookie, "192.0.2.9:4000", None, "host", "agent", ipv4, ipv6)
        return self.sessions.open(query, now)

    def asked(
        self,
        cookie: str,
        now: float = NOW,
        *,
        rekey: bool = False,
        certificate: CertificateFacts | None = SHOWN,
    ) -> OpenReply:
        """Ask as a client of our own does."""
        outer, is_own = "192.0.2.9:4001", True
        query = OpenQuery(
            cookie, outer, certificate, "host", "agent", True, True, is_own=is_own, rekey=rekey
        )
        return self.sessions.open(query, now)

    def own(self, cookie: str, now: float = NOW, *, rekey: bool = False) -> OpenReply:
        """Connect as a client of our own does."""
        reply = self.asked(cookie, now, rekey=rekey)
        assert reply.refused == 0
        return reply

    def prove(self, reply: OpenReply) -> None:
        """The client's first packet came in."""
        self.take_over(reply)
        self.sessions.proved(TunnelProved(reply.tunnel, reply.session))

    def take_over(self, reply: OpenReply) -> None:
        self.sessions.take_over(TunnelTakesOver(reply.tunnel, reply.session))

    def granted(self, cookie: str, now: float = NOW) -> OpenReply:
        reply = self.connect(cookie, now)
        assert reply.refused == 0
        return reply

    def end(self, reply: OpenReply, now: float = NOW, *, final: bool = False) -> None:
        self.sessions.ended(TunnelEnded(reply.tunnel, reply.session, "reason", final, 1, 2), now)


@pytest.fixture
def store() -> Store:
    made: Store = MemoryStore()
    made.users.put(User("alice"))
    made.users.put(User("bob"))
    made.clients.put(Client("alice", "laptop", "1f", created=0.0, not_after=NOW + 10_000))
    return made


@pytest.fixture
def server(store: Store) -> Server:
    return Server(store)


def test_a_tunnel_gets_what_the_configuration_says(server: Server) -> None:
    """Addresses, routes, timers; and it is known as live."""
    reply = server.granted(server.sessions.begin(PASSWORD, NOW))
    assert (reply.address4, reply.netmask4) == ("10.8.0.2", "255.255.255.0")
    assert (reply.address6, reply.prefix6) == ("fd00::2", 64)
    assert reply.split_include == ["192.0.2.0/24"]
    assert reply.session_left_s == 0
    assert [tunnel.session.id for tunnel in server.sessions.live.values()] == [reply.session]


def test_the_cookie_is_not_in_the_store(server: Server, store: Store) -> None:
    """Whoever reads the database must not be able to come in."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    assert cookie not in repr(store.sessions.all())
    assert cookie.encode() not in store.sessions.all()[0].cookie_hash


def test_a_client_that_comes_back_by_its_cookie_gets_the_same_addresses(server: Server) -> None:
    """Or a stock client gives up; others who came meanwhile have others."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    first = server.granted(cookie)
    server.end(first, NOW + 10)
    other = server.granted(server.sessions.begin(PASSWORD, NOW + 20), NOW + 20)
    again = server.granted(cookie, NOW + 30)
    assert (again.address4, again.address6) == (first.address4, first.address6)
    assert again.session == first.session
    assert again.tunnel != first.tunnel
    assert other.address4 != first.address4


@pytest.mark.parametrize("elapsed", [0, COOKIE_TIMEOUT - 1])
def test_a_broken_tunnel_may_resume_within_the_cookie_timeout(
    server: Server, elapsed: float
) -> None:
    """And not a second after."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    server.end(server.granted(cookie), NOW + 1000)
    assert server.connect(cookie, NOW + 1000 + elapsed).refused == 0


def test_after_the_cookie_timeout_the_client_logs_in_again(server: Server, store: Store) -> None:
    """Both before and after the session was swept away."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    server.end(server.granted(cookie), NOW + 1000)
    late = NOW + 1000 + COOKIE_TIMEOUT
    assert server.connect(cookie, late).refused == 401
    server.sessions.expire(late)
    assert store.sessions.all() == []
    assert server.connect(cookie, late).refused == 401


def test_a_login_that_never_connects_runs_out(server: Server, store: Store) -> None:
    """It holds a lease key, so it may not wait for ever."""
    server.sessions.begin(PASSWORD, NOW)
    server.sessions.expire(NOW + COOKIE_TIMEOUT - 1)
    assert len(store.sessions.all()) == 1
    server.sessions.expire(NOW + COOKIE_TIMEOUT)
    assert store.sessions.all() == []


def test_a_living_tunnel_does_not_run_out(server: Server) -> None:
    """The cookie is good as long as the session lives, however long that is."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    server.granted(cookie)
    server.sessions.expire(NOW + 10**7)
    assert len(server.sessions.live) == 1
    assert server.connect(cookie, NOW + 10**7).refused == 0


def test_the_session_timeout_counts_from_the_login_whatever_happens(store: Store) -> None:
    """A reconnect does not prolong it; the client is told what is left, and then the end."""
    server = Server(store, session_timeout_s=1000)
    cookie = server.sessions.begin(PASSWORD, NOW)
    first = server.granted(cookie, NOW + 100)
    assert first.session_left_s == 900
    server.end(first, NOW + 800)
    second = server.granted(cookie, NOW + 900)
    assert second.session_left_s == 100
    server.sessions.expire(NOW + 999)
    assert server.told == []
    server.sessions.expire(NOW + 1000)
    assert server.told == [(second.tunnel, "session timeout")]
    assert server.connect(cookie, NOW + 1000).refused == 401
    assert not server.sessions.live


def test_a_users_own_goodbye_ends_the_cookie(server: Server) -> None:
    """Stock clients say it when the user stops them."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    server.end(server.granted(cookie), final=True)
    assert server.connect(cookie).refused == 401


def test_the_same_cookie_takes_the_tunnel_over(server: Server) -> None:
    """A client whose old connection only looks alive: the old tunnel ends, the lease stays."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    old, new = server.granted(cookie), server.granted(cookie)
    assert new.address4 == old.address4
    assert [number for number, _ in server.told] == [old.tunnel]
    assert list(server.sessions.live) == [new.tunnel]
    server.end(old, final=True)  # the worker's late report about the replaced one
    assert list(server.sessions.live) == [new.tunnel]
    server.end(new)
    assert server.connect(cookie).refused == 0


def test_one_device_has_one_lease_and_one_tunnel(server: Server) -> None:
    """A second login with the same certificate replaces the first."""
    first_cookie = server.sessions.begin(LAPTOP, NOW)
    first = server.granted(first_cookie)
    second = server.granted(server.sessions.begin(LAPTOP, NOW))
    assert second.address4 == first.address4
    assert [number for number, _ in server.told] == [first.tunnel]
    assert list(server.sessions.live) == [second.tunnel]
    assert server.connect(first_cookie).refused == 401


def test_a_device_does_not_pile_up_sessions(server: Server, store: Store) -> None:
    """A client that logs in every second must not fill the store."""
    for step in range(20):
        server.sessions.begin(LAPTOP, NOW + step)
    assert len(store.sessions.all()) == 1


def test_a_user_with_a_password_may_be_here_several_times(server: Server) -> None:
    """Each login has a slot of its own, and there is a last one."""
    replies = [server.granted(server.sessions.begin(PASSWORD, NOW)) for _ in range(MAX_SLOTS)]
    assert len({reply.address4 for reply in replies}) == MAX_SLOTS
    assert server.told == []
    with pytest.raises(PoolExhausted):
        server.sessions.begin(PASSWORD, NOW)
    assert server.sessions.begin(LoginAccepted("bob", None, "password", None), NOW)


def test_a_full_pool_says_try_later(store: Store) -> None:
    """Not 401: the client's cookie is good."""
    server = Server(store, pool=Pool(IPv4Network("10.8.0.0/30"), None))
    server.granted(server.sessions.begin(LAPTOP, NOW))
    cookie = server.sessions.begin(PASSWORD, NOW)
    reply = server.connect(cookie)
    assert (reply.refused, "address" in reply.reason) == (503, True)
    assert len(server.sessions.live) == 1


@pytest.mark.parametrize("cookie", ["", "x", "A" * 43, "A" * 256])
def test_an_unknown_cookie_is_401(server: Server, cookie: str) -> None:
    """Login cookies are unknown here: they live in another table altogether."""
    server.sessions.begin(PASSWORD, NOW)
    assert server.connect(cookie).refused == 401
    assert not server.sessions.live


def revoke(store: Store) -> None:
    client = store.clients.get("alice", "laptop")
    assert client is not None
    store.clients.put(replace(client, revoked_at=NOW))


def renumber(store: Store) -> None:
    client = store.clients.get("alice", "laptop")
    assert client is not None
    store.clients.put(replace(client, serial="2f"))


def change_user(**changes: object) -> Callable[[Store], None]:
    def change(store: Store) -> None:
        user = store.users.get("alice")
        assert user is not None
        store.users.put(replace(user, **changes))  # type: ignore[arg-type]

    return change


@pytest.mark.parametrize(
    "change",
    [
        revoke,
        renumber,
        change_user(disabled=True),
        change_user(valid_until=NOW),
        lambda store: store.users.delete("alice"),
    ],
)
def test_who_is_no_longer_welcome_is_refused_at_the_connect(
    server: Server, store: Store, change: Callable[[Store], None]
) -> None:
    """The store is asked every time: a cookie is not a ticket past a revocation."""
    cookie = server.sessions.begin(LAPTOP, NOW)
    reply = server.granted(cookie)
    server.end(reply)
    change(store)
    assert server.connect(cookie).refused == 401
    assert not server.sessions.live


def test_an_ended_certificate_ends_the_resumption(server: Server) -> None:
    """The certificate's own end counts for those who return by cookie, too."""
    cookie = server.sessions.begin(LAPTOP, NOW + 9_900)
    assert server.connect(cookie, NOW + 9_999).refused == 0
    assert server.connect(cookie, NOW + 10_000).refused == 401


def test_revoking_a_client_ends_its_sessions_and_no_others(server: Server) -> None:
    """Those that are live are told; those that sleep lose their cookies."""
    laptop, other = server.sessions.begin(LAPTOP, NOW), server.sessions.begin(PASSWORD, NOW)
    reply, kept = server.granted(laptop), server.granted(other)
    assert server.sessions.end_client("alice", "laptop", "certificate revoked") == 1
    assert server.told == [(reply.tunnel, "certificate revoked")]
    assert list(server.sessions.live) == [kept.tunnel]
    assert server.connect(laptop).refused == 401
    assert server.sessions.end_client("alice", "laptop", "again") == 0


def test_a_restart_keeps_sessions_and_gives_them_time(store: Store) -> None:
    """After a kill nobody has noted that the tunnels broke: they count from the restart."""
    before = Server(store)
    cookie, asleep = before.sessions.begin(LAPTOP, NOW), before.sessions.begin(PASSWORD, NOW)
    first = before.granted(cookie)
    before.end(before.granted(asleep), NOW + 10)
    restarted = NOW + 100_000
    store.clients.put(replace(store.clients.get("alice", "laptop"), not_after=restarted * 2))  # type: ignore[type-var]
    after = Server(store)
    assert after.sessions.recover(restarted) == 1
    assert after.connect(asleep, restarted).refused == 401
    reply = after.granted(cookie, restarted + COOKIE_TIMEOUT - 1)
    assert (reply.address4, reply.address6) == (first.address4, first.address6)


def test_a_dead_worker_breaks_all_tunnels_and_ends_no_session(server: Server) -> None:
    """Its clients come back to the next one."""
    cookies = [server.sessions.begin(PASSWORD, NOW) for _ in range(3)]
    replies = [server.granted(cookie) for cookie in cookies]
    server.sessions.workers_gone(NOW + 5)
    assert not server.sessions.live
    assert server.told == []
    again = [server.granted(cookie, NOW + 5 + COOKIE_TIMEOUT - 1) for cookie in cookies]
    assert [reply.address4 for reply in again] == [reply.address4 for reply in replies]


def test_tunnel_numbers_are_never_used_twice(server: Server) -> None:
    """A late report must not hit a successor."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    numbers = [server.granted(cookie).tunnel for _ in range(10)]
    assert len(set(numbers)) == 10


@pytest.mark.parametrize(("ipv4", "ipv6"), [(True, False), (False, True)])
def test_a_client_gets_the_kinds_of_address_it_takes(
    server: Server, ipv4: bool, ipv6: bool
) -> None:
    """The lease holds both; what is not asked for is not said."""
    reply = server.connect(server.sessions.begin(PASSWORD, NOW), ipv4=ipv4, ipv6=ipv6)
    assert (bool(reply.address4), bool(reply.address6)) == (ipv4, ipv6)


def test_a_client_that_takes_no_address_of_ours_is_told_so(store: Store) -> None:
    """An IPv4 client of an IPv6 network: a reason, and neither a tunnel nor a lease."""
    server = Server(store, pool=Pool(None, IPV6))
    reply = server.connect(server.sessions.begin(PASSWORD, NOW), ipv6=False)
    assert reply.refused == 503
    assert not server.sessions.live
    assert store.leases.all() == []


class _Broken(MemoryStore):
    """A store whose sessions cannot be written any more."""

    def fail(self) -> None:
        def put(_session: Session) -> Session:
            raise StoreError("the disk is full")

        self.sessions.put = put  # type: ignore[method-assign]


def test_a_store_that_fails_refuses_new_tunnels_and_keeps_the_living() -> None:
    """Traffic goes on, logins wait; nothing is raised at the worker's report either."""
    store = _Broken()
    store.users.put(User("alice"))
    server = Server(store)
    cookie = server.sessions.begin(PASSWORD, NOW)
    reply = server.granted(cookie)
    store.fail()
    assert server.connect(cookie).refused == 503
    assert list(server.sessions.live) == [reply.tunnel]
    server.end(reply)
    assert not server.sessions.live
    with pytest.raises(StoreError):
        server.sessions.begin(PASSWORD, NOW)


# a client of our own that changes its keys


def test_a_new_tunnel_comes_beside_the_old_and_then_takes_its_place(server: Server) -> None:
    """One session in every list all the time; it is as old as it was."""
    changes: list[Change] = []
    cookie = server.sessions.begin(PASSWORD, NOW)
    old = server.own(cookie)
    server.sessions.on_change = changes.append
    new = server.own(cookie, NOW + 3600, rekey=True)
    assert (old.beside, new.beside) == (0, old.tunnel)
    assert (new.session, new.address4, new.address6) == (
        old.session,
        old.address4,
        old.address6,
    )
    assert list(server.sessions.live) == [old.tunnel]
    assert changes == []
    server.take_over(new)
    assert list(server.sessions.live) == [new.tunnel]
    assert server.sessions.live[new.tunnel].opened_at == NOW
    assert changes == [Change(old.session, "", serving=True, overlapped=True)]
    server.end(old, NOW + 3610)
    assert list(server.sessions.live) == [new.tunnel]
    assert server.told == []
    server.sessions.expire(NOW + 10**7)  # the cookie holds: nothing has been lost
    assert server.connect(cookie, NOW + 10**7).refused == 0


def test_our_own_clients_are_asked_more_often_whether_they_are_there(server: Server) -> None:
    """And say so sooner when they are not answered; others get what is configured."""
    stock = server.granted(server.sessions.begin(PASSWORD, NOW))
    own = server.own(server.sessions.begin(LAPTOP, NOW))
    assert own.dpd_s == OWN_DPD_S < stock.dpd_s


def test_without_a_tunnel_to_stand_beside_the_new_one_serves(server: Server) -> None:
    """The old one broke before its successor was asked for."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    server.end(server.own(cookie), NOW + 1)
    new = server.own(cookie, NOW + 2, rekey=True)
    assert new.beside == 0
    assert list(server.sessions.live) == [new.tunnel]


def test_the_coming_tunnel_serves_when_the_old_one_broke_in_the_meantime(server: Server) -> None:
    """The two reports may cross: no order of them ends a session that has a tunnel."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    old = server.own(cookie)
    new = server.own(cookie, rekey=True)
    server.end(old)
    assert list(server.sessions.live) == [new.tunnel]
    server.take_over(new)
    assert list(server.sessions.live) == [new.tunnel]
    server.sessions.expire(NOW + 10**7)
    assert list(server.sessions.live) == [new.tunnel]


def test_a_coming_tunnel_that_is_not_used_changes_nothing(server: Server) -> None:
    """But whoever waits for new keys hears of it."""
    changes: list[Change] = []
    cookie = server.sessions.begin(PASSWORD, NOW)
    old = server.own(cookie)
    new = server.own(cookie, rekey=True)
    server.sessions.on_change = changes.append
    server.end(new)
    assert list(server.sessions.live) == [old.tunnel]
    assert changes == [Change(old.session, "reason")]
    server.take_over(new)  # a late report
    assert list(server.sessions.live) == [old.tunnel]


def test_a_client_that_tries_again_to_change_its_keys_loses_nothing(server: Server) -> None:
    """Its first try may have been cut off without a word; nothing is told to end for good."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    old, first = server.own(cookie), server.own(cookie, rekey=True)
    second = server.own(cookie, rekey=True)
    assert second.beside == old.tunnel
    assert server.told == []
    server.end(first)
    server.take_over(second)
    assert list(server.sessions.live) == [second.tunnel]


def test_a_plain_connect_takes_both_tunnels_place(server: Server) -> None:
    """A client that starts anew has neither of them any more."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    old, coming = server.own(cookie), server.own(cookie, rekey=True)
    new = server.own(cookie)
    assert {number for number, _ in server.told} == {old.tunnel, coming.tunnel}
    assert list(server.sessions.live) == [new.tunnel]
    assert not server.sessions.coming


def end_by_revocation(server: Server) -> None:
    server.sessions.end_client("alice", "laptop", "revoked")


def end_by_timeout(server: Server) -> None:
    server.sessions.expire(NOW + 1000)


@pytest.mark.parametrize("end", [end_by_revocation, end_by_timeout])
def test_what_ends_a_session_ends_its_coming_tunnel(
    store: Store, end: Callable[[Server], None]
) -> None:
    """Or a revoked client could stay by changing its keys."""
    server = Server(store, session_timeout_s=1000)
    cookie = server.sessions.begin(LAPTOP, NOW)
    old, coming = server.own(cookie), server.own(cookie, rekey=True)
    end(server)
    assert {number for number, _ in server.told} == {old.tunnel, coming.tunnel}
    server.take_over(coming)
    assert not server.sessions.live
    assert not server.sessions.coming


def test_a_goodbye_ends_the_coming_tunnel_too(server: Server) -> None:
    """The cookie is gone; nothing of the session stays."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    old, coming = server.own(cookie), server.own(cookie, rekey=True)
    server.end(old, final=True)
    assert [number for number, _ in server.told] == [coming.tunnel]
    assert not server.sessions.live
    assert not server.sessions.coming
    assert server.connect(cookie).refused == 401


def test_a_revoked_client_cannot_change_its_keys(server: Server, store: Store) -> None:
    """Each CONNECT asks the store."""
    cookie = server.sessions.begin(LAPTOP, NOW)
    server.own(cookie)
    revoke(store)
    assert server.asked(cookie, rekey=True).refused == 401
    assert not server.sessions.coming


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        replace(SHOWN, client="phone"),
        replace(SHOWN, user="bob"),
        replace(SHOWN, serial="2e"),
        replace(SHOWN, not_after=NOW),
    ],
)
def test_with_new_keys_the_certificate_is_checked_again(
    server: Server, certificate: CertificateFacts | None
) -> None:
    """A cookie does not outlive what it was given for; the earlier tunnel is left alone."""
    cookie = server.sessions.begin(LAPTOP, NOW)
    old = server.own(cookie)
    assert server.asked(cookie, rekey=True, certificate=certificate).refused == 401
    assert list(server.sessions.live) == [old.tunnel]
    assert server.asked(cookie, rekey=True).refused == 0


def test_a_stock_client_may_have_got_its_cookie_from_another_program(server: Server) -> None:
    """Which had the certificate; but one that is shown has to be good."""
    cookie = server.sessions.begin(LAPTOP, NOW)
    assert server.connect(cookie).refused == 0
    expired = replace(SHOWN, not_after=NOW)
    assert server.asked(cookie, certificate=expired).refused == 401


def test_with_new_keys_comes_a_new_cookie(server: Server, store: Store) -> None:
    """The earlier one is good until the client has used the tunnel, and then is not."""
    first = server.sessions.begin(PASSWORD, NOW)
    assert server.own(first).cookie == ""
    new = server.own(first, rekey=True)
    assert new.cookie not in {"", first, repr(new)}
    assert new.cookie not in repr(new) + repr(store.sessions.all())
    server.prove(new)
    assert server.connect(first).refused == 401
    again = server.own(new.cookie)
    assert (again.session, again.address4) == (new.session, new.address4)


def test_a_client_that_lost_the_answer_comes_back_with_what_it_has(server: Server) -> None:
    """Even when the server has moved it to the tunnel that it knows nothing of."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    old, lost = server.own(cookie), server.own(cookie, rekey=True)
    server.end(old)
    server.take_over(lost)
    assert list(server.sessions.live) == [lost.tunnel]
    back = server.own(cookie)
    assert back.session == old.session
    assert server.connect(lost.cookie).refused == 401  # nobody has it


def test_a_client_that_got_the_answer_may_come_back_before_it_used_the_tunnel(
    server: Server,
) -> None:
    """Its next CONNECT says that it has the new cookie: the earlier one is over."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    server.own(cookie)
    new = server.own(cookie, rekey=True)
    server.own(new.cookie)
    assert server.connect(cookie).refused == 401
    assert server.connect(new.cookie).refused == 0


def test_a_late_proof_of_an_earlier_try_proves_nothing_of_the_next(server: Server) -> None:
    """Or the client could be left with a cookie that is refused."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    server.own(cookie)
    first = server.own(cookie, rekey=True)
    second = server.own(first.cookie, rekey=True)
    server.prove(first)
    assert server.connect(first.cookie).refused == 0
    assert server.connect(second.cookie).refused == 401


@pytest.mark.parametrize("got_answer", [True, False])
def test_a_restart_between_two_cookies_costs_no_login(
    server: Server, store: Store, got_answer: bool
) -> None:
    """Whichever of the two the client has."""
    cookie = server.sessions.begin(LAPTOP, NOW)
    old, new = server.own(cookie), server.own(cookie, rekey=True)
    restarted = Server(store)
    restarted.sessions.recover(NOW + 1)
    back = restarted.own(new.cookie if got_answer else cookie, NOW + 2)
    assert back.session == old.session
    assert restarted.connect(cookie if got_answer else new.cookie, NOW + 3).refused == 401


def test_after_a_restart_a_client_that_changes_its_keys_gets_a_cookie_too(store: Store) -> None:
    """The server has forgotten its tunnel, the client not yet."""
    before, restarted = Server(store), Server(store)
    cookie = before.sessions.begin(LAPTOP, NOW)
    before.own(cookie)
    restarted.sessions.recover(NOW + 1)
    new = restarted.own(cookie, NOW + 2, rekey=True)
    assert new.beside == 0
    restarted.prove(new)
    assert restarted.connect(cookie, NOW + 3).refused == 401
    assert restarted.connect(new.cookie, NOW + 3).refused == 0


def test_a_living_session_ends_with_its_certificate(server: Server, store: Store) -> None:
    """A tunnel that never reconnects must not outlive what opened it."""
    reply = server.granted(server.sessions.begin(LAPTOP, NOW))
    server.sessions.expire(NOW + 9_999)
    assert server.told == []
    server.sessions.expire(NOW + 10_000)
    assert server.told == [(reply.tunnel, "certificate has expired")]
    assert store.sessions.all() == []
    assert server.sessions.live == {}


def test_a_living_session_ends_with_its_user(server: Server, store: Store) -> None:
    """`valid_until` is a promise, whether or not the client reconnects."""
    store.users.put(replace(store.users.get("bob") or User("bob"), valid_until=NOW + 100))
    cookie = server.sessions.begin(LoginAccepted("bob", None, "password", None), NOW)
    other = server.granted(server.sessions.begin(PASSWORD, NOW))
    reply = server.granted(cookie)
    server.sessions.expire(NOW + 99)
    assert server.told == []
    server.sessions.expire(NOW + 100)
    assert server.told == [(reply.tunnel, "user has expired")]
    assert list(server.sessions.live) == [other.tunnel]
    assert server.connect(cookie, NOW + 101).refused == 401


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"valid_until": NOW + 1}, "user has expired"), ({"disabled": True}, "user is disabled")],
)
def test_what_becomes_of_a_user_is_noticed_while_connected(
    server: Server, store: Store, changes: dict[str, float], reason: str
) -> None:
    """The end may come nearer after the session has begun."""
    reply = server.granted(server.sessions.begin(PASSWORD, NOW))
    server.sessions.expire(NOW)
    store.users.put(replace(store.users.get("alice") or User("alice"), **changes))  # type: ignore[arg-type]
    server.sessions.expire(NOW + 5)
    assert server.told == [(reply.tunnel, reason)]


def test_a_longer_life_is_noticed_in_time(server: Server, store: Store) -> None:
    """A user who was prolonged stays connected."""
    user = store.users.put(replace(store.users.get("alice") or User("alice"), valid_until=NOW + 9))
    server.granted(server.sessions.begin(PASSWORD, NOW))
    server.sessions.expire(NOW)
    store.users.put(replace(user, valid_until=NOW + 1000))
    server.sessions.expire(NOW + 10)
    server.sessions.expire(NOW + 999)
    assert server.told == []


def test_a_logout_ends_the_cookie_and_the_tunnel(server: Server, store: Store) -> None:
    """Whoever finds the cookie afterwards has found nothing."""
    cookie = server.sessions.begin(PASSWORD, NOW)
    reply = server.granted(cookie)
    server.sessions.log_out("another cookie", "192.0.2.9:1")
    assert server.told == []
    server.sessions.log_out(cookie, "192.0.2.9:1")
    assert server.told == [(reply.tunnel, "the client logged out")]
    assert store.sessions.all() == []
    assert server.connect(cookie).refused == 401


@pytest.mark.parametrize(
    ("options", "kept_s"),
    [
        (ServerLogOptions(keep_days=2), 2 * 86400),
        (ServerLogOptions(keep_days=0), 0),
        (ServerLogOptions(level="none"), 0),
    ],
)
def test_a_lease_is_forgotten_so_many_days_after_its_session(
    server: Server, store: Store, options: ServerLogOptions, kept_s: int
) -> None:
    """Also after a reload that says so; not while a session has it, or may be resumed."""
    server.sessions.config = replace(server.sessions.config, log=options)
    reply = server.granted(server.sessions.begin(PASSWORD, NOW))
    server.sessions.expire(NOW + 10 * 86400)
    assert len(store.leases.all()) == 1
    end = NOW + 11 * 86400
    server.end(reply, end, final=True)
    server.sessions.expire(end + kept_s - 1)
    assert len(store.leases.all()) == 1
    server.sessions.expire(end + kept_s + INTERVAL)
    assert store.leases.all() == []


def test_no_address_of_a_peer_is_ever_in_the_database(tmp_path: Path) -> None:
    """Neither where it is nor the one it got: a lease is a number."""
    store = open_store(tmp_path)
    store.users.put(User("alice"))
    server = Server(store)
    reply = server.granted(server.sessions.begin(PASSWORD, NOW))
    again = server.granted(server.sessions.begin(PASSWORD, NOW))
    server.end(again, final=True)
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"alice" in files
    for address in (reply.address4, reply.address6, "192.0.2.9"):
        assert address.encode() not in files
    assert ip_address(reply.address6).packed not in files
    store.close()
