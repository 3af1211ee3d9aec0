"""What must be in order before a server starts."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from vpnd.config.model import NetworkOptions, ServerConfig, ServerOptions
from vpnd.errors import ConfigError, VpnError
from vpnd.host import ipv6
from vpnd.pki.certificates import load_chain
from vpnd.server import checks
from vpnd.server.checks import check_keys, fit

FILE = Path("/etc/pyvpn/server.toml")
OFF = "IPv6 is switched off"


def test_a_clock_before_the_certificate_is_explained(tmp_path: Path) -> None:
    """A board without a battery begins in 1970; the remedy is not another certificate.

    It is no bad configuration (exit status 2), which systemd would not try again.
    """
    site = TestSite(tmp_path)
    begin = load_chain(site.certificate)[0].not_valid_before_utc
    check_keys(ServerConfig(), tmp_path, begin)
    with pytest.raises(VpnError) as caught:
        check_keys(ServerConfig(), tmp_path, datetime(1970, 1, 1, tzinfo=UTC))
    assert caught.value.exit_status == 1
    assert str(caught.value) == (
        f"{site.certificate}: the certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC, "
        "and the clock says 1970-01-01 00:00; set the clock (timedatectl)"
    )


def test_a_certificate_that_has_ended_does_not_keep_a_server_from_starting(tmp_path: Path) -> None:
    """Our clients go by its pin; whoever renews it needs a server that runs."""
    site = TestSite(tmp_path)
    end = load_chain(site.certificate)[0].not_valid_after_utc
    check_keys(ServerConfig(), tmp_path, end + timedelta(days=1))


def test_a_host_with_ipv6_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is changed where nothing has to be."""
    switch(monkeypatch)
    fitted = fit(ServerConfig(), FILE)
    assert fitted.config == ServerConfig()
    assert fitted.left_out == []


def test_a_kernel_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the defaults, and it says what is missing."""
    switch(monkeypatch, sockets="no IPv6", addresses="no IPv6")
    fitted = fit(ServerConfig(), FILE)
    assert fitted.config.server.addresses == (IPv4Address(0),)
    assert fitted.config.network.ipv6 is None
    assert fitted.left_out == [
        "server.addresses: :: is left out, no IPv6",
        "network.ipv6: no IPv6 in the tunnel, no IPv6",
    ]


def test_ipv6_that_is_switched_off_is_left_out_of_the_tunnel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Listening works all the same."""
    switch(monkeypatch, addresses=OFF)
    fitted = fit(ServerConfig(), FILE)
    assert fitted.config.server == ServerConfig().server
    assert fitted.config.network.ipv6 is None
    assert fitted.left_out == [f"network.ipv6: no IPv6 in the tunnel, {OFF}"]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            ServerConfig(network=NetworkOptions(ipv6=IPv6Network("fd00::/64"))),
            'network.ipv6: IPv6 is switched off; switch it on, or set it to ""',
        ),
        (
            ServerConfig(server=ServerOptions(addresses=(IPv6Address("2001:db8::1"),))),
            "server.addresses: cannot listen on 2001:db8::1, IPv6 is switched off; use IPv4",
        ),
        (
            ServerConfig(server=ServerOptions(addresses=(IPv6Address(0),))),
            "server.addresses: cannot listen on ::, IPv6 is switched off; use IPv4",
        ),
    ],
)
def test_what_was_asked_for_by_name_is_not_left_out_in_silence(
    monkeypatch: pytest.MonkeyPatch, config: ServerConfig, words: str
) -> None:
    """Somebody counts on it."""
    switch(monkeypatch, sockets=OFF, addresses=OFF)
    with pytest.raises(ConfigError) as caught:
        fit(config, FILE)
    assert str(caught.value).startswith(f"{FILE}: {words}")


def test_the_kernel_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A switch that cannot be read, as behind ProcSubset=pid, is no reason to do without."""
    setting = tmp_path / "disable_ipv6"
    monkeypatch.setattr(ipv6, "DEFAULT", setting)
    assert ipv6.why_no_addresses() == ipv6.why_no_sockets()
    setting.write_text("0\n")
    assert ipv6.why_no_addresses() == ""
    setting.write_text("1\n")
    assert "net.ipv6.conf.default.disable_ipv6=1" in ipv6.why_no_addresses()


def switch(monkeypatch: pytest.MonkeyPatch, *, sockets: str = "", addresses: str = "") -> None:
    """Have a host on which IPv6 is as told."""
    monkeypatch.setattr(checks, "why_no_sockets", lambda: sockets)
    monkeypatch.setattr(checks, "why_no_addresses", lambda: addresses)
