"""Loading a client's profile: every complaint says file, key and remedy, and nothing else."""

import ast
import inspect
import tomllib
from collections.abc import Sequence
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from tests.protocol.authority import TestSite
from vpnd.config import profile_options
from vpnd.config.load_profile import (
    READERS,
    REMOTE_READERS,
    device_name,
    in_order,
    load_profile,
    profile_of_url,
)
from vpnd.config.profile import ClientProfile, Remote, encode_profile
from vpnd.config.profile_options import ClientConfig, ClientTlsOptions, RemoteOptions
from vpnd.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "etc" / "pyvpn" / "client.toml"
PIN = "pin-sha256:" + "A" * 43 + "="
REMOTE = {"address": "vpn.example.org:55555", "pins": [PIN]}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> TestSite:
    return TestSite(tmp_path_factory.mktemp("site"))


def load(tmp_path: Path, remotes: Sequence[Any] = (REMOTE,), **tables: Any) -> ClientConfig:
    path = tmp_path / "phone.toml"
    path.write_text(tomli_w.dumps({"remotes": list(remotes), **tables}))
    return load_profile(path)


def complaint(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_profile(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_sample_is_the_defaults_and_names_every_option() -> None:
    """An option that is not in the sample does not exist for its users."""
    text = SAMPLE.read_text()
    with SAMPLE.open("rb") as file:
        raw = tomllib.load(file)
    for name, readers in READERS.items():
        for key in readers:
            assert key in raw[name] or f"# {key} = " in text, f"{name}.{key}"
    for key in REMOTE_READERS:
        assert key in raw["remotes"][0] or f"# {key} = " in text, key
    raw["tls"].pop("ca")
    raw["remotes"] = [REMOTE]
    config = load_profile(SAMPLE, tomli_w.dumps(raw).encode())
    plain = load_profile("client.toml", tomli_w.dumps({"remotes": [REMOTE]}).encode())
    assert config == plain
    readers_of = {f.name for f in fields(ClientConfig)} - {"remotes"}
    assert set(READERS) == readers_of


def test_every_option_is_documented() -> None:
    """The manual page is made from the text under each field."""
    for node in ast.walk(ast.parse(inspect.getsource(profile_options))):
        if not isinstance(node, ast.ClassDef) or node.name == "ClientConfig":
            continue
        for here, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(here, ast.AnnAssign):
                assert isinstance(below, ast.Expr), ast.unparse(here)


def test_what_client_add_writes_is_read(site: TestSite, tmp_path: Path) -> None:
    """The two ends of a profile."""
    certificate, key = site.certificate.read_text(), site.key.read_text()
    profile = ClientProfile(
        user="alice",
        name="phone",
        until="2027-01-01",
        remotes=[Remote("vpn.example.org:55555", "vpn.example.org", (PIN,))],
        ca=site.client_ca.read_text(),
        certificate=certificate,
        key=key,
    )
    path = tmp_path / "other.toml"
    path.write_bytes(encode_profile(profile))
    config = load_profile(path)
    assert (config.client.user, config.client.name) == ("alice", "phone")
    assert config.remotes == (RemoteOptions("vpn.example.org", 55555, "vpn.example.org", (PIN,)),)
    assert config.tls.certificate.strip() == certificate.strip()
    assert config.tls.key not in repr(config)


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("vpn.example.org", "vpn.example.org", 443),
        ("vpn.example.org:55555", "vpn.example.org", 55555),
        ("[2001:db8::1]:55555", "2001:db8::1", 55555),
        ("2001:db8::1", "2001:db8::1", 443),
        ("192.0.2.1", "192.0.2.1", 443),
    ],
)
def test_an_address_may_leave_the_port_out(
    tmp_path: Path, written: str, host: str, port: int
) -> None:
    """443 is where such servers are."""
    (remote,) = load(tmp_path, [{**REMOTE, "address": written}]).remotes
    assert (remote.host, remote.port, remote.server_name) == (host, port, host)


def test_networks_and_everything(tmp_path: Path) -> None:
    """Left out, everything, and a list are three different wishes."""
    assert load(tmp_path).network.include is None
    assert load(tmp_path, network={"include": ["default"]}).network.include == ()
    found = load(tmp_path, network={"include": ["10.0.0.0/8"]}).network.include
    assert found == (ip_network("10.0.0.0/8"),)


