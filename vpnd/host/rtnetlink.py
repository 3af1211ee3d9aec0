"""What the kernel tells its rtnetlink groups, as values (rtnetlink(7)).

Read are the fixed headers and the few attributes that `watch` decides by; what is not understood
is left out, since a later kernel may send more.
"""

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

# linux/rtnetlink.h: groups as bits of the address to bind to
GROUPS = {
    "LINK": 0x1,
    "IPV4_IFADDR": 0x10,
    "IPV4_ROUTE": 0x40,
    "IPV4_RULE": 0x80,
    "IPV6_IFADDR": 0x100,
    "IPV6_ROUTE": 0x400,
    "IPV6_RULE": 0x40000,
}
NEWLINK, DELLINK = 16, 17
NEWADDR, DELADDR = 20, 21
NEWROUTE, DELROUTE = 24, 25
NEWRULE, DELRULE = 32, 33
NLMSGHDR = struct.Struct("=IHHII")  # length, type, flags, sequence, port
IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, changed flags
IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
RTMSG = struct.Struct("=8BI")  # family, lengths, TOS, table, protocol, scope, type, flags
FIB_RULE_HDR = RTMSG
RTATTR = struct.Struct("=HH")  # length, type
U32 = struct.Struct("=I")
IFLA_IFNAME = 3
IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
RTA_DST, RTA_OIF, RTA_TABLE = 1, 4, 15
FRA_PROTOCOL = 21
IFF_LOOPBACK, IFF_LOWER_UP = 0x8, 0x10000
IFA_F_TENTATIVE = 0x40
RTM_F_CLONED = 0x200  # an entry of a cache


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface; `is_up` when it is switched on and has a carrier."""

    index: int
    name: str
    is_up: bool
    is_loopback: bool


@dataclass(frozen=True, slots=True)
class Address:
    """An address of a link that can be used, or that is gone."""

    index: int
    address: str
    is_there: bool


@dataclass(frozen=True, slots=True)
class Route:
    """A route that came or went; `index` is 0 for one without a single link."""

    index: int
    table: int
    protocol: int
    destination: str
    is_there: bool


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule that came or went."""

    protocol: int
    is_there: bool


Event = Link | Address | Route | Rule


def parse(data: bytes) -> Iterator[Event]:
    """Yield the events in what one read from the socket returned."""
    while len(data) >= NLMSGHDR.size:
        length, kind, _, _, _ = NLMSGHDR.unpack_from(data)
        body, data = data[NLMSGHDR.size : length], data[max(aligned(length), NLMSGHDR.size) :]
        try:
            event = _event(kind, body)
        except (struct.error, ValueError):
            continue
        if event is not None:
            yield event


def _event(kind: int, body: bytes) -> Event | None:
    if kind in (NEWLINK, DELLINK):
        return _link(body, is_there=kind == NEWLINK)
    if kind in (NEWADDR, DELADDR):
        return _address(body, is_there=kind == NEWADDR)
    if kind in (NEWROUTE, DELROUTE):
        return _route(body, is_there=kind == NEWROUTE)
    if kind in (NEWRULE, DELRULE):
        protocol = attributes(body[FIB_RULE_HDR.size :]).get(FRA_PROTOCOL, b"\0")
        return Rule(protocol[0], kind == NEWRULE)
    return None


def _link(body: bytes, *, is_there: bool) -> Link:
    _, _, index, flags, _ = IFINFOMSG.unpack_from(body)
    name = attributes(body[IFINFOMSG.size :]).get(IFLA_IFNAME, b"").rstrip(b"\0").decode()
    is_up = is_there and bool(flags & IFF_LOWER_UP)
    return Link(index, name, is_up, bool(flags & IFF_LOOPBACK))


def _address(body: bytes, *, is_there: bool) -> Address | None:
    _, _, short_flags, _, index = IFADDRMSG.unpack_from(body)
    found = attributes(body[IFADDRMSG.size :])
    (flags,) = U32.unpack(found.get(IFA_FLAGS, U32.pack(short_flags)))
    if is_there and flags & IFA_F_TENTATIVE:  # told again once it may be used
        return None
    address = found.get(IFA_LOCAL, found.get(IFA_ADDRESS, b""))
    return Address(index, str(ip_address(address)), is_there)


def _route(body: bytes, *, is_there: bool) -> Route | None:
    family, length, _, _, short_table, protocol, _, _, flags = RTMSG.unpack_from(body)
    if flags & RTM_F_CLONED:
        return None
    found = attributes(body[RTMSG.size :])
    (table,) = U32.unpack(found.get(RTA_TABLE, U32.pack(short_table)))
    (index,) = U32.unpack(found.get(RTA_OIF, bytes(4)))
    anything = bytes(16 if family == socket.AF_INET6 else 4)
    destination = f"{ip_address(found.get(RTA_DST, anything))}/{length}"
    return Route(index, table, protocol, destination, is_there)


def attributes(data: bytes) -> dict[int, bytes]:
    """Return the attributes behind a fixed header; of one that repeats, the last."""
    found = {}
    while len(data) >= RTATTR.size:
        length, kind = RTATTR.unpack_from(data)
        found[kind] = data[RTATTR.size : length]
        data = data[max(aligned(length), RTATTR.size) :]
    return found


def aligned(length: int) -> int:
    """Return where what follows so many bytes begins."""
    return (length + 3) & ~3  # NLMSG_ALIGNTO and RTA_ALIGNTO are both 4
