"""Bounds of one connection: size, pace, depth, descriptors, unread answers."""

import array
import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.ipc.caller import message
from tests.ipc.memory_backend import MemoryBackend
from vpnd.ipc.access import Caller
from vpnd.ipc.api import Daemon
from vpnd.ipc.connection import MAX_MESSAGE, MAX_MESSAGE_OF_STRANGER, Connection

PATIENT = {"message_timeout_s": 30.0, "answer_timeout_s": 30.0}


class Pair:
    """A Connection on one end of a socket pair, the test on the other."""

    def __init__(self, *, is_admin: bool = True, **timeouts: float) -> None:
        loop = asyncio.get_running_loop()
        self.troubles: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self.troubles.append(context))
        self.near, far = socket.socketpair()
        self.near.setblocking(False)
        self.backend = MemoryBackend()
        self.refusals: list[str] = []
        registry = VarlinkInterfaceRegistry()
        registry.register_interface(Daemon(self.backend, sees_names=is_admin))
        self.connection = Connection(
            registry,
            Caller(1, 0, frozenset()),
            is_admin=is_admin,
            refused=self.refusals.append,
            **(PATIENT | timeouts),
        )
        self.transport = VarlinkTransport(loop, far, far, self.connection, boundary_predictor=None)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.near, data)

    async def read_to_end(self) -> bytes:
        """Return all until the connection is closed."""
        loop, got = asyncio.get_running_loop(), b""
        try:
            while data := await loop.sock_recv(self.near, 65536):
                got += data
        except ConnectionResetError:
            pass
        return got

    async def read_answers(self, count: int) -> bytes:
        loop, got = asyncio.get_running_loop(), b""
        while got.count(b"\0") < count:
            data = await loop.sock_recv(self.near, 65536)
            assert data, "closed"
            got += data
        return got

    async def close(self) -> None:
        self.near.close()
        self.transport.abort()
        await self.transport.closed_future
        if self.connection.call:
            await asyncio.wait({self.connection.call})
        assert self.troubles == []


def run(test: Callable[[Pair], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        pair = Pair(**options)
        try:
            await test(pair)
        finally:
            await pair.close()

    asyncio.run(main())


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def padded(size: int) -> bytes:
    """Return a GetStatus call of `size` bytes, its final NUL not counted."""
    bare = message("GetStatus")[:-1]
    return bare[:-1] + b" " * (size - len(bare)) + b"}\0"


@pytest.mark.parametrize(
    ("is_admin", "limit"), [(True, MAX_MESSAGE), (False, MAX_MESSAGE_OF_STRANGER)]
)
def test_a_message_of_the_greatest_size_is_answered(is_admin: bool, limit: int) -> None:
    """The bound is exact, so that nobody has to guess it."""

    async def test(pair: Pair) -> None:
        await pair.send(padded(limit))
        assert b'"role":"server"' in await pair.read_answers(1)

    run(test, is_admin=is_admin)


@pytest.mark.parametrize(
    ("is_admin", "limit"), [(True, MAX_MESSAGE), (False, MAX_MESSAGE_OF_STRANGER)]
)
@pytest.mark.parametrize("ended", [True, False])
def test_a_longer_message_ends_the_connection(is_admin: bool, limit: int, ended: bool) -> None:
    """Whether its end is in sight or not, no more than the bound is kept."""

    async def test(pair: Pair) -> None:
        data = padded(limit + 1) if ended else b"x" * (limit + 1)
        sending = asyncio.ensure_future(pair.send(data))
        assert await pair.read_to_end() == b""
        await asyncio.gather(sending, return_exceptions=True)
        assert pair.refusals == ["message too long"]
        assert pair.backend.status_calls == 0

    run(test, is_admin=is_admin)


def test_half_a_message_is_not_waited_for() -> None:
    """A caller that stops in mid-message would hold its memory for ever."""

    async def test(pair: Pair) -> None:
        await pair.send(message("GetStatus")[:-1])
        assert await pair.read_to_end() == b""
        assert pair.refusals == ["message not finished in time"]

    run(test, message_timeout_s=0.05)


def test_dripping_bytes_does_not_buy_time() -> None:
    """The clock runs from the first byte of a message, not from the last."""

    async def test(pair: Pair) -> None:
        async def drip() -> None:
            while True:
                await pair.send(b" ")
                await asyncio.sleep(0.005)

        dripping = asyncio.ensure_future(drip())
        assert await pair.read_to_end() == b""
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)
        assert pair.refusals == ["message not finished in time"]

    run(test, message_timeout_s=0.1)


def test_an_idle_connection_stays() -> None:
    """Only a message that was begun has to be finished."""

    async def test(pair: Pair) -> None:
        await pair.send(message("GetStatus"))
        await pair.read_answers(1)
        await asyncio.sleep(0.1)  # longer than a message may take; there is no event to await
        await pair.send(message("GetStatus"))
        await pair.read_answers(1)
        assert pair.refusals == []

    run(test, message_timeout_s=0.03)


def test_one_byte_at_a_time_is_the_same_as_all_at_once() -> None:
    """Where the kernel cuts a stream means nothing."""
    calls = message("GetStatus") + message("Nonsense") + message("ListUsers")

    async def at_once(pair: Pair) -> None:
        await pair.send(calls)
        answers.append(await pair.read_answers(3))

    async def dripped(pair: Pair) -> None:
        for at in range(len(calls)):
            await pair.send(calls[at : at + 1])
            await asyncio.sleep(0)
        answers.append(await pair.read_answers(3))

    answers: list[bytes] = []
    run(at_once)
    run(dripped)
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        b"{\0",
        b"[]\0",
        b'"x"\0',
        b"null\0",
        b"\xff\xfe\0",
        b'{"method":"\xc3"}\0',
        b"[" * 50_000 + b"\0",
        b'{"a":' * 50_000 + b"\0",
        b'{"method":' + b"1" * 10_000 + b"}\0",
    ],
    ids=repr,
)
def test_what_is_no_json_object_ends_the_connection(data: bytes) -> None:
    """There is no call to answer; and nothing may reach the event loop's error handler."""

    async def test(pair: Pair) -> None:
        await pair.send(data)
        assert await pair.read_to_end() == b""
        assert pair.refusals == ["not JSON"]

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        b"{}\0",
        b'{"method":7}\0',
        b'{"method":"x"}\0',
        b'{"method":"org.pyvpn.Daemon.GetStatus","parameters":[]}\0',
        b'{"method":"org.pyvpn.Daemon.GetStatus","more":"yes"}\0',
        b'{"method":"org.pyvpn.Daemon.GetStatus","upgrade":true,"more":true}\0',
        b'{"method":"org.pyvpn.Daemon.get\\nstatus"}\0',
    ],
)
def test_what_is_no_call_is_refused_and_the_next_call_answered(data: bytes) -> None:
    """A mistake of one message is not held against the next."""

    async def test(pair: Pair) -> None:
        await pair.send(data + message("GetStatus"))
        refusal, answer, _ = (await pair.read_answers(2)).split(b"\0")
        assert refusal.startswith(b'{"error":')
        assert b'"role":"server"' in answer

    run(test)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=80),
            st.sampled_from([message("GetStatus"), message("AddUser", name="a"), b"\0", b"{}"]),
            st.dictionaries(st.text(max_size=8), st.text(max_size=8)).map(
                lambda parameters: message("AddClient", **parameters)
            ),
        ),
        max_size=6,
    )
)
def test_arbitrary_bytes_are_answered_or_refused(parts: list[bytes]) -> None:
    """Whatever comes, the connection ends in order and the loop hears of no exception."""

    async def test(pair: Pair) -> None:
        try:
            await pair.send(b"".join(parts))
            pair.near.shutdown(socket.SHUT_WR)
        except OSError:  # refused already
            pass
        await pair.read_to_end()

    run(test)


