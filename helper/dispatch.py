"""What each request does, to the host and to the journal.

One connection speaks for one interface, which belongs to the user that said Hello.  The order
within a change: journal, then the rules that close, then what opens.
"""

import time
from dataclasses import asdict
from ipaddress import ip_interface, ip_network
from pathlib import Path

from pyroute2 import NetlinkError

from helper import firewall, forwarding, link, listeners, policy, tun
from helper.journal import Journal, JournalDirectory
from helper.messages import (
    PROTOCOL,
    BadFrame,
    Hello,
    OpenSockets,
    OpenTun,
    Refused,
    Request,
    SetFirewall,
    SetLink,
    Undo,
    parse,
)

TROUBLE = (Refused, OSError, NetlinkError)  # expected; told in one sentence
Answer = tuple[dict[str, object], list[int]]


class Host:
    """All interfaces: their journals, and for how long those without a caller stay."""

    def __init__(self, directory: JournalDirectory, adoption_s: float) -> None:
        self.directory = directory
        self.journals = directory.load()
        self._keep_until = dict.fromkeys(self.journals, time.monotonic() + adoption_s)
        self._in_use: set[str] = set()

    def next_expiry_s(self) -> float | None:
        """Return the seconds until an unclaimed interface is undone, or None."""
        deadline = min(self._keep_until.values(), default=None)
        return None if deadline is None else max(0.0, deadline - time.monotonic())

    def expire(self) -> list[str]:
        """Undo the interfaces that nobody claimed in time; return a line for each."""
        now = time.monotonic()
        due = [name for name, deadline in self._keep_until.items() if deadline <= now]
        return ["; ".join(self.undo(name)) or f"{name}: undone" for name in due]

    def claim(self, interface: str, uid: int) -> bool:
        """Give `interface` to `uid`; return whether earlier state was adopted."""
        kept = self.journals.get(interface)
        if interface in self._in_use:
            raise Refused(f"{interface} is in use by another connection; stop that program first")
        if kept and kept.uid != uid:
            raise Refused(f"{interface} is kept for user id {kept.uid}; try again in a minute")
        self._keep_until.pop(interface, None)
        self._in_use.add(interface)
        self.journals.setdefault(interface, Journal(interface, uid))
        return kept is not None

    def others(self, journal: Journal) -> list[Journal]:
        """Return the journals of the other interfaces."""
        return [other for other in self.journals.values() if other is not journal]

    def undo(self, interface: str) -> list[str]:
        """Take back all that the journal names; return what could not be (it stays noted)."""
        journal, failures = self.journals.pop(interface), []
        self._keep_until.pop(interface, None)
        self._in_use.discard(interface)
        for step in (
            lambda j: forwarding.release(j, self.others(j), list(j.claims)),
            firewall.undo,
            link.undo,
        ):
            try:
                step(journal)
            except Exception as exc:  # whatever it is, the next step is still to be made
                failures.append(f"{interface}: {exc}")
        if failures:
            self.directory.save(journal)
            self.journals[interface] = journal
        else:
            self.directory.remove(interface)
        return failures


class Caller:
    """One connection: who is calling, and for which interface."""

    def __init__(self, host: Host, policy_path: Path, uid: int, *, room: bool = True) -> None:
        """Look the caller up; raise Refused for a user without any rights, or without `room`."""
        if not room:
            raise Refused("too many connections to the helper; close some")
        self.uid = uid
        self._host = host
        self._rights = policy.rights_of(policy_path, uid)
        self._interface: str | None = None

    def handle(self, request: Request) -> Answer:
        """Do what is asked; return the answer's fields and the fds to send and close.

        Raises BadFrame when a request comes out of turn, one of TROUBLE when it cannot be granted.
        """
        interface = request.interface if isinstance(request, Hello) else self._interface
        if interface is None or self._interface not in (None, interface):
            raise BadFrame(f"{type(request).__name__} out of turn")
        self._rights.check(request)
        match request:
            case Hello():
                return self._hello(request), []
            case OpenTun():
                return self._open_tun(request)
            case OpenSockets():
                return {}, [found.detach() for found in listeners.open_sockets(request)]
            case SetLink():
                self._set_link(request)
            case SetFirewall():
                link.refuse_overlap(
                    self._journal.interface, [parse(ip_network, text) for text in request.networks]
                )
                self._journal.filter = asdict(request)
                firewall.apply(self._journal, self._host.directory)
                return {"backend": self._journal.firewall}, []
            case Undo():
                failures = self.close()
                self._host.claim(interface, self.uid)
                if failures:
                    raise Refused("; ".join(failures))
        return {}, []

    def close(self) -> list[str]:
        """Undo everything of this connection; return what could not be undone."""
        return self._host.undo(self._interface) if self._interface else []

    @property
    def _journal(self) -> Journal:
        assert self._interface is not None
        return self._host.journals[self._interface]

    def _hello(self, request: Hello) -> dict[str, object]:
        # who says it again was restarted, and goes on
        adopted = bool(self._interface) or self._host.claim(request.interface, self.uid)
        self._interface = request.interface
        return {
            "protocol": PROTOCOL,
            "token": request.token,
            "adopted": adopted,
            "firewall_backends": firewall.usable(),
        }

    def _open_tun(self, request: OpenTun) -> Answer:
        journal = self._journal
        journal.link_index, fds = tun.open_queues(journal.interface, request)
        # Until this is stored the interface ends with us: no one else has an fd of it.
        self._host.directory.save(journal)
        return {"index": journal.link_index}, fds

    def _set_link(self, request: SetLink) -> None:
        journal, host = self._journal, self._host
        addresses = [parse(ip_interface, text) for text in request.addresses]
        if not request.keep_outside:
            link.refuse_overlap(journal.interface, [address.network for address in addresses])
        journal.inner = [str(address.ip) for address in addresses if request.keep_outside]
        link.set_link(journal, request)
        versions = {address.version for address in addresses}
        settings: dict[str, str] = {}
        if request.forwarding:
            settings = forwarding.wanted(versions, list(host.journals.values()))
        if request.keep_outside:
            settings |= forwarding.loosened(list(host.journals.values()))
        surplus = [path for path in journal.claims if path not in settings]
        forwarding.release(journal, host.others(journal), surplus)
        forwarding.record(journal, host.others(journal), settings)
        firewall.apply(journal, host.directory)  # stores the journal; closes what is opened next
        forwarding.apply(journal, versions, tunnel=request.forwarding)
