"""Addresses, MTU, routes and rules of one interface, brought to the wanted state over rtnetlink.

Kept outside is a user, not an address: a rule sends all others, and what is forwarded, to a table
of the interface's own before any other is asked.  So there is no host route to the gateway, and no
network that the host joins can claim, with routes of its own, traffic that belongs inside.
"""

import socket
from ipaddress import ip_interface, ip_network
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from helper import sysctl
from helper.journal import Journal
from helper.messages import INTERFACE, ROUTE_PROTOCOL, RULE_PROTOCOL, Network, Refused, SetLink

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
FIRST_TABLE = 28_000  # pyvpn10's routing table is 28010, which is also its rules' priority
MAIN_TABLE = 254
RTN_UNICAST, RTN_UNREACHABLE, RTN_THROW = 1, 7, 9
LAST = 0xFFFFFFFF  # the metric of what holds when nothing else does
FIB_RULE_INVERT = 2  # fib_rules.h
IFA_F_NOPREFIXROUTE = 0x200  # if_addr.h: the kernel adds no route to the main table
IPV6_OFF = 'if this host has IPv6 switched off, enable it or set network.ipv6 = ""'
GONE = {2, 3, 19, 99}  # ENOENT, ESRCH, ENODEV, EADDRNOTAVAIL: it went with its interface
Thing = tuple[str, tuple[tuple[str, Any], ...]]  # a method of IPRoute, and arguments; sortable


def undo(journal: Journal) -> None:
    """Take away the interface, unless it is gone or another one of that name, and the rules."""
    with IPRoute() as netlink:
        ours = list(netlink.link_lookup(ifname=journal.interface)) == [journal.link_index]
        link = {_thing("link", index=journal.link_index)} if ours else set()
        _reconcile(netlink, link, set())  # most routes go with it
        _reconcile(netlink, _ways(netlink, journal), set())
    journal.link_index = None


def set_link(journal: Journal, wanted: SetLink) -> None:
    """Bring the journal's interface to `wanted`: MTU, up, exactly these addresses and routes."""
    index = journal.link_index
    with IPRoute() as netlink:
        if index is None or list(netlink.link_lookup(ifname=journal.interface)) != [index]:
            raise Refused(f"{journal.interface} does not exist: ask for OpenTun first")
        netlink.link("set", index=index, mtu=wanted.mtu, state="up")
        flags = IFA_F_NOPREFIXROUTE * wanted.keep_outside
        addresses = {_address(index, text, flags) for text in wanted.addresses}
        _reconcile(netlink, _addresses(netlink, index), addresses)
        # The last address may have taken routes with it: look only now.
        _reconcile(netlink, _ways(netlink, journal), _wanted_ways(journal, wanted))


def _reconcile(netlink: Any, present: set[Thing], wanted: set[Thing]) -> None:
    """Take away and add, never replace: another's route stays.  A rule goes first, comes last."""
    steps = [("del", thing) for thing in sorted(present - wanted, reverse=True)]
    for verb, (kind, what) in steps + [("add", thing) for thing in sorted(wanted - present)]:
        try:
            getattr(netlink, kind)(verb, **dict(what))
        except NetlinkError as exc:
            if verb == "add" or exc.code not in GONE:
                fix = IPV6_OFF if ("family", socket.AF_INET6) in what else f"see `ip {kind}`"
                raise Refused(f"`ip {kind} {verb}` of {what[0][1]} failed: {exc}; {fix}") from exc


def _thing(kind: str, **what: Any) -> Thing:
    return kind, tuple(what.items())


def _address(index: int, text: str, flags: int) -> Thing:
    address = ip_interface(text)
    where = {"family": FAMILY[address.version], "prefixlen": address.network.prefixlen}
    return _thing("addr", address=str(address.ip), index=index, flags=flags, **where)


def _addresses(netlink: Any, index: int) -> set[Thing]:
    return {
        _address(index, _text(m), m.get_attr("IFA_FLAGS") & IFA_F_NOPREFIXROUTE)
        for m in netlink.get_addr(index=index)
        if m["index"] == index
    }


def _text(message: Any) -> str:
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return f"{local}/{message['prefixlen']}"


def _table(journal: Journal) -> int:
    return FIRST_TABLE + int(journal.interface.removeprefix("pyvpn"))


def _rule(journal: Journal, family: int) -> Thing:
    """Return the rule that sends all but the caller to the interface's table."""
    own = dict.fromkeys(("table", "priority"), _table(journal)) | {"protocol": RULE_PROTOCOL}
    caller = {"uid_range": f"{journal.uid}:{journal.uid}", "flags": FIB_RULE_INVERT}
    return _thing("rule", **own, **caller, family=family)


