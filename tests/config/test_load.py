"""Loading server.toml: every complaint says file, key and remedy, and nothing else comes out."""

import ast
import inspect
import re
import tomllib
from dataclasses import fields
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.config import ServerConfig, load_server, model, values
from vpnd.config.load import MAX_FILE, READERS
from vpnd.errors import ConfigError

SAMPLE = Path(__file__).parents[2] / "etc" / "pyvpn" / "server.toml"


def write(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "server.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def complaint(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_server(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text.removeprefix(f"{path}: ")


def test_sample_is_the_defaults() -> None:
    """An operator who changes one line of the sample changes one thing."""
    assert load_server(SAMPLE) == ServerConfig()


def test_sample_names_every_option_and_every_option_has_a_reader() -> None:
    """An option that is not in the sample does not exist for its users."""
    wanted = {t.name: {f.name for f in fields(t.default_factory)} for t in fields(ServerConfig)}  # type: ignore[arg-type]
    with SAMPLE.open("rb") as file:
        assert {name: set(table) for name, table in tomllib.load(file).items()} == wanted
    assert {name: set(readers) for name, readers in READERS.items()} == wanted


def test_every_option_is_documented() -> None:
    """The manual page is made from the text under each field."""
    for node in ast.walk(ast.parse(inspect.getsource(model))):
        if not isinstance(node, ast.ClassDef) or node.name == "ServerConfig":
            continue
        for here, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(here, ast.AnnAssign):
                assert isinstance(below, ast.Expr), ast.unparse(here)
                assert isinstance(below.value, ast.Constant), ast.unparse(here)


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    """Nothing has to be configured."""
    assert load_server(write(tmp_path, "")) == ServerConfig()


def test_values_arrive_as_types(tmp_path: Path) -> None:
    """The rest of the program never sees an unchecked text."""
    config = load_server(
        write(
            tmp_path,
            """
            [server]
            addresses = ["192.0.2.1", "2001:db8::1"]
            port = 443
            name = "VPN.example.org"
            remotes = ["vpn.example.org:443", "[2001:DB8::1]:443"]
            [network]
            ipv4 = "10.20.0.0/16"
            ipv6 = "fd12:3456:789a::/64"
            dns = ["10.20.0.1"]
            default_domain = "corp.example  example.org"
            routes = ["10.0.0.0/8", "fd00::/8"]
            [tls]
            certificate = "/etc/ssl/a.pem"
            key = "/etc/ssl/a.key"
            [auth]
            methods = ["password"]
            """,
        )
    )
    assert config.server.addresses == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))
    assert config.server.name == "vpn.example.org"
    assert config.server.remotes == ("vpn.example.org:443", "[2001:db8::1]:443")
    assert config.network.ipv4 == IPv4Network("10.20.0.0/16")
    assert config.network.ipv6 == IPv6Network("fd12:3456:789a::/64")
    assert config.network.routes == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert config.network.default_domain == "corp.example example.org"
    assert config.auth.methods == ("password",)
    state = Path("/var/lib/pyvpn")
    assert config.tls.certificate_file(state) == Path("/etc/ssl/a.pem")
    assert config.tls.client_ca_file(state) == state / "ca.crt"


def test_no_ipv6_allows_a_small_mtu(tmp_path: Path) -> None:
    """IPv6 alone asks for 1280."""
    config = load_server(write(tmp_path, '[network]\nipv6 = ""\nmtu = 600'))
    assert (config.network.ipv6, config.network.mtu) == (None, 600)


