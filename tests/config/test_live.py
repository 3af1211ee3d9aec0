"""What a reload makes of a new file, and what `config show` makes of a configuration."""

import tomllib
from dataclasses import fields, replace
from pathlib import Path

import pytest

from vpnd.config import ServerConfig, load_server
from vpnd.config.live import EFFECTS, Effect, flat, merge
from vpnd.config.load import READERS, load_with_origin
from vpnd.config.model import NetworkOptions, ServerOptions, SessionOptions
from vpnd.config.text import settings

SAMPLE = Path(__file__).parents[2] / "etc" / "pyvpn" / "server.toml"
OTHER = """
[server]
addresses = ["192.0.2.1"]
port = 443
name = "vpn.example"
remotes = ["vpn.example:443"]
[network]
interface = "pyvpn1"
ipv4 = "10.9.0.0/24"
ipv6 = ""
mtu = 1300
dns = ["10.9.0.1", "fd00::1"]
default_domain = "example.org"
routes = ["10.0.0.0/8"]
exclude = ["10.1.0.0/16"]
client_to_client = true
[tls]
certificate = "/c"
key = "/k"
client_ca = "/ca"
min_version = "1.2"
[dtls]
enabled = false
[auth]
methods = ["password"]
login_timeout_s = 60
password_attempts = 1
[session]
cookie_timeout_s = 60
session_timeout_s = 60
idle_timeout_s = 60
dpd_s = 60
keepalive_s = 60
rekey_s = 60
[limits]
connections = 60
connections_per_address = 60
handshakes_pending = 60
[firewall]
backend = "nftables"
masquerade = false
clamp_mss = false
[helper]
socket = "/s"
[ipc]
admin_group = "wheel"
[log]
level = "none"
anonymise = true
keep_days = 0
"""


@pytest.fixture
def other(tmp_path: Path) -> ServerConfig:
    """A configuration in which every key has another value than by default."""
    path = tmp_path / "server.toml"
    path.write_text(OTHER)
    return load_server(path)


def keys_of_the_model() -> set[str]:
    return {
        f"{table.name}.{key.name}"
        for table in fields(ServerConfig)
        for key in fields(getattr(ServerConfig(), table.name))
    }


def test_every_key_is_either_live_or_needs_a_restart() -> None:
    """A new option that nobody thought about would be told applied and not be."""
    assert set(EFFECTS) == keys_of_the_model()


def test_the_sample_marks_what_needs_a_restart() -> None:
    """Whoever edits the file reads it there."""
    table, comment = "", ""
    for line in SAMPLE.read_text().splitlines():
        if line.startswith("["):
            table = line.strip("[]")
        elif line.startswith("#"):
            comment += line
        elif line and "=" in line:
            key = f"{table}.{line.partition(' ')[0]}"
            marked = comment.endswith("Restart.")
            assert marked == (EFFECTS[key] is Effect.RESTART), key
            comment = ""


def test_all_of_a_new_file_is_either_applied_or_named(other: ServerConfig) -> None:
    """Each changed key once."""
    merged = merge(ServerConfig(), other)
    assert {*merged.applied, *merged.needs_restart} == keys_of_the_model()
    assert not set(merged.applied) & set(merged.needs_restart)
    values, before, after = flat(merged.config), flat(ServerConfig()), flat(other)
    for key in merged.applied:
        assert values[key] == after[key]
        assert EFFECTS[key] is Effect.LIVE
    for key in merged.needs_restart:
        assert values[key] == before[key]


def test_what_did_not_change_is_not_named() -> None:
    """A reload without a change says so."""
    merged = merge(ServerConfig(), ServerConfig())
    assert (merged.config, merged.applied, merged.needs_restart) == (ServerConfig(), (), ())


def test_a_key_that_waits_for_a_restart_is_named_again() -> None:
    """Two reloads later it still is not in force."""
    wanted = ServerConfig(server=ServerOptions(port=443))
    running = merge(ServerConfig(), wanted).config
    again = replace(wanted, session=SessionOptions(dpd_s=60))
    merged = merge(running, again)
    assert (merged.applied, merged.needs_restart) == (("session.dpd_s",), ("server.port",))
    assert merged.config.server.port == ServerConfig().server.port


@pytest.mark.parametrize("is_sample", [True, False])
def test_settings_are_written_as_the_file_has_them(other: ServerConfig, is_sample: bool) -> None:
    """What `config show` prints can be copied into the file."""
    config = ServerConfig() if is_sample else other
    text = SAMPLE.read_text() if is_sample else OTHER
    written = {
        f"{table}.{key}": value
        for table, keys in tomllib.loads(text).items()
        for key, value in keys.items()
    }
    shown = settings(config)
    assert list(shown) == list(written)
    for key, literal in shown.items():
        table, _, name = key.partition(".")
        value = tomllib.loads(f"x = {literal}")["x"]
        assert value == written[key]
        assert READERS[table][name](value) == flat(config)[key]


def test_texts_from_elsewhere_stay_one_value() -> None:
    """A quotation mark or an accent is no end of a text."""
    config = ServerConfig(network=NetworkOptions(default_domain='grün "a\\b"\x7f'))
    literal = settings(config)["network.default_domain"]
    assert tomllib.loads(f"x = {literal}")["x"] == config.network.default_domain


def test_the_keys_that_a_file_says_itself_are_known(tmp_path: Path) -> None:
    """The rest are defaults, also where the file says the same."""
    path = tmp_path / "server.toml"
    path.write_text("[network]\nmtu = 1400\n[dtls]\n[log]\nlevel = 'info'\n")
    config, said = load_with_origin(path)
    assert config == ServerConfig()
    assert said == {"network.mtu", "log.level"}
