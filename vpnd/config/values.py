"""Readers of single values: what TOML gave in, a checked value out.

A reader raises BadValue, whose text is "what is wrong; what to do".  Some are made by a
function that takes the bounds: `integer(1, 65535)`.
"""

import json
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Literal, TypeVar

from vpnd.config.model import Address, Network


class BadValue(ValueError):
    """A value that cannot be used; its text says why and what to write."""


T = TypeVar("T")
Reader = Callable[[object], T]

MAX_LIST = 256  # entries of one list: each becomes a header field or a socket
MAX_TEXT = 1024  # characters of one text: a path is the longest of them
HOST_NAME = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?"
                       r"(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9])?)*")  # fmt: skip
INTERFACE = re.compile(r"pyvpn[0-9]{1,3}")
GROUP = re.compile(r"[a-z_][a-z0-9_-]{0,31}")  # what useradd(8) takes


def text(value: object) -> str:
    """Return a text without control characters."""
    if not isinstance(value, str):
        raise BadValue(f"{_shown(value)} is not a text; put it in quotation marks")
    if len(value) > MAX_TEXT or not value.isprintable():
        raise BadValue(f"not printable or over {MAX_TEXT} characters; shorten it to one line")
    return value


def boolean(value: object) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise BadValue(f"{_shown(value)} is neither true nor false; write one, unquoted")
    return value


def integer(low: int, high: int) -> Reader[int]:
    """Make a reader of whole numbers from `low` to `high`."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue(f"{_shown(value)} is not a whole number; use {low} to {high}")
        if not low <= value <= high:
            side = "below" if value < low else "above"
            raise BadValue(
                f"{value} is {side} {low if value < low else high}; use {low} to {high}"
            )
        return value

    return read


def timer(low: int, high: int) -> Reader[int]:
    """Make a reader of seconds from `low` to `high`, or 0 for "off"."""

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and value == 0:
            return 0
        try:
            return integer(low, high)(value)
        except BadValue as exc:
            raise BadValue(f"{exc}, or 0 to switch it off") from None

    return read


def choice(*allowed: str) -> Reader[str]:
    """Make a reader of one word out of `allowed`."""

    def read(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            words = ", ".join(f'"{word}"' for word in allowed)
            raise BadValue(f"{_shown(value)} is not known here; use one of {words}")
        return value

    return read


def several(reader: Reader[T], *, at_least: int = 0) -> Reader[tuple[T, ...]]:
    """Make a reader of lists whose entries, all different, are read by `reader`."""

    def read(value: object) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise BadValue(f"{_shown(value)} is not a list; put it in square brackets")
        if not at_least <= len(value) <= MAX_LIST:
            raise BadValue(f"has {len(value)} entries; write {at_least} to {MAX_LIST}")
        entries = tuple(reader(entry) for entry in value)
        if len(set(entries)) != len(entries):
            raise BadValue("an entry is there twice; remove one of them")
        return entries

    return read


def address(value: object) -> Address:
    """Return an IP address; scopes like "%eth0" are refused."""
    written = text(value)
    try:
        found = ip_address(written)
    except ValueError:
        raise BadValue(f'{_shown(value)} is no IP address; write one like "10.8.0.1"') from None
    if "%" in written:
        raise BadValue(f"{_shown(value)} names an interface; write the bare address")
    return found


def network(value: object) -> Network:
    """Return an IP network; bits right of its prefix must be zero."""
    written = text(value)
    try:
        return ip_network(written)
    except ValueError:
        pass
    try:
        meant = ip_network(written, strict=False)
    except ValueError:
        example = '"192.168.1.0/24"'
        raise BadValue(f"{_shown(value)} is no network; write one like {example}") from None
    raise BadValue(f'{_shown(value)} has bits right of its prefix; write "{meant}"')


def tunnel_ipv4(value: object) -> IPv4Network:
    """Return the tunnel's IPv4 network: room for the server and at least one client."""
    found = network(value)
    if not isinstance(found, IPv4Network) or not 8 <= found.prefixlen <= 30 or _is_special(found):
        raise BadValue(
            f'{_shown(value)} is no IPv4 network of hosts, /8 to /30; use "10.8.0.0/24"'
        )
    return found


