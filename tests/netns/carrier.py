"""A host whose helper keeps one user outside the tunnel, and sockets of that user and others.

Which way a packet takes is decided by its socket's user, so all is tried with real sockets.
"""

import asyncio
import contextlib
import ctypes
import errno
import itertools
import os
import pwd
import select
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

from tests.netns.helper_host import HelperHost
from tests.netns.namespace import Namespace, inside
from tests.netns.snapshot import differences, snapshot
from vpnd.host.helper_client import HelperClient

numbers = itertools.count(300)
CARRIER, OTHER, ROOT = pwd.getpwnam("games").pw_uid, pwd.getpwnam("mail").pw_uid, 0
FAR, FAR6 = "203.0.113.9", "2001:db8:9::9"  # behind the default route
LAN, LAN6 = "198.51.100.2", "2001:db8:2::2"  # on a link of the host
INNER, INNER6 = "10.8.0.2", "fd00:1::2"
PORT = 9999
WAIT_S = 5.0
RP = "net/ipv4/conf/{}/rp_filter"
FULL: dict[str, Any] = {
    "mtu": 1400,
    "addresses": [f"{INNER}/24", f"{INNER6}/64"],
    "routes": ["0.0.0.0/0", "::/0"],
    "forwarding": False,
    "keep_outside": True,
    "block_ipv6": True,
}
ONLY4 = FULL | {"addresses": [f"{INNER}/24"], "routes": ["0.0.0.0/0"]}


@contextlib.contextmanager
def carrier_host() -> Iterator[HelperHost]:
    """Yield a host with default routes, which must be left as it was found."""
    host = HelperHost(next(numbers))
    try:
        host.build()
        host.inet.ip(f"address add {FAR}/32 dev lo", f"address add {FAR6}/128 dev lo")
        host.host.ip("route add default via 192.0.2.2", "route add default via 2001:db8:1::2")
        before = snapshot(host.host)
        host.start()
        yield host
        asyncio.run(undone(host))
        host.helper.stop()
        assert differences(before, snapshot(host.host)) == []
        assert host.journals() == []
    finally:
        host.close()


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def socket_of(host: HelperHost, uid: int, family: int, kind: int) -> socket.socket:
    """Return a socket that belongs to `uid` in the host's namespace."""

    def make() -> socket.socket:
        ctypes.CDLL(None).setfsuid(uid)  # of this thread alone, which ends at once
        return socket.socket(family, kind)

    return inside(host.host, make)


async def connect(host: HelperHost, uid: int = CARRIER, name: str = "pyvpn10") -> HelperClient:
    """Say Hello as `uid`: SO_PEERCRED keeps who connected."""
    os.seteuid(uid)
    try:
        pending = asyncio.ensure_future(host.connect(name))
        return await pending
    finally:
        os.seteuid(0)


async def undone(host: HelperHost) -> None:
    """Return when the end of the connection before was dealt with."""
    (await connect(host)).close()


def receiver(namespace: Namespace) -> socket.socket:
    """Return a socket there that gets datagrams of both families."""

    def make() -> socket.socket:
        sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("", PORT))
        return sock

    return inside(namespace, make)


class Tunnel:
    """The carrier's helper connection, its TUN, and receivers at the ends of the other links."""

    def __init__(self, host: HelperHost, client: HelperClient, fds: list[int]) -> None:
        self.host = host
        self.client = client
        self.fds = fds
        self.receivers = {receiver(host.inet): "inet", receiver(host.lan): "lan"}

    def way(self, uid: int, address: str) -> str:
        """Return where a datagram of `uid` to `address` arrives: tunnel, inet, lan or nowhere."""
        self.drain()
        with socket_of(self.host, uid, family_of(address), socket.SOCK_DGRAM) as sock:
            try:
                sock.sendto(b"which way?", (address, PORT))
            except OSError as exc:
                if exc.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
                    raise
                return "nowhere"
        wanted = socket.inet_pton(family_of(address), address)
        while ready := select.select(self._ends(), [], [], WAIT_S)[0]:
            for each in ready:
                if isinstance(each, socket.socket):
                    assert each.recv(100) == b"which way?"
                    return self.receivers[each]
                if wanted in os.read(each, 65536):
                    return "tunnel"
        return "lost"

    def _ends(self) -> list[int | socket.socket]:
        return [*self.fds, *self.receivers]

    def drain(self) -> None:
        """Forget what arrived before."""
        while ready := select.select(self._ends(), [], [], 0)[0]:
            for each in ready:
                each.recv(100) if isinstance(each, socket.socket) else os.read(each, 65536)

    def lose_tun(self) -> None:
        """Go on without the interface, which the helper has taken away."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        for sock in self.receivers:
            sock.close()
        self.lose_tun()


@contextlib.asynccontextmanager
async def tunnel(host: HelperHost, wanted: dict[str, Any]) -> AsyncIterator[Tunnel]:
    client = await connect(host)
    try:
        up = Tunnel(host, client, await client.open_tun(queues=1, tx_queue_len=500))
        try:
            await client.set_link(**wanted)
            yield up
        finally:
            up.close()
    finally:
        client.close()
