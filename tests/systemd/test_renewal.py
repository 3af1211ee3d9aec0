"""Certificates that renew themselves: path unit, timer, sandbox, and whose files they are.

Each test goes on where the one before it ended.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.bed import Bed
from tests.systemd.system import System
from vpnd.worker.client_renewal import WAITS

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(400)]
PHONE = "pyvpn-client@phone"
LEFT_S = 10 * 86400
RENEWED_S = 3 * (WAITS[0] + WAITS[1])
# What `vpnctl client add` does, with a certificate most of whose life is over.
ENDING = f"""
import argparse, sys, time
sys.path.insert(0, "/usr/lib/pyvpn")
from pathlib import Path
from vpnctl.connection import call
from vpnctl.homes import Home
from vpnd.config.profile import ClientProfile, Remote, encode_profile
from vpnd.pki import jobs, keys
from vpnd.pki.certificates import serial_text
from vpnd.pki.child import CA_USER, Account
from vpnd.pki.reading import load_certificates, not_after
ca = Home(Path("/var/lib/pyvpn-ca"), Account.named(CA_USER))
at = argparse.Namespace(run_dir=Path("/run/pyvpn-server"))
key = keys.generate("p256")
signed = ca.run(jobs.sign_client, request=keys.request(key).decode(), user="phone", client="phone",
                foreign=False, now=time.time() + {LEFT_S} - 90 * 86400)
leaf = load_certificates(signed["certificate"].encode())[0]
call(at, lambda daemon: daemon.add_client(
    "phone", "phone", serial_text(leaf), int(not_after(leaf).timestamp()), foreign=False))
server = call(at, lambda daemon: daemon.get_profile())
remotes = [Remote(each, server.server_name, tuple(server.pins)) for each in server.remotes]
profile = ClientProfile("phone", "phone", "soon", remotes, server.ca_pem, signed["certificate"],
                        keys.encode_key(key).decode())
Path("/root/phone.toml").write_bytes(encode_profile(profile))
"""


@pytest.fixture(scope="module")
def server(bed: Bed, roots: Path, package: Path) -> System:
    system = bed.add("server", roots / "ready")
    system.install(package)
    system.shell("systemctl enable --now pyvpn-server")
    return system


@pytest.fixture(scope="module")
def client(bed: Bed, server: System, roots: Path, package: Path) -> System:
    del server  # has the first address
    system = bed.add("client", roots / "ready")
    system.install(package)
    return system


def known(server: System) -> dict[str, Any]:
    (entry,) = json.loads(server.run("vpnctl", "--json", "client", "list").stdout)["clients"]
    found: dict[str, Any] = entry
    return found


def test_a_client_gets_its_next_certificate_and_nobody_does_anything(
    server: System, client: System
) -> None:
    """It asks, the path unit starts the renewal in its sandbox, and the client has it."""
    server.run("python3", "-I", "-", stdin=ENDING)
    before = known(server)
    client.put(server.path("/root/phone.toml"), "/etc/pyvpn/client/")
    client.shell(f"systemctl enable --now {PHONE}")
    client.wait_journal("^certificate renewed", unit=PHONE, timeout_s=RENEWED_S)
    server.wait_journal("^certificate renewed", unit="pyvpn-server", timeout_s=3 * WAITS[0])
    after = known(server)
    assert after["serial"] != before["serial"]
    assert after["not_after"] - before["not_after"] > 79 * 86400
    assert after["sessions"] == 1
    assert "renewed the certificate of client phone" in server.journal("-u", "pyvpn-renew")
    assert server.property("pyvpn-renew.service", "Result") == "success"


def test_what_was_made_belongs_to_who_uses_it(server: System, client: System) -> None:
    """Nothing of root's in the directories of others, and nobody else reads them."""
    for system, folder, wanted in (
        (server, "/var/lib/pyvpn/requests", "pyvpn pyvpn 700"),
        (server, "/var/lib/pyvpn/answers", "pyvpn pyvpn 700"),
        (server, "/var/lib/pyvpn/crl.pem", "pyvpn pyvpn 644"),
        (server, "/var/lib/pyvpn-ca/issued.jsonl", "pyvpn-ca pyvpn-ca 600"),
        (client, "/var/lib/pyvpn-client", "pyvpn-client pyvpn-client 700"),
        (client, "/var/lib/pyvpn-client/phone", "pyvpn-client pyvpn-client 700"),
        (
            client,
            "/var/lib/pyvpn-client/phone/certificate.pem",
            "pyvpn-client pyvpn-client 600",
        ),
    ):
        assert system.shell(f"stat -c '%U %G %a' {folder}").strip() == wanted, folder


def test_the_new_certificate_outlives_a_restart_of_the_client(
    server: System, client: System
) -> None:
    """The profile, which is root's, still holds the old one."""
    at = client.cursor()
    client.shell(f"systemctl stop {PHONE}; systemctl start {PHONE}")
    client.wait_journal("^connected", unit=PHONE, since=at)
    assert "renewed" in client.shell("vpnctl status phone | grep certificate")
    assert known(server)["sessions"] == 1


def test_a_renewed_server_is_taken_without_a_break(server: System, client: System) -> None:
    """Same key, same pins: the session goes on, and new connections see the new certificate."""
    served = "openssl s_client -connect 127.0.0.1:55555 </dev/null 2>/dev/null"
    serial = f"{served} | openssl x509 -noout -serial"
    before, at = server.shell(serial), server.cursor()
    session = json.loads(server.run("vpnctl", "--json", "status").stdout)["sessions"][0]["id"]
    assert "the server has taken it" in server.shell("vpnctl pki renew --force")
    assert server.shell(serial) != before
    assert "session closed" not in server.journal("-u", "pyvpn-server", f"--after-cursor={at}")
    shown = json.loads(server.run("vpnctl", "--json", "status").stdout)["sessions"]
    assert [entry["id"] for entry in shown] == [session]
    client.shell("vpnctl --run-dir /run/pyvpn-client-phone rotate-keys")
    server.shell("vpnctl pki status")


def test_the_daily_run_has_nothing_to_complain_of(server: System) -> None:
    """As the timer starts it: no network, no privilege, and the revocation list afterwards."""
    server.shell("rm /var/lib/pyvpn/crl.pem; systemctl start pyvpn-renew.service")
    assert "BEGIN X509 CRL" in server.shell("cat /var/lib/pyvpn/crl.pem")
    assert server.property("pyvpn-renew.timer", "ActiveState") == "active"
    assert server.property("pyvpn-renew.path", "ActiveState") == "active"


def test_a_first_start_with_a_full_disk_says_so_and_leaves_nothing(
    server: System, client: System
) -> None:
    """One line with the reason; with room again the same command makes it whole."""
    del server
    client.shell("mount -t tmpfs -o nr_inodes=5,mode=700,uid=pyvpn,gid=pyvpn t /var/lib/pyvpn")
    try:
        client.shell("systemctl start pyvpn-pki.service", check=False)
        assert client.property("pyvpn-pki.service", "Result") == "exit-code"
        assert "No space left on device" in client.journal("-u", "pyvpn-pki")
        assert client.shell("ls /var/lib/pyvpn /var/lib/pyvpn-ca | grep -v :", check=False) == "\n"
    finally:
        client.shell("umount /var/lib/pyvpn")
    client.shell("systemctl start pyvpn-pki.service")
    client.shell("vpnctl pki status")
