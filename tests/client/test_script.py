"""A vpnc-script gets what the server gave, checked, and no shell in between."""

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from vpnd.client import script as script_module
from vpnd.client.script import Script, environment, gateway
from vpnd.errors import HelperError
from vpnd.policy.split_tunnel import Offer, Wishes, plan
from vpnd.worker.messages import LinkUp

UP = LinkUp(
    address4="10.8.0.2",
    prefix4=24,
    address6="fd00:8::2",
    prefix6=64,
    mtu=1400,
    split_include=["172.16.0.0/12", "2001:db8:5::/48"],
    split_exclude=["172.16.9.0/24"],
    dns=["10.8.0.1", "fd00:8::1"],
    default_domain="example.org corp.example",
    remote="192.0.2.1",
    banner="Welcome",
)


def made(up: LinkUp = UP) -> dict[str, str]:
    offer = Offer(
        up.address4, up.prefix4, up.address6, up.prefix6, up.mtu, up.split_include,
        up.split_exclude,
    )  # fmt: skip
    return environment(up, plan(offer, Wishes(), own=[], gateway="192.0.2.1"))


def test_the_environment_is_that_of_openconnects_scripts() -> None:
    """The names that vpnc-script and its relatives read."""
    names = made()
    expected = {
        "VPNGATEWAY": "192.0.2.1",
        "INTERNAL_IP4_ADDRESS": "10.8.0.2",
        "INTERNAL_IP4_NETMASK": "255.255.255.0",
        "INTERNAL_IP4_NETMASKLEN": "24",
        "INTERNAL_IP4_NETADDR": "10.8.0.0",
        "INTERNAL_IP4_MTU": "1400",
        "INTERNAL_IP6_ADDRESS": "fd00:8::2",
        "INTERNAL_IP6_NETMASK": "fd00:8::2/64",
        "INTERNAL_IP4_DNS": "10.8.0.1 fd00:8::1",
        "CISCO_DEF_DOMAIN": "example.org corp.example",
        "CISCO_BANNER": "Welcome",
        "CISCO_SPLIT_INC": "2",
        "CISCO_SPLIT_INC_1_ADDR": "172.16.0.0",
        "CISCO_SPLIT_INC_1_MASK": "255.240.0.0",
        "CISCO_SPLIT_INC_1_MASKLEN": "12",
        "CISCO_SPLIT_EXC": "1",
        "CISCO_SPLIT_EXC_0_ADDR": "172.16.9.0",
        "CISCO_IPV6_SPLIT_INC": "2",
        "CISCO_IPV6_SPLIT_INC_0_ADDR": "2001:db8:5::",
        "CISCO_IPV6_SPLIT_INC_0_MASKLEN": "48",
    }
    assert expected.items() <= names.items()
    assert "CISCO_IPV6_SPLIT_INC_0_MASK" not in names


def test_without_includes_the_default_route_is_meant() -> None:
    """As scripts understand it: the count is absent."""
    names = made(replace(UP, split_include=[], split_exclude=[]))
    assert not [name for name in names if "SPLIT" in name]


def test_hostile_texts_do_not_get_through() -> None:
    """Scripts paste them into commands."""
    names = made(
        replace(
            UP,
            dns=["10.8.0.1", "$(reboot)", "1.1.1.1;id"],
            default_domain="example.org `id` a;b $HOME -x",
            banner="a\nb\x1b[2J",
        )
    )
    assert names["INTERNAL_IP4_DNS"] == "10.8.0.1"
    assert names["CISCO_DEF_DOMAIN"] == "example.org -x"
    assert names["CISCO_BANNER"] == "a b [2J"


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("192.0.2.1:443", "192.0.2.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("vpn.example.org", ""),
        ("", ""),
    ],
)
def test_the_gateways_address_is_bare(remote: str, address: str) -> None:
    """However the worker names the server."""
    assert gateway(remote) == address


def write(tmp_path: Path, body: str) -> Path:
    path = tmp_path / "script"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_the_order_of_reasons_and_a_bare_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours holds nothing a script needs, and maybe a secret."""
    monkeypatch.setenv("SECRET_TOKEN", "x")
    out = tmp_path / "out"
    path = write(tmp_path, f'echo "$reason $TUNDEV $INTERNAL_IP4_ADDRESS $SECRET_TOKEN" >>{out}')

    async def main() -> None:
        script = Script(path, "pyvpn10")
        link = plan(Offer("10.8.0.2", 24, "", 0, 1400, [], []), Wishes(), own=[], gateway="")
        await script.prepare()
        await script.reconnecting()
        await script.connected(UP, link)
        await script.reconnecting()
        await script.connected(UP, link)
        await script.disconnect()
        await script.disconnect()

    asyncio.run(main())
    assert [line.split() for line in out.read_text().splitlines()] == [
        ["pre-init", "pyvpn10"],
        ["connect", "pyvpn10", "10.8.0.2"],
        ["attempt-reconnect", "pyvpn10", "10.8.0.2"],
        ["reconnect", "pyvpn10", "10.8.0.2"],
        ["disconnect", "pyvpn10", "10.8.0.2"],
    ]


def test_a_script_that_fails_to_connect_ends_the_attempt(tmp_path: Path) -> None:
    """A tunnel without routes would be a promise that is not kept."""

    async def main() -> None:
        link = plan(Offer("10.8.0.2", 24, "", 0, 1400, [], []), Wishes(), own=[], gateway="")
        await Script(write(tmp_path, "exit 3"), "pyvpn10").connected(UP, link)

    with pytest.raises(HelperError, match="ended with 3"):
        asyncio.run(main())


def running() -> set[bytes]:
    """Return the command lines of all processes; a bare machine has no `ps`."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            found.add(path.read_bytes())
    return found


def test_a_script_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tunnel must not wait for it without end."""
    monkeypatch.setattr(script_module, "TIMEOUT_S", 0.1)
    ours = f"600.{os.getpid()}"  # another test run may be at the same test
    asyncio.run(Script(write(tmp_path, f"exec sleep {ours}"), "pyvpn10").prepare())
    assert f"sleep\x00{ours}\x00".encode() not in running()


def test_a_script_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    """Absent, or nobody made it executable."""
    with pytest.raises(HelperError, match="chmod"):
        Script(tmp_path / "absent", "pyvpn10")
    plain = tmp_path / "plain"
    plain.write_text(f"#!{sys.executable}\n")
    with pytest.raises(HelperError, match="chmod"):
        Script(plain, "pyvpn10")
