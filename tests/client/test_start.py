"""From the command line to a profile: what may stand where, and what is said when it may not."""

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w

from vpnd.client.start import configuration
from vpnd.config.profile_options import ClientConfig
from vpnd.errors import ConfigError
from vpnd.main import main, parser

PIN = "pin-sha256:" + "A" * 43 + "="
URL = "https://vpn.example.org:55555/group"


def made(*arguments: str) -> ClientConfig:
    return configuration(parser().parse_args(["client", *arguments]))


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "Phone 2.toml"
    path.write_text(
        tomli_w.dumps({"remotes": [{"address": "192.0.2.1", "pins": [PIN]}], "client": {}})
    )
    return path


def test_the_command_line_overrules_the_profile(profile: Path, tmp_path: Path) -> None:
    """What somebody types is meant."""
    config = made(
        str(profile), "--user", "bob", "--interface", "pyvpn20", "--script",
        str(tmp_path / "script"), "--helper-socket", "/run/other.sock",
    )  # fmt: skip
    assert config.client.user == "bob"
    assert config.client.name == "phone-2"
    assert config.network.interface == "pyvpn20"
    assert config.network.script == tmp_path / "script"
    assert config.helper.socket == Path("/run/other.sock")


def test_a_profile_may_come_from_a_descriptor(profile: Path) -> None:
    """Who starts vpnd could read the file; vpnd itself cannot."""
    fd = os.open(profile, os.O_RDONLY)
    assert made("/root/secret/tablet.toml", "--profile-fd", str(fd)).client.name == "tablet"


def test_a_profile_may_come_from_the_service_manager(
    profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that root alone may read stays so; the unit's name is the file's."""
    profile.rename(tmp_path / "profile")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert made("/etc/pyvpn/client/tablet.toml").client.name == "tablet"
    (tmp_path / "profile").write_text("\n")  # systemd has not found it
    with pytest.raises(ConfigError, match=r"/nonexistent/tablet.toml: no such file; "):
        made("/nonexistent/tablet.toml")


def test_a_url_takes_what_a_file_would_say(tmp_path: Path) -> None:
    """Pins, TLS 1.2 and a user."""
    config = made(URL, "--pin", PIN, "--user", "bob", "--allow-tls12")
    assert config.remotes[0].pins == (PIN,)
    assert config.remotes[0].port == 55555
    assert config.client.path == "/group"
    assert config.tls.min_version == "1.2"
    assert config.tls.ca == ""
    del tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["PROFILE", "--pin", PIN], "URL only"),
        (["PROFILE", "--allow-tls12"], "URL only"),
        (["PROFILE", "--interface", "eth0"], "pyvpn10"),
        (["PROFILE", "--user", "a\nb"], "printable"),
        ([URL, "--pin", "pin-sha256:AAAA"], "44 characters"),
        ([URL, "--pin", PIN, "--ca", "/absent.pem"], "no such file"),
        ([URL, "--pin", PIN, "--certificate", "CERTIFICATE"], "key"),
        (["http://vpn.example.org", "--pin", PIN], "https"),
        (["/absent.toml"], "no such file"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    profile: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    """With the option or the file in it."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    names = {"PROFILE": str(profile), "CERTIFICATE": str(certificate)}
    with pytest.raises(ConfigError, match=words) as caught:
        made(*(names.get(word, word) for word in arguments))
    assert "\n" not in str(caught.value)


@pytest.fixture
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A daemon sets up the logging of its process; the tests after this one are no daemon's."""
    root = logging.getLogger()
    level = root.level
    monkeypatch.setattr(root, "handlers", [])
    yield
    root.setLevel(level)


@pytest.mark.usefixtures("_own_logging")
def test_root_is_refused(
    profile: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The helper keeps the calling user outside of the tunnel: that must not be root."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert main(["client", str(profile)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "root" in line
    assert "pyvpn-client" in line


@pytest.mark.usefixtures("_own_logging")
def test_an_error_reaches_whoever_asked_for_us(capsys: pytest.CaptureFixture[str]) -> None:
    """`vpnctl up` has no other way to know what is wrong with a profile."""
    ours, theirs = socket.socketpair()
    with ours:
        fd = theirs.detach()
        assert main(["client", "/absent.toml", "--prompt-fd", str(fd)]) == 2
        assert b"no such file" in ours.recv(4096)
    assert "no such file" in capsys.readouterr().err
