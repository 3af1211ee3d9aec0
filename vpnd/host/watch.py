"""Tells when the host's network may have changed under a connection, so that it is looked at now.

The kernel's rtnetlink groups say what became of links, addresses, routes and rules; a clock that
runs during suspend, held against one that does not, says that the host has slept.  No privilege is
needed.  What comes together is told together, and a change that changes nothing is not told: an
address whose life time was prolonged, a link that reports its signal strength.
"""

import asyncio
import errno
import socket
import time
from collections.abc import Callable

from helper.messages import ROUTE_PROTOCOL, RULE_PROTOCOL
from vpnd.host.rtnetlink import GROUPS, Address, Event, Link, Route, Rule, parse

SETTLE_S = 0.1  # joining a network is some ten events within it
POLL_S = 1.0  # how late a resume may be noticed
SUSPENDED_S = 1.0  # the two clocks differ by less when the host only was busy
READ_SIZE = 64 * 1024
MAX_READS = 64  # in one turn: a flood of events must not starve the loop
MAX_NOTED = 256  # reasons kept until they are told
MAX_REASONS = 4  # told one by one
MAX_KNOWN = 4096  # links and addresses remembered; beyond, all is told
RT_TABLE_LOCAL = 255


def suspended_s() -> float:
    """Return for how many seconds in all this host has been suspended since its boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


class NetworkWatch:
    """Calls `changed(reason)` on the running loop when the network of this namespace changed.

    What happens to `interface`, our own, and the routes that the helper makes is left out, except
    that somebody else took a rule of the helper's away: then its SetLink should be asked again.
    """

    def __init__(
        self,
        interface: str,
        changed: Callable[[str], None],
        *,
        settle_s: float = SETTLE_S,
        poll_s: float = POLL_S,
        suspended: Callable[[], float] = suspended_s,
    ) -> None:
        """Begin to watch; raise OSError when the kernel gives no such socket."""
        self._interface = interface
        self._changed = changed
        self._settle_s = settle_s
        self._poll_s = poll_s
        self._suspended = suspended
        self._slept_s = suspended()
        self._own = {index for index, name in socket.if_nameindex() if name == interface}
        self._known: dict[object, object] = {}
        self._reasons: dict[str, None] = {}  # in order, each once
        self._loop = asyncio.get_running_loop()
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._socket.bind((0, sum(GROUPS.values())))
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._telling: asyncio.TimerHandle | None = None
        self._polling = self._loop.call_later(poll_s, self._poll)

    def close(self) -> None:
        """Watch no more; may be called twice."""
        self._polling.cancel()
        if self._telling is not None:
            self._telling.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _on_readable(self) -> None:
        for _ in range(MAX_READS):
            try:
                data, sender = self._socket.recvfrom(READ_SIZE)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                self._note("more happened than could be followed")
                continue
            if sender[0] == 0:  # port 0 is the kernel; others may send to us too
                for event in parse(data):
                    self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Link():
                self._take_link(event)
            case Address(index, address, is_there):
                if self._is_news((index, address), is_there) and index not in self._own:
                    self._note(f"address {address} {'came' if is_there else 'went'}")
            case Route(index, table, protocol, destination, is_there):
                ours = index in self._own or protocol == ROUTE_PROTOCOL
                if not ours and table != RT_TABLE_LOCAL:  # that follows the addresses
                    self._note(f"route {destination} {'came' if is_there else 'went'}")
            case Rule(protocol, is_there):
                if protocol == RULE_PROTOCOL and not is_there:
                    self._note("a routing rule went")

    def _take_link(self, link: Link) -> None:
        if link.name == self._interface:
            self._own.add(link.index)
        elif self._is_news(link.index, link.is_up) and not link.is_loopback:
            self._note(f"link {link.name} is {'up' if link.is_up else 'down'}")

    def _is_news(self, key: object, value: object) -> bool:
        """Return whether `key` was not known to be `value`, which it is from now on."""
        if self._known.get(key) == value:
            return False
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[key] = value
        return True

    def _note(self, reason: str) -> None:
        if len(self._reasons) < MAX_NOTED:
            self._reasons[reason] = None
        if self._telling is None:  # the first event sets the time, so that no flood puts it off
            self._telling = self._loop.call_later(self._settle_s, self._tell)

    def _tell(self) -> None:
        reasons, self._reasons, self._telling = list(self._reasons), {}, None
        more = len(reasons) - MAX_REASONS
        told = ", ".join(reasons[:MAX_REASONS])
        self._changed(f"{told} and {more} more" if more > 0 else told)

    def _poll(self) -> None:
        self._polling = self._loop.call_later(self._poll_s, self._poll)
        slept_s = self._suspended() - self._slept_s
        self._slept_s += slept_s
        if slept_s > SUSPENDED_S:
            self._note(f"the host was suspended for {slept_s:.0f} s")
