"""The border between master and worker: typed messages over a socketpair.

    | length (4, big-endian) | {"id": n, "type": "LoginQuery", "body": {...}} |

`id` pairs a query with its reply, which carries the same number as "re".  JSON, never
pickle: what comes from the process that faces the network is checked field by field.
File descriptors travel once, beside the first message.

The first message also has a "protocol" number.  The number is made of the messages themselves:
a worker whose code was replaced on the disk under a running master finds out, and says so by
its exit status; systemd then starts the master again, which is the new one.
"""

import asyncio
import functools
import hashlib
import json
import logging
import math
import struct
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from vpnd.errors import Malformed, RestartNeeded, VpnError
from vpnd.worker.messages import TYPES, Failed, Message, Start, StartClient

TUN_GONE = 3  # exit status of a worker whose interface was deleted
MAX_MESSAGE = 64 * 1024 * 1024  # a status of 65,536 tunnels, the most a configuration allows
MAX_FDS = 64  # beside the first message: TUN queue, listeners, UDP sockets
_LENGTH = struct.Struct("!I")


def encode(message: Message, *, number: int = 0, reply_to: int = 0) -> bytes:
    """Return the message with its length in front."""
    frame = {
        "id": number,
        "re": reply_to,
        "type": type(message).__name__,
        "body": asdict(message),
    }
    if isinstance(message, Start | StartClient):
        frame["protocol"] = protocol()
    data = json.dumps(frame, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


def decode(data: bytes) -> tuple[Message, int, int]:
    """Return (message, number, reply_to).  Raises Malformed for anything unexpected."""
    try:
        frame = json.loads(data)
        kind = TYPES[frame["type"]]
        number, reply_to = frame["id"], frame["re"]
        if type(number) is not int or type(reply_to) is not int:
            raise Malformed("message numbers")
        return _build(kind, frame["body"]), number, reply_to
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Malformed("message between master and worker") from exc


def decode_start(data: bytes) -> Start | StartClient:
    """Return the first message.  Raises Malformed, or RestartNeeded for another protocol."""
    try:
        frame = json.loads(data)
        number = frame.get("protocol") if isinstance(frame, dict) else None
    except (ValueError, RecursionError) as exc:
        raise Malformed("message between master and worker") from exc
    if number != protocol():
        raise RestartNeeded("pyvpn was replaced while it ran, and master and worker differ")
    message, _, _ = decode(data)
    if not isinstance(message, Start | StartClient):
        raise Malformed("the master did not say how to work")
    return message


@functools.cache
def protocol() -> int:
    """Return the number of this version's messages: other fields, another number."""
    shapes = [_shape(TYPES[name]) for name in sorted(TYPES)]
    return int.from_bytes(hashlib.sha256(repr(shapes).encode()).digest()[:4])


def _shape(kind: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind.__name__, [(entry.name, _shape(hints[entry.name])) for entry in fields(kind)]
    origin = typing.get_origin(kind) or kind
    return getattr(origin, "__name__", str(origin)), [_shape(a) for a in typing.get_args(kind)]


def _build(kind: Any, value: Any) -> Any:
    """Return `value` as `kind`; raises TypeError where it does not fit."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        names = {entry.name for entry in fields(kind)}
        if not isinstance(value, dict) or set(value) != names:
            raise TypeError("fields")
        return kind(**{name: _build(hints[name], value[name]) for name in names})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _build(arguments[0], value)
    if origin is list:
        _expect(list, value)
        return [_build(arguments[0], item) for item in value]
    if origin is dict:
        _expect(dict, value)
        return {str(key): _build(arguments[1], item) for key, item in value.items()}
    _expect(kind, value)
    return value


def _expect(kind: type, value: object) -> None:
    if type(value) is not kind:
        raise TypeError(f"{kind.__name__} expected")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number that compares with nothing")


class PeerGone(VpnError):
    """The process at the other end of the border is not there any more."""


class ControlChannel:
    """One end of the border: queries with replies, and messages without."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        on_message: Callable[[Message], Awaitable[Message | None]],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_message = on_message
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, message: Message) -> None:
        """Send a message that has no reply."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def ask(self, message: Message) -> Message:
        """Send a query and return its reply.  Raises PeerGone when the other end is gone."""
        if self._writer.is_closing():
            raise PeerGone("the other process is gone")
        self._number += 1
        number = self._number
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self._writer.write(encode(message, number=number))
        try:
            reply = await future
        finally:
            del self._waiting[number]
        if isinstance(reply, Failed):
            raise PeerGone("the other process could not answer; its log says why")
        return reply

    async def run(self) -> None:
        """Handle messages until the other end is gone.

        Raises Malformed when it says something that is not in the protocol.
        """
        try:
            while True:
                data = await self._read()
                if data is None:
                    return
                message, number, reply_to = decode(data)
                if reply_to:
                    future = self._waiting.get(reply_to)
                    if future is not None and not future.done():
                        future.set_result(message)
                    continue
                task = asyncio.create_task(self._handle(message, number))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        finally:
            self.close()

    async def _read(self) -> bytes | None:
        try:
            (size,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if size > MAX_MESSAGE:
                raise Malformed("message between master and worker is too long")
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def _handle(self, message: Message, number: int) -> None:
        if number and self._writer.is_closing():  # nobody is left to hear the answer
            return
        try:
            reply = await self._on_message(message)
        except Exception:  # a bug of ours: whoever asked must not wait for ever
            logging.getLogger(__name__).exception("%s was not handled", type(message).__name__)
            reply = Failed()
        if reply is not None and number and not self._writer.is_closing():
            self._writer.write(encode(reply, reply_to=number))

    def close(self) -> None:
        """Close this end; whoever waits for a reply gets PeerGone."""
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(PeerGone("the other process is gone"))
