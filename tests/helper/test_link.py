"""What is wanted of an interface, as a set; what it does: tests/netns/test_helper_outside.py."""

import socket
from pathlib import Path
from typing import Any

import pytest

from helper import link, sysctl
from helper.journal import Journal
from helper.messages import SetLink

JOURNAL = Journal("pyvpn10", 998, link_index=7)
FULL: dict[str, Any] = {
    "mtu": 1400,
    "addresses": ("10.8.0.2/24",),
    "routes": ("0.0.0.0/0", "10.8.0.0/24"),
    "forwarding": False,
    "exclude": ("192.168.1.0/24", "fd12::/16"),
    "keep_outside": True,
    "block_ipv6": True,
}
INET, INET6 = int(socket.AF_INET), int(socket.AF_INET6)


def told(wanted: SetLink) -> list[tuple[object, ...]]:
    """Return kind, table, type or user, and destination of each thing, in the order of adding."""
    keys = ("table", "type", "uid_range", "dst", "family")
    things = [(kind, dict(what)) for kind, what in sorted(link._wanted_ways(JOURNAL, wanted))]
    return [(kind, *(what[key] for key in keys if key in what)) for kind, what in things]


def test_a_user_kept_outside_means_a_table_and_rules_for_it() -> None:
    """The rules come last, when the table is complete, and no route is made twice."""
    assert told(SetLink(**FULL)) == [
        ("route", 28010, link.RTN_UNICAST, "0.0.0.0/0", INET),
        ("route", 28010, link.RTN_UNREACHABLE, "0.0.0.0/0", INET),
        ("route", 28010, link.RTN_UNICAST, "10.8.0.0/24", INET),
        ("route", 28010, link.RTN_THROW, "192.168.1.0/24", INET),
        ("route", 28010, link.RTN_UNREACHABLE, "::/0", INET6),
        ("route", 28010, link.RTN_THROW, "fd12::/16", INET6),
        ("rule", 28010, "998:998", INET),
        ("rule", 28010, "998:998", INET6),
    ]


def test_a_kernel_without_ipv6_is_asked_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be sent cannot leak; asking would fail."""
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)
    assert {thing[-1] for thing in told(SetLink(**FULL))} == {INET}


def test_otherwise_all_users_share_the_main_table() -> None:
    """A server's routes are for everybody, and it has no rules."""
    plain = SetLink(1400, ("10.8.0.1/24",), ("10.9.0.0/16",), forwarding=True)
    assert told(plain) == [("route", link.MAIN_TABLE, link.RTN_UNICAST, "10.9.0.0/16", INET)]
