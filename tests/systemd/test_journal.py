"""What the journal of a real system holds of us, and what happens to a bad configuration."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.protocol.authority import certificate_of
from tests.systemd.system import System

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]
CONFIG = "/etc/pyvpn/server.toml"


@pytest.fixture(scope="module")
def server(install: Callable[[str], System]) -> System:
    system = install("server")
    system.shell("systemctl enable --now pyvpn-server")
    return system


def entries(system: System, *matches: str, since: str = "") -> list[dict[str, Any]]:
    """Return the journal's entries of the server with these fields."""
    place = [f"--after-cursor={since}"] if since else []
    said = system.journal("-u", "pyvpn-server", "-o", "json", "--all", *place, *matches)
    return [json.loads(line) for line in said.splitlines()]


def set_level(system: System, level: str) -> None:
    system.shell(f"sed -i 's/^level = .*/level = \"{level}\"/' {CONFIG} && vpnctl reload")


def test_an_event_has_its_fields_and_is_told_once(server: System) -> None:
    """`journalctl PYVPN_USER=alice` finds what is about her, whatever the text says."""
    (ready,) = entries(server, "PYVPN_EVENT=vpnd is ready")
    assert ready["MESSAGE"].startswith("vpnd is ready: ")
    assert (ready["PRIORITY"], ready["SYSLOG_IDENTIFIER"]) == ("6", "vpnd")
    assert (ready["_TRANSPORT"], ready["PYVPN_INTERFACE"]) == ("journal", "pyvpn0")
    assert len([e for e in entries(server) if "vpnd is ready" in str(e["MESSAGE"])]) == 1
    server.shell("echo 'correct horse battery' | vpnctl user add alice --password-stdin")
    asked, added = entries(server, "PYVPN_NAME=alice", "+", "PYVPN_USER=alice")
    assert (asked["PYVPN_METHOD"], asked["PYVPN_UID"]) == ("AddUser", "0")
    assert added["MESSAGE"] == "user added: user=alice"


def test_the_worker_has_a_way_of_its_own(server: System) -> None:
    """It faces the network, and most lines that somebody looks for are its own."""
    since = server.cursor()
    set_level(server, "debug")
    server.shell("curl -sk https://127.0.0.1:55555/nothing/of/ours")
    server.shell("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | timeout 5 bash -c "
                 "'exec 3<>/dev/tcp/127.0.0.1/55555; cat >&3; cat <&3 >/dev/null'",
                 check=False)  # fmt: skip
    server.wait_journal("TLS failed", since=since)
    failed = entries(server, "PYVPN_EVENT=TLS failed", since=since)[-1]
    assert failed["_PID"] != server.property("pyvpn-server", "MainPID")
    assert (failed["PRIORITY"], failed["_TRANSPORT"]) == ("7", "journal")
    assert failed["PYVPN_ADDRESS"].startswith("127.0.0.1:")


def test_a_journal_that_was_restarted_gets_what_comes_then(server: System) -> None:
    """Ours is no connection that could break."""
    server.shell("systemctl restart systemd-journald")
    since = server.cursor()
    server.shell("vpnctl reload")
    (entry,) = entries(server, "PYVPN_EVENT=configuration reloaded", since=since)
    assert entry["PYVPN_SETTINGS"] == "no changes"


def test_with_level_none_nothing_more_is_said(server: System) -> None:
    """Until it is switched on again."""
    set_level(server, "none")
    since = server.cursor()
    server.shell("curl -sk https://127.0.0.1:55555/nothing/of/ours")
    server.shell("vpnctl user add bob --no-password")
    assert entries(server, since=since) == []
    set_level(server, "info")
    assert entries(server, "PYVPN_EVENT=configuration reloaded", since=since) == []
    server.shell("vpnctl reload")
    assert len(entries(server, "PYVPN_EVENT=configuration reloaded", since=since)) == 1


