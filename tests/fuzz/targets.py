"""Fuzzing targets: one for each format that comes from somebody we do not trust.

A target takes any bytes and returns; an exception that comes out is a bug.  The exceptions that
a decoder promises are taken here, and whatever was decoded is also used as its reader would.
"""

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from asyncvarlink import VarlinkInterfaceRegistry, VarlinkTransport

import helper.policy
from helper.messages import LENGTH, BadFrame, FrameReader, Refused
from helper.messages import decode as decode_request
from tests.ipc.memory_backend import MemoryBackend
from vpnd.config.load import load_server
from vpnd.config.load_profile import load_profile
from vpnd.errors import ConfigError, Malformed, RestartNeeded
from vpnd.ipc.access import Caller
from vpnd.ipc.api import Daemon
from vpnd.ipc.connection import Connection
from vpnd.wire import ip
from vpnd.wire.auth_client import AskForm, encode_reply, parse_reply
from vpnd.wire.auth_messages import parse_auth_request
from vpnd.wire.coalesce import coalesce
from vpnd.wire.cstp import CstpReader, parse_disconnect
from vpnd.wire.dtls_hello import is_client_hello, peek_client_hello
from vpnd.wire.dtls_record import SUITES, DirectionKeys, RecordOpener, split_records
from vpnd.wire.http import HttpServer, Request
from vpnd.wire.http_client import HttpClient, HttpRequest, Response
from vpnd.wire.params_client import parse_params
from vpnd.wire.segment import segment, segment_room
from vpnd.wire.tls_hello import GroupListener, key_exchange_group
from vpnd.wire.tunnel_params import parse_connect
from vpnd.worker.control import decode as decode_message
from vpnd.worker.control import decode_start

Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {}
HEADROOM = 16  # bytes in front of each segment
ROOM = memoryview(bytearray(segment_room(HEADROOM)))
SUITE = SUITES["PSK-AES256-GCM-SHA384"]
KEYS = DirectionKeys(key=bytes(32), iv=bytes(4))


def target(*promised: type[Exception]) -> Callable[[Target], Target]:
    """Make a target of a function, named after it, that may raise what is `promised`."""

    def register(function: Target) -> Target:
        def run(data: bytes) -> None:
            with contextlib.suppress(*promised):
                function(data)

        TARGETS[function.__name__.replace("_", "-")] = run
        return run

    return register


@target(Malformed)
def dtls_hello(data: bytes) -> None:
    """The first datagram of a stranger."""
    if is_client_hello(data):
        hello = peek_client_hello(data)
        assert hello.app_id
        assert len(hello.random) == 32


@target()
def tls_hello(data: bytes) -> None:
    """What a server says first, read along for the name of the group."""
    key_exchange_group(data)
    listener = GroupListener()
    for piece in _pieces(data):
        listener.receive(piece)


@target(Malformed)
def dtls_record(data: bytes) -> None:
    """A datagram on a session's way: several records, none of them authentic."""
    opener, out = RecordOpener(SUITE, KEYS), memoryview(bytearray(len(data)))
    for record in split_records(memoryview(data)):
        with contextlib.suppress(Malformed):
            opener.open(record, out)


@target()
def cstp(data: bytes) -> None:
    """The stream inside TLS; how it was cut on the way changes nothing."""
    whole, whole_is_sound = _packets([data])
    cut, cut_is_sound = _packets(_pieces(data))
    assert whole_is_sound == cut_is_sound
    assert whole == cut if whole_is_sound else cut[: len(whole)] == whole


def _packets(pieces: list[bytes]) -> tuple[list[tuple[int, bytes]], bool]:
    """Return the packets, and whether all was sound: with the first Malformed it ends."""
    reader, packets = CstpReader(), []
    try:
        for piece in pieces:
            for kind, payload in reader.receive(piece):
                packets.append((kind, bytes(payload)))
                parse_disconnect(payload)
    except Malformed:
        return packets, False
    return packets, True


@target(Malformed)
def http_request(data: bytes) -> None:
    """A client's requests, and what is read in them."""
    server = HttpServer()
    for piece in _pieces(data):
        if (request := server.receive(piece)) is None:
            continue
        request.cookie("webvpn")
        if request.method == "CONNECT":
            parse_connect(request)
            return
        with contextlib.suppress(Malformed):
            parse_auth_request(request.body)
        server.respond(200, "OK", [("Content-Type", "text/xml")], b"<x/>")


