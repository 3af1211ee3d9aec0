"""What can be asked of the helper, and how it travels.

A frame is a 4-byte big-endian length and that many bytes of JSON.  A request is an object whose
"request" names one of the classes below and whose other keys are exactly its fields; the answer is
{"ok": {...}} or {"error": "one sentence"}, file descriptors beside its first byte (SCM_RIGHTS).

Each class refuses bad values when it is made, so one that exists is sound; whether the caller may
have it is `policy`'s question.  This is the only module of the helper that vpnd may import.
"""

import dataclasses
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_interface, ip_network
from typing import Any, get_args

PROTOCOL = 1
RESUME = b"\xff" * 8  # in no honest frame: one that was begun before it is not to be finished
ROUTE_PROTOCOL = 118  # who made a route: a number that rtnetlink.h leaves free is us
RULE_PROTOCOL = 2  # RTPROT_KERNEL: systemd-networkd takes away all other rules when it restarts
MAX_FRAME = (
    4 * 1024 * 1024
)  # room for some 100,000 routes; JSON a hostile caller can make us parse
MAX_QUEUES = 64  # one a worker; the kernel's own limit is 256
MAX_FDS = 250  # SCM_MAX_FD is 253 in one message
MAX_ADDRESSES = 16  # of one interface
MAX_ROUTES = 4096  # of one interface: a second or two of netlink, in which others wait
MAX_NETWORKS = 64  # inner networks of one server
MAX_BUFFER = 64 * 1024 * 1024  # of one socket: the kernel takes it from unswappable memory
INTERFACE = re.compile(r"pyvpn(0|[1-9][0-9]{0,2})")
LENGTH = struct.Struct(">I")

Network = IPv4Network | IPv6Network


class BadFrame(Exception):
    """Bytes that are no request at all: nothing more can be read from such a peer."""


class Refused(Exception):
    """A request that cannot be granted; the text says why and what to do."""


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise Refused(f"{name} {value} is outside {low} to {high}")


def parse(kind: Callable[[str], Any], text: str) -> Any:
    """Return what `kind` (a factory of `ipaddress`) makes of `text`, or raise Refused."""
    try:
        found = kind(text)
    except ValueError as exc:
        raise Refused(str(exc)) from exc
    if found.is_multicast or found.is_link_local or getattr(found, "scope_id", None):
        raise Refused(f"{text!r}: multicast and link-local addresses are not possible here")
    return found


@dataclass(frozen=True, slots=True)
class Hello:
    """The first request: which interface this connection speaks for.

    Whoever takes a connection over from a process that died says it again, behind RESUME;
    `token` comes back in the answer, which tells it from answers that nobody has read.
    """

    interface: str
    protocol: int = PROTOCOL
    token: str = ""

    def __post_init__(self) -> None:
        if not INTERFACE.fullmatch(self.interface):
            raise Refused(f"{self.interface!r} is no interface name; use pyvpn0 to pyvpn999")


@dataclass(frozen=True, slots=True)
class OpenTun:
    """Make the interface: the answer carries one fd for each queue."""

    queues: int
    tx_queue_len: int

    def __post_init__(self) -> None:
        _within("queues", self.queues, 1, MAX_QUEUES)
        _within("tx_queue_len", self.tx_queue_len, 1, 100_000)


@dataclass(frozen=True, slots=True)
class OpenSockets:
    """Bind listeners: for each (address, port) one TCP fd, then `udp_per_address` UDP fds."""

    listen: tuple[tuple[str, int], ...]
    udp_per_address: int
    buffer_bytes: int

    def __post_init__(self) -> None:
        _within("udp_per_address", self.udp_per_address, 0, MAX_QUEUES)
        _within("buffer_bytes", self.buffer_bytes, 4096, MAX_BUFFER)
        _within("sockets", len(self.listen) * (1 + self.udp_per_address), 1, MAX_FDS)
        for address, port in self.listen:
            parse(ip_address, address)
            _within("port", port, 1, 65535)


