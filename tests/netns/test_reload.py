"""A new configuration on a server that runs: nobody is dropped, and the next ones get it."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.netns.daemons import USER, Config
from tests.netns.openconnect import OpenConnect
from tests.netns.site import Site

pytestmark = pytest.mark.netns

PASSWORD = "correct horse battery staple"
WEB = "192.0.2.80"


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(clients=2)
    for name in ("alice", "bob"):
        site.daemons.add_user(name, PASSWORD)
    return site


@pytest.fixture(autouse=True)
def _as_it_was(site: Site) -> Iterator[None]:
    yield
    reload(site, {})


@pytest.fixture
def _alice(site: Site) -> Iterator[None]:
    """Who is there before the reload; she must not notice."""
    client = connect(site, "alice", 0)
    yield
    assert client.process.is_alive
    assert "reconnect" not in client.process.text()
    site.bed.clients[0].ping(site.gateway4, count=1)
    client.disconnect()


def connect(site: Site, user: str, index: int) -> OpenConnect:
    client = site.connect(index, user=user, passwords=[PASSWORD])
    client.wait_connected()
    return client


def reload(site: Site, config: Config) -> dict[str, Any]:
    site.daemons.configure(config)
    told: dict[str, Any] = json.loads(site.daemons.vpnctl("--json", "reload").stdout)
    return told


def rules(site: Site) -> str:
    return site.bed.server.run("nft", "list", "ruleset").stdout


@pytest.mark.usefixtures("_alice")
def test_the_next_client_gets_the_new_values(site: Site) -> None:
    """Routes, DNS, MTU and timers are told at the CONNECT; who is connected keeps hers."""
    before = site.session("alice")
    told = reload(
        site,
        {
            "network": {"dns": ["192.0.2.53"], "routes": ["192.0.2.0/24"], "mtu": 1300},
            "session": {"idle_timeout_s": 600},
        },
    )
    assert told == {
        "applied": [
            "network.mtu",
            "network.dns",
            "network.routes",
            "session.idle_timeout_s",
        ],
        "needs_restart": [],
    }
    bob = connect(site, "bob", 1)
    environment = bob.environment("connect")
    assert environment["INTERNAL_IP4_DNS"].split() == ["192.0.2.53"]
    assert environment["CISCO_SPLIT_INC_0_ADDR"] == "192.0.2.0"
    assert environment["INTERNAL_IP4_MTU"] == "1300"
    assert environment["IDLE_TIMEOUT"] == "600"
    assert "mtu 1300" in site.bed.server.run("ip", "link", "show", "pyvpn0").stdout
    assert site.session("alice")["connected_at"] == before["connected_at"]
    bob.disconnect()


@pytest.mark.usefixtures("_alice")
def test_the_firewall_follows(site: Site) -> None:
    """For who is connected, too: the rules are the server's."""
    assert "masquerade" in rules(site)
    bob = connect(site, "bob", 1)
    inner = site.session("bob")["address4"]
    reached = ("ping", "-c", "1", "-W", "2", inner)
    assert site.bed.clients[0].run(*reached, check=False).returncode
    told = reload(site, {"network": {"client_to_client": True}, "firewall": {"masquerade": False}})
    assert told["applied"] == ["network.client_to_client", "firewall.masquerade"]
    assert "masquerade" not in rules(site)
    site.bed.clients[0].run(*reached)
    assert reload(site, {})["applied"] == told["applied"]
    assert "masquerade" in rules(site)
    assert site.bed.clients[0].run(*reached, check=False).returncode
    bob.disconnect()


@pytest.mark.usefixtures("_alice")
def test_a_bad_file_is_refused_whole(site: Site) -> None:
    """With the line that says where; not even the good half of it is applied."""
    site.daemons.configure({"network": {"dns": ["192.0.2.53"], "mtu": 400}})
    done = site.daemons.vpnctl("reload", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"vpnctl: {site.daemons.config_file}: network.mtu: 400 is below 576; use 576 to 9000\n"
    )
    shown = json.loads(
        site.daemons.vpnctl(
            "--json", "config", "show", str(write(site, {"network": {"dns": ["192.0.2.53"]}}))
        ).stdout
    )
    differ = {s["key"]: s["running"] for s in shown["settings"] if s["running"] != s["value"]}
    assert differ == {"network.dns": []}


def test_a_worker_that_is_just_starting_hears_of_it(site: Site) -> None:
    """It may have been told how to work a moment before."""
    vpnd = site.daemons.vpnd
    for _ in range(2):
        mark = vpnd.mark()
        children = Path(f"/proc/{vpnd.pid.number}/task/{vpnd.pid.number}/children")
        os.kill(int(children.read_text()), signal.SIGKILL)
        told = reload(site, {"dtls": {"enabled": False}})
        assert told["applied"] == ["dtls.enabled"]
        vpnd.wait_for("worker died, starting another", since=mark)
        bob = connect(site, "bob", 1)
        assert site.session("bob")["channel"] == "TLS"
        assert "Established DTLS" not in bob.process.text()
        bob.disconnect()
        reload(site, {})


