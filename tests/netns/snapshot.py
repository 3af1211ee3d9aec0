"""What a host's network looks like, as a value: taken before and after, the two must be equal.

Left out is what changes by itself: counters, life times, handles and indices of tables, and legacy
tables without a rule, which the kernel never gives back.
"""

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

from tests.netns.namespace import Namespace

State = dict[str, Any]
PASSING = {  # keys of iproute2's and nft's JSON that no two looks share
    "bytes",
    "cache",
    "expires",
    "handle",
    "metainfo",
    "packets",
    "preferred_life_time",
    "used",
    "valid_life_time",
}
COMMANDS = {
    "links": "ip -json -details link",
    "addresses": "ip -json address",
    "routes4": "ip -4 -json route show table all",
    "routes6": "ip -6 -json route show table all",
    "rules4": "ip -4 -json rule",
    "rules6": "ip -6 -json rule",
    "nftables": "nft -j list ruleset",
}
SYSCTLS = "cd /proc/sys/net && grep -rs '' ipv4/ip_forward ipv4/conf ipv6/conf; true"
LEGACY = ("iptables-legacy-save", "ip6tables-legacy-save")


def snapshot(namespace: Namespace) -> State:
    """Return the network state of a namespace, comparable with `==`."""
    found: State = {
        name: _normalised(json.loads(namespace.run(*command.split()).stdout or "[]"))
        for name, command in COMMANDS.items()
    }
    lines = namespace.run("sh", "-c", SYSCTLS).stdout.splitlines()
    found["sysctls"] = dict(line.split(":", 1) for line in lines)
    for program in filter(shutil.which, LEGACY):
        found[program] = _rules(namespace.run(program).stdout)
    return found


def differences(before: State, after: State) -> list[str]:
    """Return one line for each thing that is not as it was; empty when all is."""
    return [
        f"{path}: {old!r} became {new!r}" for path, old, new in _differences("", before, after)
    ]


def _differences(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(f"{path}/{key}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list):
        for entry in [e for e in old if e not in new]:
            yield path, entry, None
        for entry in [e for e in new if e not in old]:
            yield path, None, entry
    elif old != new:
        yield path, old, new


def _normalised(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normalised(each) for key, each in value.items() if key not in PASSING}
    if isinstance(value, list):
        return [_normalised(each) for each in value if each]
    return value


def _rules(saved: str) -> list[str]:
    """Return the rules that iptables-save printed, and policies that are not ACCEPT."""
    lines = [re.sub(r"\[\d+:\d+\]", "", line).strip() for line in saved.splitlines()]
    return [line for line in lines if line.startswith("-A") or " DROP" in line]
