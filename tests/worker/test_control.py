"""The border between master and worker: what one says the other hears, and nothing else."""

import asyncio
import dataclasses
import json
import socket
import types
import typing
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.auth.contract import CertificateFacts
from vpnd.errors import Malformed
from vpnd.worker import messages
from vpnd.worker.control import MAX_MESSAGE, ControlChannel, PeerGone, decode, encode
from vpnd.worker.messages import (
    EndTunnel,
    LoginQuery,
    LoginReply,
    Message,
    OpenQuery,
    Ready,
    StatusQuery,
    StatusReply,
    Stop,
    TunnelEnded,
)

WAIT = 20.0  # seconds; a test that needs them has failed


def values(kind: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Return a strategy for a field's type."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{f.name: values(hints[f.name]) for f in dataclasses.fields(kind)})  # type: ignore[arg-type]
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        return st.none() | values(arguments[0])
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(st.text(max_size=5), values(arguments[1]), max_size=3)
    plain: dict[type, st.SearchStrategy[typing.Any]] = {
        str: st.text(max_size=20),
        int: st.integers(-(2**63), 2**63),
        bool: st.booleans(),
        float: st.floats(allow_nan=False, allow_infinity=False),
    }
    return plain[kind]


KINDS = typing.get_args(Message)
MESSAGES = st.one_of([values(kind) for kind in KINDS])
NUMBERS = st.integers(0, 2**40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "re", "type", "body", "x"]), inner, max_size=5)
    ),
    max_leaves=12,
)


def frame(kind: str, body: object, number: object = 1, reply_to: object = 0) -> bytes:
    return json.dumps({"id": number, "re": reply_to, "type": kind, "body": body}).encode()


@given(MESSAGES, NUMBERS, NUMBERS)
def test_what_is_encoded_is_decoded(message: Message, number: int, reply_to: int) -> None:
    """All kinds of messages, all values their types allow."""
    data = encode(message, number=number, reply_to=reply_to)
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert decode(data[4:]) == (message, number, reply_to)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_arbitrary_bytes_are_malformed_and_nothing_else(data: bytes) -> None:
    """The process that faces the network may be anybody's."""
    with pytest.raises(Malformed):
        decode(data)


@given(MESSAGES, st.data())
def test_a_field_of_another_type_is_refused(message: Message, data: st.DataObject) -> None:
    """Also bool for int, which Python itself would not mind; also a field too many or few."""
    body = dataclasses.asdict(message)
    kind = type(message).__name__
    if not body or data.draw(st.booleans()):
        changed = body | {"more": 1}
    else:
        name = data.draw(st.sampled_from(sorted(body)))
        changed = dict(body)
        how = data.draw(st.sampled_from(["drop", "list", "object", "bool", "float"]))
        if how == "drop":
            del changed[name]
        else:
            replacement = {"list": [None], "object": {"x": None}, "bool": True, "float": 0.5}[how]
            if type(replacement) is type(changed[name]):
                replacement = None if changed[name] is not None else [None]
            hint = typing.get_type_hints(type(message))[name]
            if replacement is None and typing.get_origin(hint) is types.UnionType:
                replacement = [None]
            changed[name] = replacement
    with pytest.raises(Malformed):
        decode(frame(kind, changed))


@pytest.mark.parametrize(
    "data",
    [
        frame("Ready", {}, number=True),
        frame("Ready", {}, number="1"),
        frame("Ready", {}, reply_to=1.0),
        frame("Ready", []),
        frame("Message", {}),
        frame("CertificateFacts", {}),
        b"[" * 100_000,
        b'{"id":' + b"9" * 5000 + b',"re":0,"type":"Ready","body":{}}',
        b'"Ready"',
        b"\xff\xfe",
    ],
)
def test_near_misses_are_malformed(data: bytes) -> None:
    """Each of them would be let through by one check less."""
    with pytest.raises(Malformed):
        decode(data)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(value: str) -> None:
    """A certificate that ends at NaN never ends: every comparison with it is false."""
    body = dataclasses.asdict(
        OpenQuery("c", "a", CertificateFacts("u", "c", "1f", 12.5), "h", "ua", True, True)
    )
    data = frame("OpenQuery", body)
    assert decode(data)[0] == OpenQuery(
        "c", "a", CertificateFacts("u", "c", "1f", 12.5), "h", "ua", True, True
    )
    with pytest.raises(Malformed):
        decode(data.replace(b"12.5", value.encode()))


def test_secrets_do_not_show() -> None:
    """A message in a traceback is a password in a log."""
    login = LoginQuery("192.0.2.1", "logincookie", {"password": "s3cret"}, None, False, None)
    opening = OpenQuery("sessioncookie", "192.0.2.1:9", None, "h", "ua", True, True)
    reply = LoginReply("accepted", cookie="sessioncookie")
    for message in (login, opening, reply):
        assert not any(word in repr(message) for word in ("cookie=", "s3cret", "sessioncookie"))


# two channels on a socket pair


Answer = Callable[[Message], Awaitable[Message | None]]


async def nothing(_message: Message) -> Message | None:
    return None


async def channels(
    here: Answer, there: Answer
) -> tuple[ControlChannel, ControlChannel, list["asyncio.Task[None]"]]:
    made = []
    for end, answer in zip(socket.socketpair(), (here, there), strict=True):
        reader, writer = await asyncio.open_connection(sock=end)
        made.append(ControlChannel(reader, writer, answer))
    return made[0], made[1], [asyncio.create_task(channel.run()) for channel in made]


