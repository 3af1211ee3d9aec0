"""Addresses, MTU and routes of one interface, brought to the wanted state over rtnetlink."""

import socket
from ipaddress import ip_interface, ip_network
from typing import Any

from pyroute2 import IPRoute, NetlinkError

from helper.journal import Journal
from helper.messages import INTERFACE, Network, Refused, SetLink

FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
MAIN_TABLE = 254
RTPROT_STATIC = 4  # rtnetlink.h: ours on our interface; the kernel's own are 2
RTN_UNICAST = 1
IPV6_OFF = 'if this host has IPv6 switched off, enable it or set network.ipv6 = ""'


def undo(journal: Journal) -> None:
    """Take the interface away, and its mention, unless it is gone, or another one of that name."""
    with IPRoute() as netlink:
        if list(netlink.link_lookup(ifname=journal.interface)) == [journal.link_index]:
            netlink.link("del", index=journal.link_index)
    journal.link_index = None


def set_link(journal: Journal, wanted: SetLink) -> None:
    """Bring the journal's interface to `wanted`: MTU, up, exactly these addresses and routes."""
    index = journal.link_index
    with IPRoute() as netlink:
        if index is None or list(netlink.link_lookup(ifname=journal.interface)) != [index]:
            raise Refused(f"{journal.interface} does not exist: ask for OpenTun first")
        netlink.link("set", index=index, mtu=wanted.mtu, state="up")
        _set_addresses(netlink, index, {*map(str, map(ip_interface, wanted.addresses))})
        _set_routes(netlink, index, {*map(str, map(ip_network, wanted.routes))})


def _set_addresses(netlink: Any, index: int, wanted: set[str]) -> None:
    present = {_address(m) for m in netlink.get_addr(index=index) if m["index"] == index}
    for text, verb in [(t, "del") for t in present - wanted] + [
        (t, "add") for t in wanted - present
    ]:
        address = ip_interface(text)
        where = {"index": index, "address": str(address.ip), "family": FAMILY[address.version]}
        try:
            netlink.addr(verb, prefixlen=address.network.prefixlen, **where)
        except NetlinkError as exc:
            fix = IPV6_OFF if address.version == 6 else "see `ip address`"
            raise Refused(f"address {text} cannot be given ({exc}): {fix}") from exc


def _address(message: Any) -> str:
    local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
    return str(ip_interface(f"{local}/{message['prefixlen']}"))


def _set_routes(netlink: Any, index: int, wanted: set[str]) -> None:
    present = {
        _destination(message)
        for message in _main_table(netlink)
        if message["proto"] == RTPROT_STATIC and index in _links(message)
    }
    for text, verb in [(t, "del") for t in present - wanted] + [
        (t, "add") for t in wanted - present
    ]:
        network = ip_network(text)
        try:  # "add", not "replace": another's route is never taken away
            where = {"oif": index, "proto": RTPROT_STATIC, "table": MAIN_TABLE}
            netlink.route(verb, family=FAMILY[network.version], dst=text, **where)
        except NetlinkError as exc:
            raise Refused(f"route {text} cannot be made: {exc}; see `ip route`") from exc


def _main_table(netlink: Any) -> list[Any]:
    messages = [
        *netlink.get_routes(family=socket.AF_INET),
        *netlink.get_routes(family=socket.AF_INET6),
    ]
    return [
        message
        for message in messages
        if message.get_attr("RTA_TABLE") == MAIN_TABLE and message["type"] == RTN_UNICAST
    ]


def _destination(message: Any) -> str:
    everywhere = "::" if message["family"] == socket.AF_INET6 else "0.0.0.0"  # noqa: S104  # no socket
    return str(ip_network(f"{message.get_attr('RTA_DST') or everywhere}/{message['dst_len']}"))


def _links(message: Any) -> list[int]:
    hops = [hop["oif"] for hop in message.get_attr("RTA_MULTIPATH") or []]
    return [message.get_attr("RTA_OIF"), *hops]


def uplinks() -> dict[int, str]:
    """Return index and name of every link that is neither loopback nor a tunnel of ours."""
    with IPRoute() as netlink:
        return {i: n for i, n in _names(netlink).items() if not INTERFACE.fullmatch(n)}


def _names(netlink: Any) -> dict[int, str]:
    names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
    return {index: name for index, name in names.items() if name != "lo"}


def carriers(version: int) -> list[str]:
    """Return the names of the uplinks that carry a route of IPv`version`."""
    with IPRoute() as netlink:
        routes = [m for m in _main_table(netlink) if m["family"] == FAMILY[version]]
    networks = [(ip_network(_destination(message)), _links(message)) for message in routes]
    used = {index for network, found in networks if not network.is_link_local for index in found}
    return [name for index, name in uplinks().items() if index in used]


def refuse_overlap(interface: str, networks: list[Network]) -> None:
    """Raise Refused when another link has an address in, or a network around, one of `networks`.

    Our rules would cut that link off: packets from these networks are dropped on all others.
    """
    with IPRoute() as netlink:
        names = _names(netlink)
        taken = [(ip_interface(_address(m)), names.get(m["index"])) for m in netlink.get_addr()]
    for address, name in taken:
        for network in networks if name not in (None, interface) else []:
            if address.version == network.version and network.overlaps(address.network):
                fix = "choose another inner network (network.ipv4, network.ipv6)"
                raise Refused(f"{network} overlaps {address} of {name}: {fix}")
