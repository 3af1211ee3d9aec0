"""Who may ask for what: /etc/pyvpn/helper.toml, one table for each calling user.

A file replaces the built-in policy whole, and what a table leaves out is not allowed.  It is read
again at every new connection.  A refusal names the line to change.
"""

import os
import pwd
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

from helper.messages import (
    Hello,
    Network,
    OpenSockets,
    Refused,
    Request,
    SetFirewall,
    SetLink,
    parse,
)

PRIVATE = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"]
SWITCHES = ("default_route", "resolver", "kill_switch")
BUILT_IN: Mapping[str, Mapping[str, Any]] = {
    "pyvpn": {"interfaces": ["pyvpn0-9"], "networks": PRIVATE, "ports": ["1-65535"]},
    "pyvpn-client": {
        "interfaces": ["pyvpn10-999"],
        "networks": ["0.0.0.0/0", "::/0"],
        "ports": ["1-65535"],
        **dict.fromkeys(SWITCHES, True),
    },
}


def _range(entry: object, prefix: str = "") -> range:
    found = re.fullmatch(rf"{prefix}([0-9]{{1,5}})(?:-([0-9]{{1,5}}))?", str(entry))
    if not found:
        raise ValueError(f"{entry!r} is neither one like {prefix}7 nor a range like {prefix}0-9")
    return range(int(found[1]), int(found[2] or found[1]) + 1)


ENTRIES: Mapping[str, Callable[[Any], object]] = {
    "interfaces": lambda entry: _range(entry, "pyvpn"),
    "networks": lambda entry: ip_network(str(entry)),
    "ports": _range,
}
KEYS = (*ENTRIES, *SWITCHES)


@dataclass(frozen=True, slots=True)
class Rights:
    """What one user may have, and where that is written."""

    user: str
    origin: Path
    lines: Mapping[str, int]  # key -> its line in origin, "" -> the heading; empty if built in
    table: Mapping[str, Any]  # ranges and networks, and the switches

    def check(self, request: Request) -> None:
        """Return when `request` is allowed; raise Refused naming the line to change."""
        for key, allowed, what in self._demands(request):
            if not allowed:
                raise Refused(f"user {self.user} may not have {what}; {self._remedy(key)}")

    def _demands(self, request: Request) -> Iterable[tuple[str, bool, str]]:
        match request:
            case Hello(interface=name):
                number = int(name.removeprefix("pyvpn"))
                yield "interfaces", self._holds("interfaces", number), f"interface {name}"
            case OpenSockets(listen=listen):
                for _, port in listen:
                    yield "ports", self._holds("ports", port), f"port {port}"
            case SetLink(addresses=addresses, routes=routes, block_ipv6=block):
                for text in addresses:
                    yield self._network(parse(ip_interface, text).network)
                for text in (*routes, *["::/0"] * block):
                    yield self._network(parse(ip_network, text))
            case SetFirewall(networks=networks):
                for text in networks:
                    yield self._network(parse(ip_network, text))

    def _holds(self, key: str, number: int) -> bool:
        return any(number in allowed for allowed in self.table.get(key, ()))

    def _network(self, asked: Network) -> tuple[str, bool, str]:
        if not asked.prefixlen:
            return "default_route", bool(self.table.get("default_route")), f"a route to {asked}"
        own = [n for n in self.table.get("networks", ()) if n.version == asked.version]
        return "networks", any(map(asked.subnet_of, own)), f"network {asked}"

    def _remedy(self, key: str) -> str:
        if not self.lines:
            where = f"set {key} of [user.{self.user}] in {self.origin}"
            return f"the built-in policy holds; to change it {where}"
        verb = "change" if key in self.lines else "add"
        line = self.lines.get(key, self.lines.get("", 1))
        return f"{verb} {key} in {self.origin}, line {line}, [user.{self.user}]"


def _lines(text: str, user: str) -> dict[str, int]:
    found: dict[str, int] = {}
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        if heading := re.match(r"\s*\[([^\]]+)\]", line):
            inside = re.sub(r"[\s\"']", "", heading[1]) == f"user.{user}"
        if inside and (key := re.match(r"\s*(\w*)\s*[=\[]", line)):
            found[key[1]] = number
    return found


def _rights(origin: Path, user: str, text: str, table: Mapping[str, Any]) -> Rights:
    lines, values = _lines(text, user), dict[str, Any](table)
    for key, value in table.items():
        where = f"{origin}, line {lines.get(key)}: user.{user}.{key}"
        if not isinstance(value, list if key in ENTRIES else bool) or key not in KEYS:
            raise Refused(f"{where}: unknown key, or a value of the wrong type")
        try:
            values[key] = tuple(map(ENTRIES[key], value)) if isinstance(value, list) else value
        except ValueError as exc:
            raise Refused(f"{where}: {exc}") from exc
    return Rights(user, origin, lines, values)


def load(path: Path) -> dict[str, Rights]:
    """Return the rights by user, the built-in ones without a file; raise Refused for a bad one."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read().decode()
        users = (policy := tomllib.loads(text)).pop("user", {})
    except FileNotFoundError:
        return {user: _rights(path, user, "", table) for user, table in BUILT_IN.items()}
    except (OSError, ValueError) as exc:  # what tomllib and decode raise too
        raise Refused(f"{path}: {exc}") from exc
    if status.st_uid or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Refused(
            f"{path}: must be root's and writable by root only: "
            f"chown root:root {path}; chmod 0644 {path}"
        )
    tables = list(users.values()) if isinstance(users, dict) else [users]
    if policy or not all(isinstance(table, dict) for table in tables):
        raise Refused(f"{path}: only tables [user.NAME] belong here")
    return {user: _rights(path, user, text, table) for user, table in users.items()}


def rights_of(path: Path, uid: int) -> Rights:
    """Return what the user `uid` may have; raise Refused when that is nothing."""
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    found = load(path).get(name)
    if found is None:
        raise Refused(f"user {name} may not use the helper; add a table [user.{name}] to {path}")
    return found
