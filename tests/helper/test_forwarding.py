"""Which kernel settings are claimed, guarded and given back, on a /proc/sys of files."""

from collections.abc import Callable
from pathlib import Path

import pytest

from helper import forwarding, sysctl
from helper.journal import Claim, Journal

ETH0 = "ipv4/conf/eth0/forwarding"
ALL6 = forwarding.ALL6
RP_ALL, RP_ETH0 = "ipv4/conf/all/rp_filter", "ipv4/conf/eth0/rp_filter"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Write settings, or read all of them."""
    monkeypatch.setattr(sysctl, "ROOT", tmp_path)

    def change(**values: str) -> dict[str, str]:
        for path, value in values.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(value)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        return {str(path.relative_to(tmp_path)): path.read_text() for path in files}

    return change


def test_a_claim_remembers_what_was_before_all_tunnels(
    settings: Callable[..., dict[str, str]],
) -> None:
    """The second tunnel finds 1 there, and would restore 1."""
    settings(**{ETH0: "0", forwarding.ALL4: "0"})
    first, second = Journal("pyvpn0", 1), Journal("pyvpn1", 1)
    forwarding.record(first, [second], {ETH0: "1"})
    settings(**{ETH0: "1"})
    forwarding.record(second, [first], {ETH0: "1"})
    assert second.claims == {ETH0: Claim("0", "1")}
    forwarding.release(first, [second], [ETH0])
    assert settings()[ETH0] == "1"
    forwarding.release(second, [first], [ETH0])
    assert settings()[ETH0] == "0"


@pytest.mark.parametrize(
    ("general", "own", "held", "expected"),
    [
        ("0", "0", False, {}),
        ("0", "1", False, {RP_ETH0: "2"}),
        ("1", "0", False, {RP_ETH0: "2"}),
        ("2", "1", False, {}),  # the larger one holds
        ("0", "2", False, {}),
        ("0", "2", True, {RP_ETH0: "2"}),  # our own work: goes on being claimed
    ],
)
def test_only_a_strict_source_check_is_loosened(
    settings: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    general: str,
    own: str,
    held: bool,
    expected: dict[str, str],
) -> None:
    """Where there is none, a loose one would be stricter; where it is loose it stays."""
    monkeypatch.setattr(forwarding.links, "uplinks", lambda: {2: "eth0"})
    settings(**{RP_ALL: general, RP_ETH0: own})
    journal = Journal("pyvpn11", 1, claims={RP_ETH0: Claim("1", "2")} if held else {})
    assert forwarding.loosened([journal]) == expected


def test_the_source_check_is_restored_on_a_router_too(
    settings: Callable[..., dict[str, str]],
) -> None:
    """Only forwarding itself follows conf/all/forwarding."""
    settings(**{RP_ETH0: "2", forwarding.ALL4: "1"})
    journal = Journal("pyvpn10", 1, claims={RP_ETH0: Claim("1", "2")})
    assert forwarding.guards(journal) == ()  # nor does it make the link a router
    forwarding.release(journal, [], [RP_ETH0])
    assert settings()[RP_ETH0] == "1"


def test_what_is_as_wanted_already_is_not_claimed(
    settings: Callable[..., dict[str, str]],
) -> None:
    """What we did not write we do not take back."""
    settings(**{ETH0: "1"})
    journal = Journal("pyvpn0", 1)
    forwarding.record(journal, [], {ETH0: "1", "ipv4/conf/gone0/forwarding": "1"})
    assert journal.claims == {}


@pytest.mark.parametrize(
    ("now", "all4", "after"),
    [("1", "0", "0"), ("0", "0", "0"), ("2", "0", "2"), ("1", "1", "1")],
)
def test_only_what_is_still_ours_is_restored(
    settings: Callable[..., dict[str, str]], now: str, all4: str, after: str
) -> None:
    """Somebody else may have changed it since, or switched the whole host on."""
    settings(**{ETH0: now, forwarding.ALL4: all4})
    journal = Journal("pyvpn0", 1, claims={ETH0: Claim("0", "1")})
    forwarding.release(journal, [], [ETH0])
    assert settings()[ETH0] == after
    assert journal.claims == {}


def test_ipv6s_one_switch_gives_each_link_its_own_value_back(
    settings: Callable[..., dict[str, str]],
) -> None:
    """A router's link stays one, one switched off since stays off, a new link is a host's."""
    before = {"default": "0", "router0": "1", "host0": "0", "off0": "1"}
    now = {"default": "1", "router0": "1", "host0": "1", "off0": "0", "new0": "1"}
    settings(**{f"ipv6/conf/{name}/forwarding": v for name, v in now.items()}, **{ALL6: "1"})
    journal = Journal("pyvpn0", 1, claims={ALL6: Claim("0", "1", before)})
    forwarding.release(journal, [], [ALL6])
    assert settings() == {
        ALL6: "0",
        "ipv6/conf/default/forwarding": "0",
        "ipv6/conf/router0/forwarding": "1",
        "ipv6/conf/host0/forwarding": "0",
        "ipv6/conf/off0/forwarding": "0",
        "ipv6/conf/new0/forwarding": "0",
    }


def test_guards_name_the_links_that_were_switched() -> None:
    """One that only keeps hearing router advertisements forwards nothing."""
    paths = [ETH0, "ipv6/conf/eth0.5/force_forwarding", "ipv6/conf/eth0/accept_ra", ALL6]
    journal = Journal("pyvpn0", 1, claims=dict.fromkeys(paths, Claim("0", "1")))
    assert forwarding.guards(journal) == (("ipv4", "eth0"), ("ipv6", "eth0.5"), ("ipv6", "*"))
