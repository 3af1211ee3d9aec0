"""The kernel is asked for this host's addresses; compared with what ip(8) says."""

import json
import subprocess

from vpnd.host.addresses import _messages, own_addresses


def by_ip() -> dict[str, set[str]]:
    """Return "ADDRESS/LENGTH" by link, without loopback and link-local ones."""
    said = subprocess.run(["ip", "-j", "address"], capture_output=True, text=True, check=True)
    return {
        link["ifname"]: {
            f"{address['local']}/{address['prefixlen']}"
            for address in link.get("addr_info", ())
            if address["scope"] == "global"
        }
        for link in json.loads(said.stdout)
        if link
    }


def test_the_addresses_are_those_of_the_host() -> None:
    """All links but loopback; both families."""
    links = by_ip()
    assert set(own_addresses()) == set().union(*links.values())
    for name, found in links.items():
        others = set().union(*(addresses for link, addresses in links.items() if link != name))
        assert set(own_addresses(except_link=name)) == others, found


def test_a_link_that_is_not_there_excludes_nothing() -> None:
    """The tunnel's interface may have gone."""
    assert own_addresses(except_link="pyvpn999") == own_addresses()


def test_a_broken_message_ends_the_walk() -> None:
    """Lengths are never believed."""
    assert list(_messages(b"")) == []
    assert list(_messages(b"\xff" * 32)) == []
    assert list(_messages(b"\x00" * 32)) == []