def _route(table: int, kind: int, network: Network, index: int | None) -> Thing:
    ends = {RTN_UNICAST: ("oif", index), RTN_UNREACHABLE: ("priority", LAST)}.get(kind)
    what = {"dst": str(network), "family": FAMILY[network.version], "table": table, "type": kind}
    return _thing("route", **what, proto=ROUTE_PROTOCOL, **dict([ends] if ends else []))


def _ways(netlink: Any, journal: Journal) -> set[Thing]:
    """Return our routes through the interface or in its table, and our rules for it."""
    own, index = _table(journal), journal.link_index or 0
    routes = {
        _route(table, m["type"], _destination(m), index)
        for m in _routes(netlink)
        if m["proto"] == ROUTE_PROTOCOL
        and ((table := m.get_attr("RTA_TABLE")) == own or index in _links(m))
    }
    return routes | {
        _rule(journal, m["family"])
        for family in FAMILY.values()
        for m in netlink.get_rules(family=family)
        if (m.get_attr("FRA_TABLE"), m.get_attr("FRA_PROTOCOL")) == (own, RULE_PROTOCOL)
    }


def _wanted_ways(journal: Journal, wanted: SetLink) -> set[Thing]:
    inside, index = {ip_network(text) for text in wanted.routes}, journal.link_index
    if not wanted.keep_outside:
        return {_route(MAIN_TABLE, RTN_UNICAST, network, index) for network in inside}
    inside |= {ip_interface(text).network for text in wanted.addresses}
    # What a default route loses for a moment, with its last address, must not leave elsewhere.
    blocked = {n for n in inside if not n.prefixlen} | {*[ip_network("::/0")] * wanted.block_ipv6}
    kinds = {
        RTN_UNICAST: inside,
        RTN_THROW: {ip_network(text) for text in wanted.exclude},
        RTN_UNREACHABLE: blocked,
    }
    usable = [v for v in FAMILY if v == 4 or sysctl.read("ipv6/conf/all/disable_ipv6")]
    return {_rule(journal, FAMILY[version]) for version in usable} | {
        _route(_table(journal), kind, network, index)
        for kind, networks in kinds.items()
        for network in networks
        if network.version in usable
    }


def _routes(netlink: Any) -> list[Any]:
    return [m for family in FAMILY.values() for m in netlink.get_routes(family=family)]


def _destination(message: Any) -> Network:
    everywhere = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"  # noqa: S104  # no socket
    return ip_network(f"{message.get_attr('RTA_DST') or everywhere}/{message['dst_len']}")


def _links(message: Any) -> list[int]:
    hops = message.get_attr("RTA_MULTIPATH") or []
    return [message.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)]


def uplinks() -> dict[int, str]:
    """Return index and name of every link that is neither loopback nor a tunnel of ours."""
    with IPRoute() as netlink:
        return {i: n for i, n in _names(netlink).items() if not INTERFACE.fullmatch(n)}


def _names(netlink: Any) -> dict[int, str]:
    return {
        link["index"]: name
        for link in netlink.get_links()
        if (name := link.get_attr("IFLA_IFNAME")) != "lo"
    }


def carriers(version: int) -> list[str]:
    """Return the names of the uplinks that carry a route of IPv`version`."""
    with IPRoute() as netlink:
        networks = [
            (_destination(m), _links(m))
            for m in _routes(netlink)
            if (m["family"], m.get_attr("RTA_TABLE")) == (FAMILY[version], MAIN_TABLE)
            and m["type"] == RTN_UNICAST
        ]
    return [
        name
        for index, name in uplinks().items()
        if any(index in found and not network.is_link_local for network, found in networks)
    ]


def refuse_overlap(interface: str, networks: list[Network]) -> None:
    """Raise Refused when another link has an address in, or a network around, one of `networks`.

    Our rules would cut that link off: packets from these networks are dropped on all others.
    """
    with IPRoute() as netlink:
        names = _names(netlink)
        taken = [(ip_interface(_text(m)), names.get(m["index"])) for m in netlink.get_addr()]
    for address, name in taken:
        for network in networks if name not in (None, interface) else []:
            if address.version == network.version and network.overlaps(address.network):
                raise Refused(
                    f"{network} overlaps {address} of {name}: "
                    "choose another inner network (network.ipv4, network.ipv6)"
                )