@target(Malformed)
def http_response(data: bytes) -> None:
    """A server's answer to a login, and the way it is ended."""
    client = HttpClient()
    client.request(HttpRequest("POST", "/", (("Host", "vpn.example.org"),), b"<x/>"))
    for piece in _pieces(data):
        if (response := client.receive(piece)) is not None:
            response.cookies()
            parse_reply(response.body)
            return
    client.eof()


@target(Malformed)
def auth_request(data: bytes) -> None:
    """The XML of a client that logs in."""
    parse_auth_request(data)


@target(Malformed)
def auth_reply(data: bytes) -> None:
    """The XML of a server that asks, and our answer to it."""
    reply = parse_reply(data)
    if isinstance(reply, AskForm):
        encode_reply(reply, {each.name: "x" for each in reply.inputs})


@target(Malformed)
def connect_request(data: bytes) -> None:
    """The fields of a CONNECT."""
    parse_connect(Request("CONNECT", "/CSCOSSLC/tunnel", tuple(_fields(data)), b""))


@target(Malformed)
def connect_answer(data: bytes) -> None:
    """Addresses, routes and timers from a server that may mean harm."""
    params = parse_params(Response(200, "CONNECTED", tuple(_fields(data)), b""))
    assert 0 < params.mtu <= 9000
    assert all(text.isprintable() for text in params.remarks)


def _fields(data: bytes) -> list[tuple[str, str]]:
    lines = (line.partition(b":") for line in data.split(b"\n"))
    return [
        (name.decode("latin-1").lower(), value.strip().decode("latin-1"))
        for name, _, value in lines
    ]


@target(Malformed)
def superpacket(data: bytes) -> None:
    """What a TUN's reader gets; the segments fit together again."""
    segments = segment(memoryview(data), ROOM, HEADROOM)
    coalesce([packet[HEADROOM:] for packet in segments])


@target(Malformed)
def packets(data: bytes) -> None:
    """What a client sends inside the tunnel: packets behind their lengths."""
    train, at = [], 0
    while at + 2 <= len(data) and len(train) < 64:
        end = at + 2 + int.from_bytes(data[at : at + 2], "big") % 9001
        train.append(memoryview(data)[at + 2 : end])
        at = end
    sound = []
    for packet in train:
        with contextlib.suppress(Malformed):
            ip.source(packet)
            ip.destination(packet)
            ip.upper_layer(packet)
            sound.append(packet)
    coalesce(sound)


@target(BadFrame)
def helper_request(data: bytes) -> None:
    """What any local user may say to a program of root's."""
    reader = FrameReader()
    for piece in _pieces(LENGTH.pack(len(data)) + data):
        for payload in reader.receive(piece):
            with contextlib.suppress(Refused):
                decode_request(payload)


@target(Malformed, RestartNeeded)
def worker_message(data: bytes) -> None:
    """What a worker that was taken over may say to its master."""
    with contextlib.suppress(Malformed):
        decode_message(data)
    decode_start(data)


@target()
def varlink(data: bytes) -> None:
    """What any local user may say to vpnd."""
    asyncio.run(_call(data))


async def _call(data: bytes) -> None:
    loop, troubles = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: troubles.append(context))
    near, far = socket.socketpair()
    registry = VarlinkInterfaceRegistry()
    registry.register_interface(Daemon(MemoryBackend(), sees_names=True))
    caller = Caller(1, 0, frozenset())
    connection = Connection(
        registry,
        caller,
        is_admin=True,
        refused=lambda _: None,
        message_timeout_s=5.0,
        answer_timeout_s=5.0,
    )
    VarlinkTransport(loop, far, far, connection, boundary_predictor=None)
    with near:
        near.setblocking(False)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await loop.sock_sendall(near, data[:65536] + b"\0")
            near.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(near, 65536):
                pass
    assert not troubles, troubles


@target(ConfigError)
def server_toml(data: bytes) -> None:
    """A configuration that somebody wrote in a hurry."""
    with _file(data) as path:
        load_server(path)


@target(ConfigError)
def profile_toml(data: bytes) -> None:
    """A profile that came by mail."""
    load_profile("phone.toml", data)


@target(Refused)
def helper_toml(data: bytes) -> None:
    """The helper's policy."""
    with _file(data) as path:
        helper.policy.load(path)


@contextlib.contextmanager
def _file(data: bytes) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir="/dev/shm", suffix=".toml")
    path = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        yield path
    finally:
        path.unlink()


def _pieces(data: bytes) -> list[bytes]:
    """Return `data` as a network may bring it: cut where its own bytes say."""
    cuts = sorted({0, len(data), *(byte % (len(data) + 1) for byte in data[:3])})
    return [data[start:end] for start, end in pairwise(cuts)]