def test_equal_priorities_are_shuffled_and_others_keep_their_order(tmp_path: Path) -> None:
    """Load is spread over equal servers; a spare is a spare."""
    hosts = [f"h{number}.example.org" for number in range(8)]
    plain = load(tmp_path, [{**REMOTE, "address": host} for host in hosts])
    assert [r.host for r in in_order(plain.remotes)] == hosts
    ranked = [{**REMOTE, "address": h, "priority": 2 if h < "h4" else 1} for h in hosts]
    config = load(tmp_path, ranked)
    seen = set()
    for _ in range(50):
        order = [remote.host for remote in in_order(config.remotes)]
        assert sorted(order[:4]) == hosts[4:]
        seen.add(tuple(order))
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"remotes": []}, ["remotes", "1 to"]),
        ({"remotes": "vpn.example.org"}, ["remotes", "[[remotes]]"]),
        ({"remotes": [{"pins": [PIN]}]}, ["remotes.address", "missing"]),
        ({"remotes": [{"address": "vpn.example.org:443"}]}, ["CA", "pins"]),
        ({"remotes": [{**REMOTE, "pins": ["pin-sha256:AAAA"]}]}, ["remotes.pins", "44"]),
        ({"remotes": [{**REMOTE, "pins": [PIN + "x"]}]}, ["remotes.pins"]),
        ({"remotes": [{**REMOTE, "address": "a b:1"}]}, ["remotes.address"]),
        ({"remotes": [{**REMOTE, "prio": 1}]}, ["remotes.prio", "priority"]),
        ({"remotes": [REMOTE, {**REMOTE, "priority": 1}]}, ["remotes.priority", "none"]),
        ({"client": {"name": "../etc"}}, ["client.name"]),
        ({"client": {"path": "x\r\ny"}}, ["client.path"]),
        ({"client": {"user": "a\nb"}}, ["client.user"]),
        ({"network": {"mtu": 400}}, ["network.mtu", "576"]),
        ({"network": {"interface": "pyvpn3"}}, ["network.interface", "pyvpn10"]),
        ({"network": {"include": ["10.0.0.1/8"]}}, ["network.include", "10.0.0.0/8"]),
        ({"network": {"script": "run me"}}, ["network.script", "/"]),
        ({"tls": {"ca": "ca.pem"}}, ["tls.ca", "PEM"]),
        ({"tls": {"certificate": "-----BEGIN X"}}, ["tls.key", "missing"]),
        ({"tls": {"ca": "-----BEGIN CERTIFICATE-----\nAA"}}, ["tls.ca", "readable"]),
        ({"session": {"rekey_s": 1}}, ["session.rekey_s", "60"]),
        ({"nonsense": {}}, ["nonsense", "known are"]),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, tables: dict[str, Any], words: list[str]
) -> None:
    """File, key and remedy, on one line."""
    path = tmp_path / "phone.toml"
    path.write_text(tomli_w.dumps({"remotes": [REMOTE], **tables}))
    text = complaint(path)
    assert all(word in text for word in words), text


def test_another_certificates_key_is_refused(site: TestSite, tmp_path: Path) -> None:
    """Found out here, not by a server that says no more than that it failed."""
    tls = {"certificate": site.client_ca.read_text(), "key": site.key.read_text()}
    path = tmp_path / "phone.toml"
    path.write_text(tomli_w.dumps({"remotes": [REMOTE], "tls": tls}))
    assert "another certificate" in complaint(path)


@given(st.binary(max_size=400))
def test_junk_is_one_sentence(data: bytes) -> None:
    """A file that somebody broke, or chose by mistake."""
    with pytest.raises(ConfigError):
        load_profile("junk.toml", data)


def test_a_url_needs_no_file() -> None:
    """The server by URL, and who it must be by pin."""
    config = profile_of_url(
        "https://vpn.example.org/group?x=1", user="bob", pins=[PIN], tls=ClientTlsOptions()
    )
    (remote,) = config.remotes
    assert (remote.host, remote.port, remote.pins) == ("vpn.example.org", 443, (PIN,))
    assert (config.client.user, config.client.path) == ("bob", "/group?x=1")
    assert config.client.name == "vpn.example.org"


@pytest.mark.parametrize(
    "url",
    [
        "http://vpn.example.org",
        "https://",
        "https://alice:secret@vpn.example.org",
        "https://vpn.example.org:0",
        "https://[::1",
        "https://vpn.example.org/a b",
        "https://vpn.example.org#x",
        "ftp://x",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    """Also one with a password in it: it would stand in every process list."""
    with pytest.raises(ConfigError, match=r"use|write|path"):
        profile_of_url(url, pins=[PIN], tls=ClientTlsOptions())


def test_a_server_whose_identity_nothing_tells_is_refused() -> None:
    """No CA and no pin: whoever answers would be believed."""
    with pytest.raises(ConfigError, match="CA"):
        profile_of_url("https://vpn.example.org", tls=ClientTlsOptions())


@given(st.text(max_size=80))
def test_a_device_name_can_name_a_folder(text: str) -> None:
    """It becomes part of the run directory's name."""
    name = device_name(text)
    assert 1 <= len(name) <= 64
    assert READERS["client"]["name"](name) == name