@pytest.mark.usefixtures("_alice")
def test_a_signal_does_the_same(site: Site) -> None:
    """It is what `systemctl reload` sends; a bad file is logged, and not the end."""
    vpnd = site.daemons.vpnd
    for config, said in (
        ({"session": {"dpd_s": 20}}, "configuration reloaded: settings=session.dpd_s"),
        ({"session": {"dpd_s": 1}}, "ERROR configuration not reloaded, .* session.dpd_s: 1 is"),
        ({}, "configuration reloaded: settings=session.dpd_s"),
    ):
        site.daemons.configure(config)
        mark = vpnd.mark()
        vpnd.send(signal.SIGHUP)
        vpnd.wait_for(said, since=mark)


def write(site: Site, config: Config) -> Any:
    site.daemons.configure(config)
    return site.daemons.config_file


@pytest.mark.usefixtures("_alice")
def test_what_needs_a_restart_is_named_and_gets_it(site: Site) -> None:
    """It is not in force, and must not look as if it were."""
    told = reload(site, {"server": {"port": 4443}, "session": {"dpd_s": 20}})
    assert told == {"applied": ["session.dpd_s"], "needs_restart": ["server.port"]}
    assert site.daemons.status()["listen"] == ["0.0.0.0:55555", "[::]:55555"]
    assert "changes that wait for a restart: settings=server.port" in site.daemons.vpnd.text()


@pytest.mark.usefixtures("_alice")
def test_a_renewed_certificate_is_shown_to_who_comes_now(site: Site) -> None:
    """The pins of both keys are in every profile; here the next key comes into use."""
    state = site.daemons.folder / "state"
    before = {name: (state / name).read_bytes() for name in ("server.crt", "server.key")}
    shutil.copy(state / "server-next.key", state / "server.key")
    shutil.chown(state / "server.key", USER, USER)
    refused = site.daemons.vpnctl("reload", check=False)
    assert "server.key: does not belong to" in refused.stderr  # the pair is not whole yet
    site.bed.server.run(
        "openssl", "req", "-x509", "-new", "-key", str(state / "server.key"), "-subj", "/CN=vpn",
        "-days", "9", "-out", str(state / "server.crt"),
    )  # fmt: skip
    try:
        told = json.loads(site.daemons.vpnctl("--json", "reload").stdout)
        assert told["applied"] == ["tls.certificate (its content)", "tls.key (its content)"]
        pins = site.daemons.pins()
        bob = site.connect(1, user="bob", passwords=[PASSWORD], pins=pins[:1])
        bob.wait_connected()
        bob.disconnect()
    finally:
        for name, content in before.items():
            (state / name).write_bytes(content)


@pytest.mark.usefixtures("_alice")
def test_a_helper_that_is_gone_is_told_when_it_is_back(site: Site) -> None:
    """Changes wait for it; what does not concern it is in force at once."""
    site.daemons.helper.kill()
    site.daemons.vpnd.wait_for("the helper is gone")
    told = reload(site, {"firewall": {"masquerade": False}, "session": {"dpd_s": 20}})
    assert told["applied"] == ["session.dpd_s", "firewall.masquerade"]
    assert "masquerade" in rules(site)
    mark = site.daemons.vpnd.mark()
    site.daemons.start_helper()
    site.daemons.vpnd.wait_for("the helper is back", since=mark)
    assert "masquerade" not in rules(site)


def test_with_level_none_neither_log_nor_database_knows_an_address(site: Site) -> None:
    """Whoever takes the machine away learns who may connect, and not who did from where."""
    folder = site.daemons.folder
    reload(site, {"log": {"level": "none"}})
    mark = site.daemons.vpnd.mark()
    bob = connect(site, "bob", 1)
    session = site.session("bob")
    site.bed.clients[1].ping(site.gateway4, count=1)
    database = b"".join(path.read_bytes() for path in (folder / "state").glob("pyvpn.sqlite*"))
    bob.disconnect()
    said = site.daemons.vpnd.text(since=mark)
    reload(site, {})
    assert said == ""
    outer = session["outer"].rpartition(":")[0]
    assert outer.startswith("198.51.100.")
    for address in (outer, session["address4"], session["address6"]):
        assert address.encode() not in database


def test_anonymised_lines_hold_no_whole_address(site: Site) -> None:
    """But still say who, when and from which network."""
    mark = site.daemons.vpnd.mark()
    told = reload(site, {"log": {"level": "debug", "anonymise": True}})
    assert told["applied"] == ["log.level", "log.anonymise"]
    mark = site.daemons.vpnd.mark()
    bob = connect(site, "bob", 1)
    session = site.session("bob")
    bob.disconnect()
    site.daemons.vpnd.wait_for("session closed", since=mark)
    said = site.daemons.vpnd.text(since=mark)
    assert "user=bob" in said
    assert "address=198.51.100.0/24" in said
    for address in ("198.51.100.6", session["address4"] + " ", session["address6"]):
        assert address not in said