def test_a_host_without_ipv6_serves_ipv4(server: System) -> None:
    """As booted with ipv6.disable=1: no program can have such a socket."""
    since = server.cursor()
    for unit in ("pyvpn-server", "pyvpn-helper"):
        server.write(
            f"/etc/systemd/system/{unit}.service.d/ipv6.conf",
            "[Service]\nRestrictAddressFamilies=\n"
            "RestrictAddressFamilies=AF_UNIX AF_INET AF_NETLINK\n",
        )
    server.shell("systemctl daemon-reload && systemctl stop pyvpn-server pyvpn-helper")
    server.shell("systemctl start pyvpn-server")
    (warning,) = entries(server, "PYVPN_EVENT=this host cannot do all that is configured",
                         since=since)  # fmt: skip
    assert warning["PRIORITY"] == "4"
    assert warning["PYVPN_REASON"].startswith("IPv4 only, this kernel has no IPv6")
    status = json.loads(server.shell("vpnctl --json status"))
    assert (status["state"], status["listen"]) == ("up", ["0.0.0.0:55555"])
    assert status["addresses"] == ["10.8.0.1/24"]
    for unit in ("pyvpn-server", "pyvpn-helper"):
        server.path(f"/etc/systemd/system/{unit}.service.d/ipv6.conf").unlink()
    server.shell("systemctl daemon-reload && systemctl stop pyvpn-server pyvpn-helper")
    server.shell("systemctl start pyvpn-server")
    assert len(json.loads(server.shell("vpnctl --json status"))["addresses"]) == 2


def test_a_clock_that_is_set_late_only_delays_the_start(server: System) -> None:
    """However long it takes: systemd does not give up, and says what it waits for."""
    certificate, key = (server.path(f"/var/lib/pyvpn/server.{name}") for name in ("crt", "key"))
    before = certificate.read_bytes()
    begin = datetime.now(UTC) + timedelta(days=2)
    certificate.write_bytes(certificate_of(key.read_bytes(), begin))
    since = server.cursor()
    server.shell("systemctl restart pyvpn-server", check=False)
    waiting, *_ = entries(server, "PYVPN_EVENT=waiting for the clock to be set", since=since)
    assert waiting["PYVPN_REASON"].startswith("/var/lib/pyvpn/server.crt: the certificate is not")
    server.wait_journal("set the clock .timedatectl.$", since=since, unit="pyvpn-server")
    certificate.write_bytes(before)  # the clock is right now, so to speak
    server.wait_journal("vpnd is ready", since=since, unit="pyvpn-server")
    assert int(server.property("pyvpn-server", "NRestarts")) >= 1


def test_a_bad_configuration_fails_once_and_says_why(server: System) -> None:
    """In `systemctl status`, in one line, with exit status 2; systemd does not try again."""
    server.shell(f"cp {CONFIG} /root/before.toml && sed -i 's/^mtu = .*/mtu = 400/' {CONFIG}")
    check = server.run("vpnctl", "config", "check", check=False)
    assert check.returncode == 2
    line = f"{CONFIG}: network.mtu: 400 is below 576; use 576 to 9000"
    assert check.stderr == f"vpnctl: {line}\n"
    assert server.run("vpnctl", "reload", check=False).stderr == f"vpnctl: {line}\n"
    assert "state\tup" in server.shell("vpnctl status")
    server.shell("systemctl restart pyvpn-server", check=False)
    assert f"vpnd: {line}" in server.shell("systemctl status pyvpn-server", check=False)
    (last,) = [e for e in entries(server) if e["MESSAGE"] == f"vpnd: {line}"]
    assert last["PRIORITY"] == "3"
    assert server.property("pyvpn-server", "ExecMainStatus") == "2"
    assert server.property("pyvpn-server", "NRestarts") == "0"
    assert server.property("pyvpn-server", "ActiveState") == "failed"
    server.shell(f"cp /root/before.toml {CONFIG} && systemctl restart pyvpn-server")
    assert "in order" in server.shell("vpnctl config check")
