"""The rules as nft gets them; what they do to packets: tests/netns/test_helper_network.py."""

import json
import os
import subprocess

import pytest

from helper import firewall, firewall_nft
from helper.firewall_nft import Nftables
from helper.journal import Claim, Journal
from helper.messages import Refused, SetFirewall
from helper.ruleset import RuleSet

FILTER = SetFirewall(
    ("10.8.0.0/24", "10.9.0.0/24", "fd00::/64"),
    masquerade=True,
    clamp_mss=True,
    client_to_client=False,
)


def test_forwarding_without_a_firewall_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """An open router would be worse than no tunnel; and nothing is stored before the refusal."""
    monkeypatch.setattr(firewall_nft, "NFT", "/nonexistent/nft")
    journal = Journal("pyvpn0", 0, claims={"ipv4/conf/eth0/forwarding": Claim("0", "1")})
    with pytest.raises(Refused, match="/nonexistent/nft is missing: apt install nftables"):
        firewall.apply(journal, None)  # type: ignore[arg-type]  # is not reached
    assert firewall.usable() == []


def test_the_drop_of_strangers_is_the_last_word_into_the_tunnel() -> None:
    """In the chain's order: clamp, guard, tunnel to tunnel, answers, nothing else."""
    commands = list(firewall_nft._table(RuleSet("pyvpn0", FILTER, (("ipv4", "eth0"),))))
    rules = [c["add"]["rule"] for c in commands if "rule" in c["add"]]
    verdicts = [next(iter(r["expr"][-1])) for r in rules if r["chain"] == "forward"]
    assert verdicts == ["mangle", "mangle", "drop", "drop", "accept", "drop"]


@pytest.mark.skipif(
    os.geteuid() != 0 or not os.access(firewall_nft.NFT, os.X_OK), reason="needs root and nft"
)
@pytest.mark.parametrize(
    "rules",
    [
        RuleSet("pyvpn999"),
        RuleSet("pyvpn999", FILTER),
        RuleSet("pyvpn999", None, (("ipv6", "*"), ("ipv4", "eth0.5"))),
        RuleSet("pyvpn999", SetFirewall((), masquerade=True, clamp_mss=False,
                                        client_to_client=True)),
    ],
    ids=["nothing", "filter", "guards", "no networks"],
)  # fmt: skip
def test_nft_takes_every_kind_of_rule_set(rules: RuleSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checked by nft itself (-c), which changes nothing."""
    sent: list[str] = []
    real = subprocess.run

    def check(argv: list[str], **options: object) -> object:
        sent.append(str(options["input"]))
        return real([argv[0], "-c", *argv[1:]], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "run", check)
    Nftables().apply(rules)
    assert json.loads(sent[0])["nftables"][1] == {
        "delete": {"table": {"family": "inet", "name": "pyvpn999"}}
    }


def test_nfts_own_words_reach_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without some module says so there and nowhere else."""
    monkeypatch.setattr(firewall_nft, "NFT", "/usr/bin/false")
    with pytest.raises(Refused, match="nft refused the rules: no reason given"):
        Nftables().apply(RuleSet("pyvpn999"))