def test_default_route_is_kept_as_no_split_routes(tmp_path: Path) -> None:
    """The protocol says "everything" by naming no network."""
    assert load_server(write(tmp_path, '[network]\nroutes = ["default"]')).network.routes == ()


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        ("", ("vpn.example.org:55555",)),
        ('name = "2001:db8::1"', ("[2001:db8::1]:55555",)),
        ('name = "192.0.2.7"\nport = 443', ("192.0.2.7:443",)),
        ('remotes = ["a.example:1"]', ("a.example:1",)),
    ],
)
def test_remotes_default_to_name_and_port(
    tmp_path: Path, server: str, expected: tuple[str, ...]
) -> None:
    """Profiles are right without being told twice."""
    config = load_server(write(tmp_path, f"[server]\n{server}"))
    assert config.server.remotes_for("vpn.example.org") == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[network]\nmtu = 400", "network.mtu: 400 is below 576; use 576 to 9000"),
        ("[network]\nmtu = 1000", "network.mtu: 1000 is below 1280, which IPv6 needs; use"),
        ("[network]\nmtu = true", "network.mtu: true is not a whole number; use"),
        ("[network]\nmtu = 1400.5", "network.mtu: 1400.5 is not a whole number; use"),
        ("[network]\nmut = 1400", "network.mut: unknown; did you mean mtu?"),
        ("[netwrok]\nmtu = 1400", "netwrok: unknown; did you mean network?"),
        ("[zzz]", "zzz: unknown; known are server, network"),
        ('"a\\nb" = 1', "a\\nb: unknown; known are"),
        ("server = 3", "server: not a table; write [server]"),
        ("[server]\nport = 0", "server.port: 0 is below 1; use 1 to 65535"),
        ("[server]\nport = 70000", "server.port: 70000 is above 65535; use 1 to 65535"),
        ('[server]\nport = "443"', 'server.port: "443" is not a whole number; use'),
        ("[server]\naddresses = []", "server.addresses: has 0 entries; write 1 to"),
        ('[server]\naddresses = "::"', 'server.addresses: "::" is not a list; put it in'),
        ('[server]\naddresses = ["::", "0::0"]', "server.addresses: an entry is there twice"),
        ('[server]\naddresses = ["eth0"]', 'server.addresses: "eth0" is no IP address; write'),
        ('[server]\naddresses = ["fe80::1%eth0"]', "server.addresses: "),
        ('[server]\nname = "-x"', 'server.name: "-x" is no host name or address; write'),
        ('[server]\nname = "10.0.0.256"', "server.name: "),
        ('[server]\nname = "a\\r\\nb"', "server.name: not printable or over"),
        ('[server]\nremotes = ["vpn.example.org"]', "server.remotes: "),
        ('[server]\nremotes = ["2001:db8::1:443"]', "server.remotes: "),
        ('[server]\nremotes = ["a:99999"]', "server.remotes: 99999 is above 65535; use"),
        ('[network]\ninterface = "eth0"', "network.interface: "),
        ('[network]\ninterface = "pyvpn0\\n"', "network.interface: "),
        ('[network]\nipv4 = "10.8.0.1/24"', 'network.ipv4: "10.8.0.1/24" has bits right of'),
        ('[network]\nipv4 = "10.8.0.0/31"', "network.ipv4: "),
        ('[network]\nipv4 = "224.0.0.0/8"', "network.ipv4: "),
        ('[network]\nipv4 = ""', "network.ipv4: "),
        ('[network]\nipv6 = "10.8.0.0/24"', "network.ipv6: "),
        ('[network]\nipv6 = "fd00::/127"', "network.ipv6: "),
        ('[network]\nroutes = ["default", "10.0.0.0/8"]', 'network.routes: "default" stands'),
        ("[network]\nroutes = []", "network.routes: has 0 entries; write 1 to"),
        ('[network]\ndefault_domain = "a b\\tc"', "network.default_domain: not printable"),
        ('[network]\ndefault_domain = "a;b"', "network.default_domain: "),
        ('[network]\nclient_to_client = "no"', "network.client_to_client: "),
        ('[tls]\ncertificate = "/a"', "tls.key: missing; name certificate and key, or neither"),
        ('[tls]\nkey = "/a"', "tls.certificate: missing; name"),
        ('[tls]\nkey = "a"\ncertificate = "/a"', "tls.key: "),
        ('[tls]\nmin_version = "1.1"', 'tls.min_version: "1.1" is not known here; use one of'),
        ("[auth]\nmethods = []", "auth.methods: has 0 entries; write"),
        ('[auth]\nmethods = ["pam"]', 'auth.methods: "pam" is not known here; use one of'),
        ("[session]\nidle_timeout_s = 1", "session.idle_timeout_s: 1 is below 30; use 30 to"),
        ("[session]\nidle_timeout_s = false", "session.idle_timeout_s: false is not a whole"),
        ("[limits]\nconnections = 1", "limits.connections_per_address: above"),
        ('[ipc]\nadmin_group = "a b"', "ipc.admin_group: "),
        ('[log]\nlevel = "loud"', "log.level: "),
        ("a = = 1", "not valid TOML: "),
        ("a = " + "[" * 5000, "not valid TOML: "),
    ],
)
def test_complaint_names_key_and_remedy(tmp_path: Path, text: str, words: str) -> None:
    """The one line on the terminal is enough to repair the file."""
    said = complaint(write(tmp_path, text))
    assert said.startswith(words)
    assert re.search(r"[;?]", said)


def test_missing_unreadable_binary_and_huge_files_are_explained(tmp_path: Path) -> None:
    """Not even a wrong path gives a traceback."""
    assert complaint(tmp_path / "absent.toml").startswith("no such file; ")
    assert complaint(tmp_path).startswith("cannot be read (Is a directory); ")
    assert complaint(write(tmp_path, b"\xff")).startswith("byte 0 is not UTF-8; ")
    assert complaint(write(tmp_path, "#" * (MAX_FILE + 1))).startswith("larger than ")


TOML_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
)


@given(TOML_VALUES)
def test_readers_raise_only_bad_value(value: object) -> None:
    """Whatever a file holds, the operator gets a sentence."""
    said = []
    for readers in READERS.values():
        for reader in readers.values():
            try:
                reader(value)
            except values.BadValue as exc:
                said.append(str(exc))
    assert all(";" in text and text.isprintable() for text in said)
