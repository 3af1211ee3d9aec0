"""The addresses of this host, asked of the kernel (rtnetlink(7), RTM_GETADDR)."""

import socket
from collections.abc import Iterator
from ipaddress import ip_address

from vpnd.host.rtnetlink import (
    IFA_ADDRESS,
    IFA_LOCAL,
    IFADDRMSG,
    NEWADDR,
    NLMSGHDR,
    aligned,
    attributes,
)

RTM_GETADDR = 22  # linux/rtnetlink.h
NLMSG_ERROR, NLMSG_DONE = 2, 3  # linux/netlink.h
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
MAX_DUMP = 4 * 1024 * 1024  # bytes; some 50,000 addresses
TIMEOUT_S = 2.0  # the kernel answers at once


def own_addresses(*, except_link: str = "") -> list[str]:
    """Return "ADDRESS/LENGTH" of all links but one, and but loopback and link-local ones.

    Raises OSError.
    """
    try:
        skipped = socket.if_nametoindex(except_link) if except_link else 0
    except OSError:
        skipped = 0
    found = []
    for index, length, packed in _dump():
        address = ip_address(packed)
        usual = not (address.is_loopback or address.is_link_local)
        if index != skipped and usual:
            found.append(f"{address}/{length}")
    return found


def _dump() -> Iterator[tuple[int, int, bytes]]:
    """Yield (link index, prefix length, packed address)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(TIMEOUT_S)
        body = IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        flags = NLM_F_REQUEST | NLM_F_DUMP
        sock.send(NLMSGHDR.pack(NLMSGHDR.size + len(body), RTM_GETADDR, flags, 1, 0) + body)
        received = 0
        while received < MAX_DUMP:
            data = sock.recv(64 * 1024)
            received += len(data)
            for kind, payload in _messages(data):
                if kind in (NLMSG_DONE, NLMSG_ERROR):
                    return
                if kind == NEWADDR:
                    yield from _address(payload)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= NLMSGHDR.size:
        size, kind, _, _, _ = NLMSGHDR.unpack_from(data)
        if not NLMSGHDR.size <= size <= len(data):
            return
        yield kind, data[NLMSGHDR.size : size]
        data = data[aligned(size) :]


def _address(payload: bytes) -> Iterator[tuple[int, int, bytes]]:
    family, length, _, _, index = IFADDRMSG.unpack_from(payload)
    found = attributes(payload[IFADDRMSG.size :])
    packed = found.get(IFA_LOCAL, found.get(IFA_ADDRESS))  # the first: our own end of a link
    if family in (socket.AF_INET, socket.AF_INET6) and packed:
        yield index, length, packed
