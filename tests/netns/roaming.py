"""What happens to a client on the move: other outer addresses, a NAT that forgets its ports."""

import re
import socket
import struct
from itertools import pairwise

from tests.netns.bed import Bed
from tests.netns.namespace import Namespace, inside
from tests.netns.process import Process

NAT = "pyvpn_nat"  # the nft table of a home router
WALL = "pyvpn_wall"  # and that of a network where nothing passes
NFNETLINK, CT_DELETE, CTNETLINK = 12, 2, 1  # linux/netlink.h, linux/netfilter/nfnetlink*.h
REQUEST, ACK = 1, 4  # flags, linux/netlink.h
EVERY_S = 0.02


class Roamer:
    """Moves the first client of a bed from network to network."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._own, self._router = "198.51.100.2", "198.51.100.1"
        self._moves = 0
        self._binding = 0

    def move(self) -> str:
        """Give the client another address and router, and take the old ones; return it."""
        base = 128 + 4 * self._moves
        self._moves += 1
        own, router = f"198.51.100.{base + 2}", f"198.51.100.{base + 1}"
        self._bed.internet.ip(
            f"address del {self._router}/30 dev client0", f"address add {router}/30 dev client0"
        )
        self._bed.client.ip(
            f"address del {self._own}/30 dev uplink",
            f"address add {own}/30 dev uplink",
            f"route add default via {router}",
        )
        self._own, self._router = own, router
        return own

    def rebind(self) -> range:
        """Have a NAT on the way forget what it knew: UDP comes from other ports from now on.

        Answers to the old ports are dropped: let through, they would bring the old ones back
        before the client sends.
        """
        first = 40000 + 1000 * self._binding
        ports = f"{first}-{first + 999}"
        self._nat(
            f'iifname "client0" ip protocol udp snat to {self._own}:{ports}',
            'oifname "client0" ip protocol udp ct state new drop',
        )
        return range(first, first + 1000)

    def _nat(self, translation: str, forward: str = "accept") -> None:
        """Put a NAT with these rules in place of an earlier one, and forget its connections.

        In one transaction: without any NAT, packets would pass as they are.
        """
        self._binding += 1
        self._bed.internet.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")
        self._bed.internet.nft(
            f"table ip {NAT} {{}}\ndelete table ip {NAT}\n"
            f"table ip {NAT} {{\n"
            f"chain out {{ type nat hook postrouting priority srcnat; {translation}; }}\n"
            f"chain through {{ type filter hook forward priority 0; {forward}; }}\n}}\n"
        )
        inside(self._bed.internet, forget_connections)

    def block(self) -> None:
        """Let nothing of the client through, without a word."""
        self._bed.internet.nft(
            f"table ip {WALL} {{ chain through {{ type filter hook forward priority 0;"
            ' iifname "client0" drop; }; }'
        )

    def unblock(self) -> None:
        self._bed.internet.nft(f"delete table ip {WALL}")

    def readdress(self) -> str:
        """Have the NAT get another address: the client's host notices nothing; return it.

        What belongs to no connection that the NAT knows is dropped there without a word.
        """
        new = f"203.0.113.{10 + self._binding}"
        self._bed.internet.ip(f"address add {new}/32 dev server")
        self._nat(
            f'iifname "client0" snat to {new}',
            'iifname "client0" ct state invalid drop',
        )
        return new


def forget_connections() -> None:
    """Empty the connection tracking of the namespace that this runs in."""
    kind = CTNETLINK << 8 | CT_DELETE
    message = struct.pack("=IHHIIBBH", 20, kind, REQUEST | ACK, 1, 0, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NFNETLINK) as netlink:
        netlink.send(message)
        answer = netlink.recv(4096)
    (error,) = struct.unpack_from("=i", answer, 16)
    if error:
        raise OSError(-error, "emptying the connection tracking")


class Pulse:
    """Echoes every 20 ms: the longest time without an answer is what a person would notice."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    def start(cls, namespace: Namespace, address: str) -> "Pulse":
        process = namespace.start("pulse", "ping", "-D", "-i", str(EVERY_S), address)
        process.wait_for("bytes from")
        return cls(process)

    def longest_pause(self, since: float) -> float:
        """Return the longest time in seconds without an answer, since a Unix time."""
        times = re.findall(r"^\[([\d.]+)\].*bytes from", self._process.text(), re.MULTILINE)
        beats = [since, *(beat for time in times if (beat := float(time)) > since)]
        assert len(beats) > 1, "no answer since then"
        return max(after - before for before, after in pairwise(beats))

    def stop(self) -> None:
        self._process.kill()
