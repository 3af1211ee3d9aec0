"""The border between master and worker: typed messages over a socketpair.

    | length (4, big-endian) | {"id": n, "type": "LoginQuery", "body": {...}} |

`id` pairs a query with its reply, which carries the same number as "re".  JSON, never
pickle: what comes from the process that faces the network is checked field by field.
File descriptors travel once, beside the first message.
"""

import asyncio
import json
import logging
import math
import struct
import types
import typing
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from vpnd.auth.contract import CertificateFacts
from vpnd.errors import Malformed, VpnError

TUN_GONE = 3  # exit status of a worker whose interface was deleted
MAX_MESSAGE = 64 * 1024 * 1024  # a status of 65,536 tunnels, the most a configuration allows
MAX_FDS = 64  # beside the first message: TUN queue, listeners, UDP sockets
_LENGTH = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class Start:
    """Master -> worker, first message: how to work.

    The descriptors beside it: TUN queue, TCP listeners, UDP sockets.
    """

    tcp_listeners: int
    udp_sockets: int
    certificate: str
    key: str
    client_ca: str
    allow_tls12: bool
    dtls: bool
    port: int
    connections: int
    connections_per_address: int
    handshakes_pending: int
    login_timeout_s: int
    log_level: str


@dataclass(frozen=True, slots=True)
class Ready:
    """Worker -> master: serving."""


@dataclass(frozen=True, slots=True)
class LoginQuery:
    """Worker -> master: one step of a login."""

    address: str
    login_cookie: str | None = field(repr=False)
    values: dict[str, str] = field(repr=False)
    group: str | None
    restart: bool
    certificate: CertificateFacts | None


@dataclass(frozen=True, slots=True)
class FormInput:
    """One field of a login form."""

    name: str
    type: str
    label: str


@dataclass(frozen=True, slots=True)
class LoginReply:
    """Master -> worker: what to answer."""

    outcome: str
    """`form`, `accepted`, `refused` or `busy`."""
    message: str = ""
    error: str | None = None
    inputs: list[FormInput] = field(default_factory=list)
    cookie: str = field(default="", repr=False)
    """The login cookie with a form, the session cookie when accepted."""


@dataclass(frozen=True, slots=True)
class OpenQuery:
    """Worker -> master: a client wants its tunnel."""

    cookie: str = field(repr=False)
    address: str
    certificate: CertificateFacts | None
    hostname: str
    user_agent: str
    wants_ipv4: bool
    wants_ipv6: bool


@dataclass(frozen=True, slots=True)
class OpenReply:
    """Master -> worker: the tunnel's parameters, or `refused` with a reason."""

    refused: int = 0
    """HTTP status of a refusal, 0 when granted."""
    reason: str = ""
    tunnel: int = 0
    """Number of this tunnel; a session that reconnects gets a new one."""
    session: str = ""
    user: str = ""
    address4: str = ""
    netmask4: str = ""
    address6: str = ""
    prefix6: int = 0
    mtu: int = 0
    dns: list[str] = field(default_factory=list)
    default_domain: str = ""
    split_include: list[str] = field(default_factory=list)
    split_exclude: list[str] = field(default_factory=list)
    server_name: str = ""
    dpd_s: int = 0
    keepalive_s: int = 0
    idle_timeout_s: int = 0
    session_left_s: int = 0
    """Seconds until the session ends for good, 0 = no limit."""
    rekey_s: int = 0


@dataclass(frozen=True, slots=True)
class TunnelEnded:
    """Worker -> master: a tunnel is gone."""

    tunnel: int
    session: str
    reason: str
    final: bool
    """The session is over; otherwise its cookie stays good for a while."""
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True, slots=True)
class EndTunnel:
    """Master -> worker: end this tunnel; with `bye` the client is told not to come back."""

    tunnel: int
    reason: str
    bye: bool


@dataclass(frozen=True, slots=True)
class StatusQuery:
    """Master -> worker."""


@dataclass(frozen=True, slots=True)
class TunnelStatus:
    """The living figures of one tunnel."""

    tunnel: int
    outer: str
    channel: str
    cipher: str
    tls_version: str
    tls_cipher: str
    group: str
    keys_age_s: int
    rx_bytes: int
    rx_packets: int
    tx_bytes: int
    tx_packets: int
    drops: dict[str, int]


@dataclass(frozen=True, slots=True)
class OffloadStatus:
    """One use of the kernel's batches."""

    name: str
    on: bool
    reason: str


@dataclass(frozen=True, slots=True)
class StatusReply:
    """Worker -> master."""

    tunnels: list[TunnelStatus]
    drops: dict[str, int]
    offloads: list[OffloadStatus]


@dataclass(frozen=True, slots=True)
class Failed:
    """Either way: the reply to a query whose handler broke."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Master -> worker: close everything and exit; sessions stay resumable."""


Message = (
    Start
    | Ready
    | LoginQuery
    | LoginReply
    | OpenQuery
    | OpenReply
    | TunnelEnded
    | EndTunnel
    | StatusQuery
    | StatusReply
    | Stop
    | Failed
)
_TYPES = {kind.__name__: kind for kind in typing.get_args(Message)}


def encode(message: Message, *, number: int = 0, reply_to: int = 0) -> bytes:
    """Return the message with its length in front."""
    frame = {
        "id": number,
        "re": reply_to,
        "type": type(message).__name__,
        "body": asdict(message),
    }
    data = json.dumps(frame, separators=(",", ":")).encode()
    return _LENGTH.pack(len(data)) + data


def decode(data: bytes) -> tuple[Message, int, int]:
    """Return (message, number, reply_to).  Raises Malformed for anything unexpected."""
    try:
        frame = json.loads(data)
        kind = _TYPES[frame["type"]]
        number, reply_to = frame["id"], frame["re"]
        if type(number) is not int or type(reply_to) is not int:
            raise Malformed("message numbers")
        return _build(kind, frame["body"]), number, reply_to
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Malformed("message between master and worker") from exc


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