@pytest.mark.parametrize("oneway", [False, True])
def test_a_caller_that_never_reads_cannot_pile_up_answers(oneway: bool) -> None:
    """One call at a time, and the next only when its answer was taken."""
    call = message("GetStatus")
    if oneway:
        call = call[:-2] + b',"oneway":true}\0'

    async def test(pair: Pair) -> None:
        try:
            async with asyncio.timeout(0.3):
                while True:
                    await pair.send(call * 100)
        except (TimeoutError, ConnectionError):
            pass
        assert len(pair.connection._consumer_queue) <= 1024 // len(call) + 1
        assert sum(len(sent[0]) for sent in pair.transport._sendqueue) <= 1

    run(test)


def test_an_answer_that_is_not_taken_ends_the_connection() -> None:
    """Else sixty-four of them would be all that a careless script leaves to its user."""

    async def test(pair: Pair) -> None:
        with pytest.raises(ConnectionError):
            await pair.send(message("GetStatus") * 100_000)
        assert pair.refusals == ["answer not taken in time"]

    run(test, answer_timeout_s=0.05)


def test_half_closed_callers_still_get_their_answers() -> None:
    """`printf ... | nc -U` is a fair way to ask."""

    async def test(pair: Pair) -> None:
        await pair.send(message("GetStatus") + message("ListUsers"))
        pair.near.shutdown(socket.SHUT_WR)
        assert (await pair.read_to_end()).count(b"\0") == 2

    run(test)


def test_descriptors_that_come_along_are_closed() -> None:
    """Nobody can fill our descriptor table."""

    async def test(pair: Pair) -> None:
        before = open_descriptors()
        for _ in range(20):
            fds = array.array("i", [0] * 50)
            pair.near.sendmsg(
                [message("GetStatus")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            )
            await pair.read_answers(1)
        assert open_descriptors() == before

    run(test)


@pytest.mark.parametrize("call", [b"{}\0", message("GetStatus"), message("Nonsense")])
def test_calls_of_a_caller_that_hung_up_are_dropped(
    call: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody reads the answers; and a local user must not fill the log."""

    async def test(pair: Pair) -> None:
        await pair.send(call * 200)
        pair.near.close()
        async with asyncio.timeout(10):
            await pair.transport.closed_future
        assert pair.backend.status_calls <= 1
        assert pair.refusals == []

    run(test)
    assert not caplog.records


def test_a_caller_that_leaves_in_mid_call_disturbs_nobody() -> None:
    """The call runs to its end; its answer has nowhere to go."""

    async def test(pair: Pair) -> None:
        started, go_on = asyncio.Event(), asyncio.Event()
        get_status = pair.backend.get_status

        async def slow() -> Any:
            started.set()
            await go_on.wait()
            return await get_status()

        pair.backend.get_status = slow  # type: ignore[method-assign]
        await pair.send(message("GetStatus"))
        await started.wait()
        pair.near.close()
        go_on.set()
        assert pair.connection.call is not None
        await pair.connection.call
        assert pair.backend.status_calls == 1

    run(test)