async def raw(answer: Answer) -> tuple[ControlChannel, asyncio.StreamWriter]:
    """Return a channel, and the other end as bare bytes."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    _, bare = await asyncio.open_connection(sock=theirs)
    return ControlChannel(reader, writer, answer), bare


def test_replies_find_their_queries_in_any_order() -> None:
    """A slow password does not hold up the others."""

    async def main() -> None:
        released = {name: asyncio.Event() for name in "abc"}

        async def slow(message: Message) -> Message | None:
            assert isinstance(message, LoginQuery)
            await released[message.address].wait()
            return LoginReply("form", message=message.address)

        asking, answering, tasks = await channels(nothing, slow)
        queries = {
            name: asyncio.ensure_future(asking.ask(LoginQuery(name, None, {}, None, False, None)))
            for name in released
        }
        for name in "cab":
            released[name].set()
            reply = await asyncio.wait_for(queries[name], WAIT)
            assert reply == LoginReply("form", message=name)
        asking.close()
        answering.close()
        await asyncio.gather(*tasks)

    asyncio.run(main())


def test_who_waits_learns_that_the_other_end_is_gone() -> None:
    """A client must not wait for a worker's or a master's ghost."""

    async def main() -> None:
        asked = asyncio.Event()

        async def never(_message: Message) -> Message | None:
            asked.set()
            await asyncio.Event().wait()
            return None

        asking, answering, tasks = await channels(nothing, never)
        query = asyncio.ensure_future(asking.ask(StatusQuery()))
        await asyncio.wait_for(asked.wait(), WAIT)
        answering.close()
        with pytest.raises(PeerGone):
            await asyncio.wait_for(query, WAIT)
        await asyncio.wait_for(asyncio.gather(*tasks), WAIT)
        with pytest.raises(PeerGone):
            await asking.ask(StatusQuery())
        asking.send(Stop())  # says nothing to nobody

    asyncio.run(main())


def test_a_question_nobody_waits_for_is_not_judged() -> None:
    """A tunnel that is opened for a worker that has died would live for ever."""

    async def main() -> None:
        judged: list[Message] = []

        async def judge(message: Message) -> Message | None:
            judged.append(message)
            return None

        query = LoginQuery("", None, {}, None, False, None)
        told = TunnelEnded(1, "session", "left", final=True)
        answering, bare = await raw(judge)
        bare.write(encode(query, number=1) + encode(told))
        bare.close()
        await bare.wait_closed()
        await asyncio.sleep(0.05)  # all of it is there, and the end too, before it is read
        await answering.run()
        await asyncio.sleep(0)
        assert judged == [told]

    asyncio.run(main())


def test_garbage_ends_the_channel_with_malformed() -> None:
    """The supervisor kills who says such things."""

    async def main(data: bytes) -> None:
        channel, bare = await raw(nothing)
        query = asyncio.ensure_future(channel.ask(StatusQuery()))
        bare.write(data)
        with pytest.raises(Malformed):
            await asyncio.wait_for(channel.run(), WAIT)
        with pytest.raises(PeerGone):
            await query
        bare.close()

    too_long = (MAX_MESSAGE + 1).to_bytes(4, "big")
    for data in (too_long, b"\x00\x00\x00\x02{}", b"GET / HTTP/1.1\r\n\r\n"):
        asyncio.run(main(data))


def test_a_message_cut_off_is_the_end_and_no_error() -> None:
    """A process that is killed stops in mid-word."""

    async def main() -> None:
        channel, bare = await raw(nothing)
        bare.write(encode(Ready())[:-1])
        bare.close()
        await asyncio.wait_for(channel.run(), WAIT)

    asyncio.run(main())


def test_replies_to_nothing_are_ignored() -> None:
    """Late ones, and a number that was never given."""

    async def main() -> None:
        seen: list[Message] = []

        async def note(message: Message) -> Message | None:
            seen.append(message)
            return None

        channel, bare = await raw(note)
        bare.write(encode(Ready(), reply_to=99) + encode(Ready(), reply_to=-1) + encode(Stop()))
        bare.close()
        await asyncio.wait_for(channel.run(), WAIT)
        await asyncio.sleep(0)
        assert seen == [Stop()]

    asyncio.run(main())


def test_messages_are_handled_in_the_order_they_came() -> None:
    """The end of a replaced tunnel is told before the opening of its successor."""

    async def main() -> None:
        seen: list[int] = []

        async def note(message: Message) -> Message | None:
            assert isinstance(message, EndTunnel)
            seen.append(message.tunnel)
            return None

        channel, bare = await raw(note)
        bare.write(b"".join(encode(EndTunnel(n, "r", True)) for n in range(50)))
        bare.close()
        await asyncio.wait_for(channel.run(), WAIT)
        await asyncio.sleep(0)
        assert seen == list(range(50))

    asyncio.run(main())


def test_a_status_of_many_sessions_fits_a_message() -> None:
    """`vpnctl status` on a full worker must not look like a broken protocol."""
    one = messages.TunnelStatus(
        2**31, "[2001:db8:1111:2222:3333:4444:5555:6666]:65535", "DTLS", "CHACHA20-POLY1305",
        "TLSv1.3", "TLS_CHACHA20_POLY1305_SHA256", "X25519MLKEM768", 86400, 2**50, 2**40, 2**50,
        2**40, {"inner-source": 2**30, "not-authentic": 2**30, "replayed": 2**30},
    )  # fmt: skip
    size = len(encode(StatusReply([one] * 4096, {}, [])))
    assert size <= MAX_MESSAGE, size


def test_an_end_says_how_much_went_through() -> None:
    """For the log line of a session."""
    ended = TunnelEnded(3, "s", "client left", True, 10, 20)
    assert decode(encode(ended)[4:])[0] == ended
