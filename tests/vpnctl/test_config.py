"""`vpnctl config` and `vpnctl reload`."""

import json
import os
from pathlib import Path

import pytest

from tests.ipc.caller import STRANGER, as_user, needs_root
from tests.vpnctl.program import Daemon, vpnctl
from vpnd.config import ServerConfig
from vpnd.config.text import settings
from vpnd.ipc.api import Reloaded, Setting

SAMPLES = Path(__file__).parents[2] / "etc" / "pyvpn"
PROFILE = """
[[remotes]]
address = "vpn.example.org:55555"
pins = ["pin-sha256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]
"""
POLICY = """
[user.pyvpn]
interfaces = ["pyvpn0"]
networks = ["10.8.0.0/16", "fc00::/7"]
ports = ["55555"]
[user.pyvpn-client]
interfaces = ["pyvpn10"]
networks = ["10.0.0.0/8"]
"""


def written(tmp_path: Path, text: str, name: str = "server.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(0o644)
    return path


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """A helper's policy; it must be root's, which a test that root runs makes it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: the helper takes a policy from root alone")
    return written(tmp_path, POLICY, "helper.toml")


def check(path: Path, policy: Path | None = None) -> tuple[int, str, str]:
    options = ["--policy", str(policy or path.with_name("absent.toml"))]
    done = vpnctl("config", "check", str(path), *options)
    return done.returncode, done.stdout, done.stderr


def test_the_samples_are_in_order(tmp_path: Path) -> None:
    """With the built-in policy, and no daemon far and wide."""
    for name in ("server.toml", "client.toml"):
        status, out, err = check(written(tmp_path, (SAMPLES / name).read_text(), name))
        assert (status, err) == (0, ""), err
        assert out == f"{tmp_path / name}: in order\n"


def test_a_check_tells_programs_what_it_was(tmp_path: Path) -> None:
    """The same file name may be a server's or a client's."""
    for text, kind in (("", "server"), (PROFILE, "profile")):
        path = written(tmp_path, text)
        done = vpnctl("--json", "config", "check", str(path), "--policy", str(tmp_path / "none"))
        assert json.loads(done.stdout) == {"file": str(path), "kind": kind, "ok": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[network]\nmtu = 400", "network.mtu: 400 is below 576; use 576 to 9000"),
        ("[[", "not valid TOML"),
        (PROFILE + "[network]\nscript = 3", "network.script: 3 is not a text; put it in"),
        ('[tls]\nclient_ca = "/absent/ca"', "tls.client_ca: /absent/ca is no file; name another"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_2(tmp_path: Path, text: str, words: str) -> None:
    """File, key and remedy: as the daemon would say it, before it has to."""
    path = written(tmp_path, text)
    status, out, err = check(path)
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"vpnctl: {path}: {words}")


def test_a_file_that_is_not_there_is_exit_2(tmp_path: Path) -> None:
    """Also of `show`."""
    for action in ("check", "show"):
        done = vpnctl("config", action, str(tmp_path / "absent.toml"))
        assert done.returncode == 2
        assert "no such file; " in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            '[network]\ninterface = "pyvpn1"',
            "network.interface: user pyvpn may not have interface",
        ),
        ("[server]\nport = 443", "server.port: user pyvpn may not have port 443; change ports in"),
        ('[network]\nipv4 = "10.9.0.0/16"', "network.ipv4: user pyvpn may not have network 10.9."),
        (
            '[network]\nipv6 = "2001:db8::/64"',
            "network.ipv6: user pyvpn may not have network 2001",
        ),
        (
            PROFILE + '[network]\ninterface = "pyvpn11"',
            "network.interface: user pyvpn-client may not have interface pyvpn11; change",
        ),
        (
            PROFILE + '[network]\ninclude = ["default"]',
            "network.include: user pyvpn-client may not have a route to 0.0.0.0/0; add default_",
        ),
    ],
)
def test_what_the_helper_would_refuse_is_found_before(
    tmp_path: Path, policy: Path, text: str, words: str
) -> None:
    """With the key of our file and the line of the helper's."""
    path = written(tmp_path, text)
    status, _, err = check(path, policy)
    assert status == 2
    (line,) = err.splitlines()
    assert line.startswith(f"vpnctl: {path}: {words}")
    assert f"{policy}, line " in line


def test_a_policy_that_the_helper_would_not_take_is_told(tmp_path: Path, policy: Path) -> None:
    """As the helper would."""
    policy.chmod(0o666)
    status, _, err = check(written(tmp_path, ""), policy)
    assert status == 2
    assert "writable by root only" in err
    policy.chmod(0o644)
    policy.write_text("[user.somebody]\n")
    assert "add a table [user.pyvpn]" in check(written(tmp_path, ""), policy)[2]


def test_show_says_where_each_value_is_from(tmp_path: Path) -> None:
    """As lines that can be copied into the file; the daemon need not run."""
    path = written(tmp_path, '[network]\nmtu = 1300\ndns = ["10.8.0.1"]\n')
    done = vpnctl("--run-dir", str(tmp_path), "config", "show", str(path))
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["KEY", "VALUE", "FROM", "RUNNING"]
    found = {row[0]: row[1:] for row in rows[1:]}
    assert found["network.mtu"] == ["1300", "file", "-"]
    assert found["network.dns"] == ['["10.8.0.1"]', "file", "-"]
    assert found["network.routes"] == ['["default"]', "default", "-"]
    assert set(found) == set(settings(ServerConfig()))


def test_show_tells_programs_the_values_themselves(tmp_path: Path) -> None:
    """And why it does not know what is in force."""
    path = written(tmp_path, "[network]\nmtu = 1300\n")
    done = vpnctl("--json", "--run-dir", str(tmp_path), "config", "show", str(path))
    shown = json.loads(done.stdout)
    assert shown["running_unknown"] == "the server is not running"
    found = {setting["key"]: setting for setting in shown["settings"]}
    assert found["network.mtu"] == {
        "key": "network.mtu",
        "value": 1300,
        "from": "file",
        "effect": "live",
        "running": None,
    }
    assert found["server.port"]["effect"] == "restart"


def test_show_says_where_the_running_server_differs(tmp_path: Path, daemon: Daemon) -> None:
    """An edited file that nobody has reloaded is the usual riddle."""
    in_force = settings(ServerConfig()) | {"network.mtu": "1280", "server.port": "443"}
    daemon.backend.settings = [Setting(key, value) for key, value in in_force.items()]
    path = written(tmp_path, "[network]\nmtu = 1300\n")
    done = daemon.vpnctl("config", "show", str(path))
    found = {line.split("\t")[0]: line.split("\t")[3] for line in done.stdout.splitlines()}
    differ = {key: value for key, value in found.items() if value not in {"-", "RUNNING"}}
    assert differ == {"network.mtu": "1280", "server.port": "443"}
    table = daemon.vpnctl("config", "show", str(path), "--table").stdout
    assert "until `vpnctl reload`, with server.port until a restart" in table
    shown = json.loads(daemon.vpnctl("--json", "config", "show", str(path)).stdout)
    assert {s["key"] for s in shown["settings"] if s["running"] != s["value"]} == set(differ)


@needs_root
def test_strangers_see_the_file_but_not_what_is_in_force(daemon: Daemon) -> None:
    """The socket is open to all, what the server goes by is not told to all."""
    path = written(daemon.run_dir, "")
    with as_user(STRANGER):
        done = daemon.vpnctl("config", "show", str(path), "--table")
        reload = daemon.vpnctl("reload")
    assert done.returncode == 0
    assert "what is in force is not known: only root" in done.stderr
    assert reload.returncode == 4


def test_reload_says_what_was_applied_and_what_waits(daemon: Daemon) -> None:
    """A change that seems to do nothing must not look like one that did."""
    daemon.backend.reloaded = Reloaded(["network.dns", "tls.key (its content)"], ["server.port"])
    done = daemon.vpnctl("reload")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "applied\tnetwork.dns, tls.key (its content)",
        "needs a restart\tserver.port",
    ]
    shown = json.loads(daemon.vpnctl("--json", "reload").stdout)
    assert shown["needs_restart"] == ["server.port"]
    daemon.backend.reloaded = Reloaded([], [])
    assert daemon.vpnctl("reload").stdout == "applied\tnothing, nothing has changed\n"


def test_a_reload_that_is_refused_is_one_line(daemon: Daemon) -> None:
    """The daemon's own: it read the file."""
    daemon.backend.reload_refusal = "/x/server.toml: network.mtu: 400 is below 576; use 576 to"
    done = daemon.vpnctl("reload")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"vpnctl: {daemon.backend.reload_refusal}\n"
