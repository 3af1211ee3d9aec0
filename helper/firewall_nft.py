"""The nftables backend: one table for each interface, replaced in one go by `nft -j -f -`.

The table `inet pyvpn0` belongs to interface pyvpn0.  An accept here does not overrule a drop in
another table's chain; a drop here is final.
"""

import json
import os
import subprocess
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Any

from helper.messages import Network, Refused, parse
from helper.ruleset import EVERY_LINK, RuleSet

NFT = "/usr/sbin/nft"
TIMEOUT_S = 20  # a transaction takes some 10 ms; a hung one must not hang the helper
ALL_TUNNELS = "pyvpn*"
Statement = dict[str, Any]


class Nftables:
    """helper.ruleset.Backend by way of the nft program."""

    name = "nftables"

    def lacking(self) -> str | None:
        """Return what must be done before this backend can be used, or None."""
        return None if os.access(NFT, os.X_OK) else f"{NFT} is missing: apt install nftables"

    def apply(self, rules: RuleSet) -> None:
        """Put `rules` in force; raise Refused with nft's own words when the kernel refuses."""
        table = {"table": {"family": "inet", "name": rules.interface}}
        emptied = [{"add": table}, {"delete": table}]  # deleting alone fails where there is none
        _run(emptied + (list(_table(rules)) if rules != RuleSet(rules.interface) else []))


def _run(commands: list[Statement]) -> None:
    try:
        subprocess.run(  # noqa: S603  # fixed argv; the input is made of checked values
            [NFT, "-j", "-f", "-"],
            input=json.dumps({"nftables": commands}),
            capture_output=True,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"},
            cwd="/",
            timeout=TIMEOUT_S,
            check=True,
        )
    except subprocess.TimeoutExpired as exc:
        raise Refused(f"nft did not answer within {TIMEOUT_S} s") from exc
    except subprocess.CalledProcessError as exc:
        reason = (exc.stderr or exc.stdout or "no reason given").strip().partition("\n")[0]
        raise Refused(f"nft refused the rules: {reason}") from exc


def _table(rules: RuleSet) -> Iterable[Statement]:
    name = {"family": "inet", "table": rules.interface}
    yield {"add": {"table": {"family": "inet", "name": rules.interface}}}
    for chain, (kind, hook, priority, content) in _chains(rules).items():
        setting = {"type": kind, "hook": hook, "prio": priority, "policy": "accept"}
        yield {"add": {"chain": {**name, "name": chain, **setting}}}
        for rule in content:
            yield {"add": {"rule": {**name, "chain": chain, "expr": rule}}}


def _chains(rules: RuleSet) -> dict[str, tuple[str, str, int, list[list[Statement]]]]:
    forward = [_guard(*guard) for guard in rules.guards]
    elsewhere = _meta("iifname", {"set": [rules.interface, "lo"]}, "!=")
    closed = [
        [elsewhere, target, _DROP]
        for target in _within("daddr", [parse(ip_network, text) for text in rules.inner])
    ]
    chains = {
        "forward": ("filter", "forward", 0, forward),
        "prerouting": ("filter", "prerouting", -300, closed),  # raw: before conntrack
    }
    wanted = rules.filter
    if wanted is None:
        return chains
    tun, networks = rules.interface, [parse(ip_network, text) for text in wanted.networks]
    into, out_of = _meta("oifname", tun), _meta("iifname", tun)
    if wanted.clamp_mss:  # before any verdict; rt mtu looks at the route back too
        forward[:0] = [[into, _SYN, _CLAMP], [out_of, _SYN, _CLAMP]]
    forward += [
        [out_of, into, _ACCEPT if wanted.client_to_client else _DROP],
        [into, _match({"ct": {"key": "state"}}, ["established", "related"], "in"), _ACCEPT],
        [into, _DROP],
    ]
    closed += [[elsewhere, source, _DROP] for source in _within("saddr", networks)]
    if wanted.masquerade:
        leaving = _meta("oifname", {"set": [tun, "lo"]}, "!=")
        hidden = [[source, leaving, {"masquerade": None}] for source in _within("saddr", networks)]
        chains["postrouting"] = ("nat", "postrouting", 100, hidden)
    return chains


def _guard(family: str, name: str) -> list[Statement]:
    link = [] if name == EVERY_LINK else [_meta("iifname", name)]
    others = [_meta(key, ALL_TUNNELS, "!=") for key in ("iifname", "oifname")]
    return [_meta("nfproto", family), *link, *others, _DROP]


def _within(field: str, networks: list[Network]) -> list[Statement]:
    prefixes = {
        protocol: [
            {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
            for network in networks
            if network.version == version
        ]
        for version, protocol in ((4, "ip"), (6, "ip6"))
    }
    return [
        _match({"payload": {"protocol": protocol, "field": field}}, {"set": found})
        for protocol, found in prefixes.items()
        if found
    ]


def _match(left: Statement, right: object, op: str = "==") -> Statement:
    return {"match": {"op": op, "left": left, "right": right}}


def _meta(key: str, right: object, op: str = "==") -> Statement:
    return _match({"meta": {"key": key}}, right, op)


_ACCEPT: Statement = {"accept": None}
_DROP: Statement = {"drop": None}
_SYN = _match({"payload": {"protocol": "tcp", "field": "flags"}}, "syn", "in")
_CLAMP = {
    "mangle": {
        "key": {"tcp option": {"name": "maxseg", "field": "size"}},
        "value": {"rt": {"key": "mtu"}},
    }
}
