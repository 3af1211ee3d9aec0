"""What must be in order before a server starts."""

import errno
import os
import socket
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path

import pytest

from tests.protocol.authority import TestSite
from vpnd.config.model import NetworkOptions, ServerConfig, ServerOptions
from vpnd.errors import ConfigError, VpnError
from vpnd.pki.certificates import load_chain
from vpnd.pki.reading import not_after, not_before
from vpnd.server.checks import Fitted, check_keys, fit

FILE = Path("/etc/pyvpn/server.toml")


def test_a_clock_before_the_certificate_is_explained(tmp_path: Path) -> None:
    """A board without a battery begins in 1970; the remedy is not another certificate.

    It is no bad configuration (exit status 2), which systemd would not try again.
    """
    site = TestSite(tmp_path)
    begin = not_before(load_chain(site.certificate)[0])
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
    end = not_after(load_chain(site.certificate)[0])
    check_keys(ServerConfig(), tmp_path, end + timedelta(days=1))


def test_a_host_with_ipv6_does_all() -> None:
    """Nothing is changed where nothing has to be."""
    assert fit(ServerConfig(), FILE) == Fitted(ServerConfig())


@pytest.mark.usefixtures("_no_ipv6")
def test_a_kernel_without_ipv6_serves_ipv4() -> None:
    """With the defaults, and it says what is missing; who asked for no IPv6 hears nothing."""
    fitted = fit(ServerConfig(), FILE)
    assert fitted.config.server.addresses == (IPv4Address(0),)
    assert fitted.config.network.ipv6 is None
    assert fitted.left_out.startswith("IPv4 only, this kernel has no IPv6")
    assert fit(fitted.config, FILE) == Fitted(fitted.config)


@pytest.mark.usefixtures("_no_ipv6")
@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            ServerConfig(network=NetworkOptions(ipv6=IPv6Network("fd00::/64"))),
            "network.ipv6: this kernel has no IPv6 ",
        ),
        (
            ServerConfig(server=ServerOptions(addresses=(IPv6Address("2001:db8::1"),))),
            "server.addresses: cannot listen on 2001:db8::1, this kernel has no IPv6 ",
        ),
        (
            ServerConfig(server=ServerOptions(addresses=(IPv6Address(0),))),
            "server.addresses: cannot listen on ::, this kernel has no IPv6 ",
        ),
    ],
)
def test_what_was_asked_for_by_name_is_not_left_out_in_silence(
    config: ServerConfig, words: str
) -> None:
    """Somebody counts on it."""
    with pytest.raises(ConfigError) as caught:
        fit(config, FILE)
    assert str(caught.value).startswith(f"{FILE}: {words}")
    assert "; " in str(caught.value)


@pytest.fixture
def _no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's answer on a host that was booted with ipv6.disable=1."""
    make = socket.socket

    def refuse(family: int = socket.AF_INET, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return make(family, *rest)

    monkeypatch.setattr(socket, "socket", refuse)
