"""Changing a session's keys on request: who is asked how, and what is reported."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.server.test_sessions import LAPTOP, NOW, PASSWORD, Server
from vpnd.auth.login import LoginAccepted
from vpnd.ipc import api
from vpnd.server.rotation import AT_ONCE, LENIENCE_S, MAX_KEYS_AGE_S, REASON, Rotation
from vpnd.store.contract import Client, User
from vpnd.store.memory import MemoryStore
from vpnd.worker.messages import AskRekey, EndTunnel, Message, OpenReply

SHORT_S = 0.05  # nobody will answer
WAIT = 20.0  # seconds; a test that needs them has failed


class Stage:
    """A server, and what its worker was told."""

    def __init__(self, timeout_s: float = WAIT) -> None:
        store = MemoryStore()
        store.users.put(User("alice"))
        store.clients.put(Client("alice", "laptop", "1f", created=0.0, not_after=NOW * 2))
        self.server = Server(store)
        self.told: asyncio.Queue[Message] = asyncio.Queue()
        self.rotation = Rotation(self.server.sessions, self.told.put_nowait, timeout_s=timeout_s)

    def begin(self, session: str) -> "asyncio.Task[api.KeyRotation]":
        return asyncio.create_task(self.rotation.rotate(session))

    async def asked(self) -> Message:
        return await asyncio.wait_for(self.told.get(), WAIT)

    def stock(self) -> tuple[str, OpenReply]:
        cookie = self.server.sessions.begin(PASSWORD, NOW)
        return cookie, self.server.granted(cookie)

    def own(self) -> tuple[str, OpenReply]:
        cookie = self.server.sessions.begin(LAPTOP, NOW)
        return cookie, self.server.own(cookie)


def play(scene: Callable[[Stage], Awaitable[None]], timeout_s: float = WAIT) -> None:
    async def main() -> None:
        await scene(Stage(timeout_s))

    asyncio.run(main())


def test_a_stock_client_is_cut_off_and_comes_back() -> None:
    """Its cookie stays good: it is not told to stay away."""

    async def scene(stage: Stage) -> None:
        cookie, reply = stage.stock()
        rotating = stage.begin(reply.session)
        assert await stage.asked() == EndTunnel(reply.tunnel, REASON, bye=False)
        stage.server.end(reply)
        assert not rotating.done()
        stage.server.granted(cookie)
        done = await rotating
        assert (done.session, done.user, done.client) == (reply.session, "alice", None)
        assert (done.rotated, done.overlapped, done.reason) == (True, False, "")

    play(scene)


def test_our_own_client_is_asked_and_does_it_without_a_break() -> None:
    """The rotation is done when the new tunnel serves, not when it was opened."""

    async def scene(stage: Stage) -> None:
        cookie, reply = stage.own()
        rotating = stage.begin(reply.session)
        assert await stage.asked() == AskRekey(reply.tunnel)
        new = stage.server.own(cookie, rekey=True)
        await asyncio.sleep(0)
        assert not rotating.done()
        stage.server.take_over(new)
        done = await rotating
        assert (done.client, done.rotated, done.overlapped) == ("laptop", True, True)

    play(scene)


def test_our_own_client_that_reconnects_instead_has_new_keys_too() -> None:
    """The report says that there was a break."""

    async def scene(stage: Stage) -> None:
        cookie, reply = stage.own()
        rotating = stage.begin(reply.session)
        await stage.asked()
        stage.server.end(reply)
        stage.server.own(cookie)
        done = await rotating
        assert (done.rotated, done.overlapped) == (True, False)

    play(scene)


@pytest.mark.parametrize(("own", "says"), [(True, "did not answer"), (False, "come back")])
def test_who_does_not_do_it_in_time_is_reported(own: bool, says: str) -> None:
    """With the reason; nothing else of the session has changed."""

    async def scene(stage: Stage) -> None:
        _, reply = stage.own() if own else stage.stock()
        done = await stage.rotation.rotate(reply.session)
        assert not done.rotated
        assert says in done.reason
        assert done.took_ms >= SHORT_S * 1000 // 2

    play(scene, SHORT_S)


@pytest.mark.parametrize("final", [True, False])
def test_what_goes_wrong_on_the_way_is_the_reason(final: bool) -> None:
    """The user has logged out, or the new tunnel broke before its use."""

    async def scene(stage: Stage) -> None:
        cookie, reply = stage.own()
        rotating = stage.begin(reply.session)
        await stage.asked()
        new = stage.server.own(cookie, rekey=True)
        stage.server.end(reply if final else new, final=final)
        done = await rotating
        assert (done.rotated, done.reason) == (False, "reason")

    play(scene)


def test_a_session_is_asked_once_however_many_want_it() -> None:
    """Two operators get the same answer."""

    async def scene(stage: Stage) -> None:
        cookie, reply = stage.stock()
        first, second = stage.begin(reply.session), stage.begin(reply.session)
        await stage.asked()
        stage.server.granted(cookie)
        assert (await first).rotated
        assert (await second).rotated
        assert stage.told.empty()

    play(scene)


def test_a_session_that_is_not_connected_is_not_found() -> None:
    """It has no keys; it gets new ones when it comes back."""

    async def scene(stage: Stage) -> None:
        _, reply = stage.stock()
        stage.server.end(reply)
        for session in (reply.session, "nobody", ""):
            with pytest.raises(api.NotFound):
                await stage.rotation.rotate(session)

    play(scene)


def test_no_more_handshakes_are_caused_at_once_than_logins_can_bear() -> None:
    """Whoever calls, and on however many connections."""

    async def scene(stage: Stage) -> None:
        tasks = []
        for number in range(AT_ONCE + 1):
            stage.server.store.users.put(User(f"u{number}"))
            cookie = stage.server.sessions.begin(
                LoginAccepted(f"u{number}", None, "password", None), NOW
            )
            tasks.append((cookie, stage.begin(stage.server.granted(cookie).session)))
        for _ in range(AT_ONCE):
            await stage.asked()
        await asyncio.sleep(0)
        assert stage.told.empty()
        stage.server.granted(tasks[0][0])
        await stage.asked()
        for cookie, _ in tasks[1:]:
            stage.server.granted(cookie)
        rotations = await asyncio.gather(*(task for _, task in tasks))
        assert all(rotation.rotated for rotation in rotations)

    play(scene)


LATE = NOW + MAX_KEYS_AGE_S + LENIENCE_S


def test_keys_of_a_day_are_changed_though_nobody_asked() -> None:
    """Certificates are checked by a full TLS handshake once in 24 h, whatever a client does."""

    async def scene(stage: Stage) -> None:
        stock, own = stage.stock()[1], stage.own()[1]
        stage.rotation.renew_old(LATE - 1)
        await asyncio.sleep(0)
        assert stage.told.empty()
        for _ in range(3):  # the clock goes on while the clients do it
            stage.rotation.renew_old(LATE)
        asked = [await stage.asked(), await stage.asked()]
        assert asked == [EndTunnel(stock.tunnel, REASON, bye=False), AskRekey(own.tunnel)]
        await asyncio.sleep(0)
        assert stage.told.empty()

    play(scene)


def test_the_day_begins_anew_with_each_handshake() -> None:
    """Of the session's age, which is shown, it says nothing."""

    async def scene(stage: Stage) -> None:
        cookie = stage.server.sessions.begin(PASSWORD, NOW)
        stage.server.own(cookie)
        new = stage.server.own(cookie, LATE - 1, rekey=True)
        stage.server.take_over(new)
        stage.rotation.renew_old(LATE)
        await asyncio.sleep(0)
        assert stage.told.empty()
        assert stage.server.sessions.live[new.tunnel].opened_at == NOW

    play(scene)


def test_who_does_not_change_old_keys_is_cut_off() -> None:
    """It may come back by its cookie: with a handshake."""

    async def scene(stage: Stage) -> None:
        _, reply = stage.own()
        stage.rotation.renew_old(LATE)
        assert await stage.asked() == AskRekey(reply.tunnel)
        assert await stage.asked() == EndTunnel(reply.tunnel, REASON, bye=False)

    play(scene, SHORT_S)