def tunnel_ipv6(value: object) -> IPv6Network | Literal["auto"] | None:
    """Return the tunnel's IPv6 network, "auto", or None for no IPv6."""
    if value == "auto":
        return "auto"
    if value == "":
        return None
    found = network(value)
    if (
        not isinstance(found, IPv6Network)
        or not 48 <= found.prefixlen <= 120
        or _is_special(found)
    ):
        raise BadValue(
            f'{_shown(value)} is no IPv6 network of hosts, /48 to /120; use "auto", or "" for none'
        )
    return found


def routes(value: object) -> tuple[Network, ...]:
    """Return networks; () stands for ["default"], everything."""
    if value == ["default"]:
        return ()
    if isinstance(value, list) and "default" in value:
        raise BadValue('"default" stands beside other routes; write ["default"] alone')
    return several(network, at_least=1)(value)


def host(value: object) -> str:
    """Return a host name or an IP address without brackets."""
    written = text(value)
    try:
        return str(address(written))
    except BadValue:
        pass
    if not HOST_NAME.fullmatch(written) or written.rpartition(".")[2].isdigit():
        example = '"vpn.example.org"'
        raise BadValue(f"{_shown(value)} is no host name or address; write one like {example}")
    return written.lower()


def optional_host(value: object) -> str:
    """Return a host, or "" where the value is empty."""
    return "" if value == "" else host(value)


def remote(value: object) -> str:
    """Return "HOST:PORT"; an IPv6 address stands in square brackets."""
    written = text(value)
    name, _, port = written.rpartition(":")
    bracketed = name.startswith("[") and name.endswith("]")
    if not port.isascii() or not port.isdigit() or (":" in name and not bracketed):
        example = '"vpn.example.org:55555" or "[2001:db8::1]:55555"'
        raise BadValue(f"{_shown(value)} is no HOST:PORT; write one like {example}")
    found, number = host(name[1:-1] if bracketed else name), integer(1, 65535)(int(port))
    return f"[{found}]:{number}" if ":" in found else f"{found}:{number}"


def domains(value: object) -> str:
    """Return DNS domains separated by single spaces, or ""."""
    words = text(value).split()
    for word in words:
        if not HOST_NAME.fullmatch(word):
            raise BadValue(f'{_shown(word)} is no DNS domain; write one like "example.org"')
    return " ".join(words)


def interface(value: object) -> str:
    """Return the name of a tunnel interface."""
    written = text(value)
    if not INTERFACE.fullmatch(written):
        raise BadValue(f"{_shown(value)} is no name for a tunnel; use pyvpn0 to pyvpn999")
    return written


def group(value: object) -> str:
    """Return the name of a group of this system."""
    written = text(value)
    if not GROUP.fullmatch(written):
        raise BadValue(f'{_shown(value)} is no group name; write one like "pyvpn-admin"')
    return written


def file(value: object) -> Path:
    """Return an absolute path."""
    written = text(value)
    if not written.startswith("/"):
        raise BadValue(f"{_shown(value)} is no absolute path; begin it with /")
    return Path(written)


def optional_file(value: object) -> Path | None:
    """Return an absolute path, or None where the value is empty."""
    return None if value == "" else file(value)


def _shown(value: object) -> str:
    """Return a value as the file has it, near enough, and short."""
    if isinstance(value, str):
        return json.dumps(value[:64])
    return str(value).lower() if isinstance(value, bool) else repr(value)[:64]


def _is_special(found: Network) -> bool:
    """Tell whether hosts cannot have addresses of a network."""
    return found.is_multicast or found.is_loopback or found.is_link_local or found.is_reserved