@dataclass(frozen=True, slots=True)
class SetLink:
    """The whole wanted state of the interface: what it does not name is taken away.

    With `keep_outside` the routes hold for everybody but the caller, before any route of the host;
    `exclude` are prefixes that stay as they were, and with `block_ipv6` other IPv6 goes nowhere.
    """

    mtu: int
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    forwarding: bool
    exclude: tuple[str, ...] = ()
    keep_outside: bool = False
    block_ipv6: bool = False

    def __post_init__(self) -> None:
        _within("number of addresses", len(self.addresses), 0, MAX_ADDRESSES)
        _within("number of routes", len(self.routes) + len(self.exclude), 0, MAX_ROUTES)
        networks = [parse(ip_interface, text).network for text in self.addresses]
        if not all(network.prefixlen for network in networks):
            raise Refused("an address needs its prefix length")
        networks += [parse(ip_network, text) for text in self.routes]
        lowest = 1280 if any(network.version == 6 for network in networks) else 576  # RFC 8200, 5
        _within("mtu", self.mtu, lowest, 65535)
        if not self.keep_outside and (self.exclude or self.block_ipv6):
            raise Refused("exclude and block_ipv6 are for keep_outside only")
        if twice := {parse(ip_network, text) for text in self.exclude}.intersection(networks):
            raise Refused(f"{min(map(str, twice))} cannot be both inside and excluded")


@dataclass(frozen=True, slots=True)
class SetFirewall:
    """The whole wanted rule set of the interface; `networks` are the inner prefixes."""

    networks: tuple[str, ...]
    masquerade: bool
    clamp_mss: bool
    client_to_client: bool

    def __post_init__(self) -> None:
        _within("number of networks", len(self.networks), 0, MAX_NETWORKS)
        if not all(parse(ip_network, text).prefixlen for text in self.networks):
            raise Refused("the whole Internet cannot be an inner network")


@dataclass(frozen=True, slots=True)
class Undo:
    """Take back everything that was done for this interface."""


Request = Hello | OpenTun | OpenSockets | SetLink | SetFirewall | Undo
REQUESTS: Mapping[str, type[Request]] = {
    kind.__name__: kind for kind in (Hello, OpenTun, OpenSockets, SetLink, SetFirewall, Undo)
}


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fits(value: object, kind: Any) -> bool:
    args = get_args(kind)
    if not args:
        return type(value) is kind  # not isinstance: True is an int
    if not isinstance(value, tuple):
        return False
    kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
    return len(kinds) == len(value) and all(map(_fits, value, kinds))


def decode(payload: bytes) -> Request:
    """Return the request in one frame's `payload`; raise BadFrame, or Refused for bad values."""
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as exc:
        raise BadFrame("no JSON") from exc
    if not isinstance(fields, dict):
        raise BadFrame("no JSON object")
    if fields.get("protocol", PROTOCOL) != PROTOCOL:  # before its fields, which may be others
        raise Refused(f"helper speaks protocol {PROTOCOL}: restart helper and vpnd together")
    name = fields.pop("request", None)
    kind = REQUESTS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise BadFrame("unknown request")
    known = {field.name: field.type for field in dataclasses.fields(kind)}
    values = {key: _frozen(value) for key, value in fields.items()}
    if values.keys() != known.keys() or not all(_fits(values[k], known[k]) for k in known):
        raise BadFrame(f"{name} with wrong fields")
    return kind(**values)  # type: ignore[arg-type]  # _fits has just checked every one


def encode(request: Request) -> bytes:
    """Return the frame that carries `request`."""
    return frame({"request": type(request).__name__, **dataclasses.asdict(request)})


def frame(value: Mapping[str, object]) -> bytes:
    """Return `value` as one frame."""
    payload = json.dumps(value).encode()
    return LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into payloads; holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._held = bytearray()

    def receive(self, data: bytes) -> Iterable[bytes]:
        """Yield the payloads that `data` completes; raise BadFrame for one over MAX_FRAME."""
        if RESUME in data:
            self._held.clear()
        self._held += data.rpartition(RESUME)[2]
        while len(self._held) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._held)
            if size > MAX_FRAME:
                raise BadFrame(f"a frame of {size} bytes")
            end = LENGTH.size + size
            if len(self._held) < end:
                return
            payload = bytes(self._held[LENGTH.size : end])
            del self._held[:end]
            yield payload
