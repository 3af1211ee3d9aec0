"""What the package puts on a system: whose every file is, what each service may do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.netns.bed import WEB4
from tests.netns.namespace import ROOT
from tests.systemd.system import System

pytestmark = [pytest.mark.systemd, pytest.mark.timeout(300)]
LIMITS = {  # systemd-analyze security, 0 to 10
    "pyvpn-server.service": 1.5,
    "pyvpn-client@home.service": 1.5,
    "pyvpn-renew.service": 3.0,
    "pyvpn-helper.service": 3.0,
    "pyvpn-pki.service": 3.0,
}
OWNERS = [  # path, mode, owner; the first that matches holds, and nothing else may be there
    (r"/etc/pyvpn", "drwxr-xr-x", "root:root"),
    (r"/etc/pyvpn/(server|helper)\.toml", "-rw-r--r--", "root:root"),
    (r"/etc/pyvpn/client", "drwxr-x---", "root:pyvpn-client"),
    (r"/etc/pyvpn/client/\w+\.toml", "-rw-------", "root:root"),
    (r"/etc/systemd/system/.*", "lrwxrwxrwx", "root:root"),
    (r"/usr/share/doc/pyvpn/examples(/.*)?", "[d-]rw[x-]r-[x-]r-[x-]", "root:root"),
    (r"/usr/(s?bin)/(vpnd|vpnctl|pyvpn-helper)", "-rwxr-xr-x", "root:root"),
    (r"/usr/share/python3/runtime\.d/pyvpn\.rtupdate", "-rwxr-xr-x", "root:root"),
    (r"/usr/(lib|share)/.*", "(drwxr-xr-x|-rw-r--r--)", "root:root"),
    (r"/var/lib/dpkg/.*", ".*", "root:root"),
    (r"/var/lib/systemd/.*", "[d-].*", "root:root"),
    (r"/var/lib/pyvpn", "drwx------", "pyvpn:pyvpn"),
    (r"/var/lib/pyvpn/.*", "(d...|-rw.)------", "pyvpn:pyvpn"),
    (r"/var/lib/pyvpn/.*\.(crt|pub|pem)", "-rw-r--r--", "pyvpn:pyvpn"),
    (r"/var/lib/pyvpn-ca", "drwx------", "pyvpn-ca:pyvpn-ca"),
    (r"/var/lib/pyvpn-ca/.*", "(d...|-rw.)------", "pyvpn-ca:pyvpn-ca"),
    (r"/var/lib/pyvpn-ca/.*\.crt", "-rw-r--r--", "pyvpn-ca:pyvpn-ca"),
    (r"/var/lib/pyvpn-client", "drwx------", "pyvpn-client:pyvpn-client"),
    (r"/var/lib/pyvpn-client/.*", "(drwx|-rw-)------", "pyvpn-client:pyvpn-client"),
    (r"/var/lib/pyvpn-helper", "drwx------", "root:root"),
    (r"/run/pyvpn-helper(/.*)?", "(drwx|-rw-)------", "root:root"),
    (r"/run/pyvpn-helper\.sock", "srw-rw-rw-", "root:root"),
    (r"/run/pyvpn-server", "drwxr-xr-x", "pyvpn:pyvpn"),
    (r"/run/pyvpn-server/vpnd\.sock", "srw-rw-rw-", "pyvpn:pyvpn"),
    (r"/run/pyvpn-client-\w+", "drwxr-xr-x", "pyvpn-client:pyvpn-client"),
    (r"/run/pyvpn-client-\w+/vpnd\.sock", "srw-rw-rw-", "pyvpn-client:pyvpn-client"),
]
ELSEWHERE = (
    *("/proc", "/sys", "/root", "/tmp", "/var/tmp", "/var/cache"),
    *("/run/credentials", "/run/systemd"),
)
PARENTS = ("/", "/etc", "/usr/bin", "/usr/sbin", "/usr/lib", "/var", "/var/lib", "/run")


@pytest.fixture(scope="module")
def host(install: Callable[[str], System]) -> System:
    """A server on port 443 and two of its own clients on one machine."""
    system = install("server")
    system.shell("sed -i 's/^port = .*/port = 443/' /etc/pyvpn/server.toml")
    system.shell("systemctl enable --now pyvpn-server")
    return system


@pytest.fixture(scope="module")
def client(host: System, install: Callable[[str], System]) -> System:
    del host
    return install("client")


def test_port_443_needs_no_more_than_the_number(host: System, client: System) -> None:
    """The story is the same; no capability for vpnd."""
    host.shell("cd /root && vpnctl client add phone")
    client.put(host.path("/root/phone.toml"), "/etc/pyvpn/client/")
    assert 'address = "203.0.113.2:443"' in client.shell("cat /etc/pyvpn/client/phone.toml")
    client.shell("systemctl enable --now pyvpn-client@phone")
    client.wait_journal("^connected", unit="pyvpn-client@phone")
    assert client.shell(f"curl -s --max-time 10 http://{WEB4}/").strip() == "203.0.113.2"


def test_two_clients_and_a_server_live_on_one_machine(host: System, client: System) -> None:
    """Each has its interface, its run directory and its unit."""
    client.shell("sed -i 's/^ipv4 = .*/ipv4 = \"10.9.0.0\\/24\"/' /etc/pyvpn/server.toml")
    client.shell("systemctl enable --now pyvpn-server")
    for number, name in enumerate(("home", "work")):
        client.shell(f"cd /root && vpnctl client add {name}")
        profile = f"/etc/pyvpn/client/{name}.toml"
        host.put(client.path(f"/root/{name}.toml"), profile)
        include = f'[network]\ninclude = ["198.18.{number}.0/24"]'
        host.shell(f"chmod 0600 {profile}; printf '\\n%s\\n' '{include}' >>{profile}")
        host.shell(f"systemctl enable --now pyvpn-client@{name}")
        host.wait_journal("^connected", unit=f"pyvpn-client@{name}")
        assert f"198.18.{number}.0/24" in host.shell(f"vpnctl status {name} --json")
    links = re.findall(r"pyvpn\d+(?=:)", host.shell("ip -o link"))
    assert sorted(links) == ["pyvpn0", "pyvpn10", "pyvpn11"]
    host.shell("systemctl stop pyvpn-client@work")
    host.shell("vpnctl status home")
    assert client.shell(f"curl -s --max-time 10 http://{WEB4}/").strip() == "203.0.113.2"
    host.shell("systemctl start pyvpn-client@work")


def test_certificates_are_renewed_by_the_timer_and_on_request(host: System) -> None:
    """Nobody has to think of it: every day, and when a client has left its request."""
    assert host.property("pyvpn-renew.timer", "ActiveState") == "active"
    assert host.property("pyvpn-renew.timer", "Persistent") == "yes"
    since = host.cursor()
    host.shell("systemctl start pyvpn-renew.service")  # as the timer does
    host.wait_journal("^Finished pyvpn-renew", since=since, unit="pyvpn-renew")
    assert host.path("/var/lib/pyvpn/crl.pem").stat().st_size > 0
    since = host.cursor()
    host.shell("runuser -u pyvpn -- touch /var/lib/pyvpn/requests/1f.json")
    host.wait_journal("^Finished pyvpn-renew", since=since, unit="pyvpn-renew")
    assert host.shell("ls /var/lib/pyvpn/requests") == ""  # it was no request


def test_a_renewed_certificate_is_served_at_once(host: System) -> None:
    """Same key, so that all pins hold; nobody is dropped."""
    connect = "openssl s_client -connect 127.0.0.1:443 </dev/null 2>/dev/null"
    ask = f"{connect} | openssl x509 -noout -serial"
    before, pid = host.shell(ask), host.property("pyvpn-server", "MainPID")
    host.shell("vpnctl pki renew --force")
    assert host.shell(ask) not in {before, ""}
    assert host.property("pyvpn-server", "MainPID") == pid


def test_the_servers_keys_may_come_from_systemd(host: System) -> None:
    """LoadCredential=, also encrypted: then they lie on no disk of vpnd's."""
    state, given = "/var/lib/pyvpn", "/run/credentials/pyvpn-server.service"
    drop_in = "/etc/systemd/system/pyvpn-server.service.d/keys.conf"
    host.shell("cp /etc/pyvpn/server.toml /root")
    lines = ["[Service]"]
    for option, name in (("certificate", "server.crt"), ("key", "server.key")):
        host.shell(f"install -m 0600 {state}/{name} /root/{name}")
        lines.append(f"LoadCredential={name}:/root/{name}")
        host.shell(
            f"sed -i 's,^{option} = .*,{option} = \"{given}/{name}\",' /etc/pyvpn/server.toml"
        )
    host.write(drop_in, "\n".join(lines))
    host.shell(f"mv {state}/server.key {state}/kept")
    try:
        host.shell("systemctl daemon-reload && systemctl restart pyvpn-server && vpnctl status")
    finally:
        host.shell(f"cp /root/server.toml /etc/pyvpn; mv {state}/kept {state}/server.key")
        host.shell(f"rm -r {drop_in.rpartition('/')[0]}; systemctl daemon-reload")
        host.shell("systemctl restart pyvpn-server")


def test_every_file_has_its_owner_and_mode(host: System) -> None:
    """Nobody but its owner writes anything, and nobody reads keys."""
    pruned = " -o ".join(f"-path {path}" for path in ELSEWHERE)
    search = f"\\( {pruned} \\) -prune -o -path '*pyvpn*' -printf '%M %u:%g %p\\n'"
    found = host.shell(f"find / {search}")
    wrong = [line for line in found.splitlines() if not _is_right(*line.split(" ", 2))]
    assert wrong == []
    assert len(found.splitlines()) > 150
    for parent in PARENTS:
        assert host.shell(f"stat -L -c '%U %a' {parent}").strip() == "root 755"


def _is_right(mode: str, owner: str, path: str) -> bool:
    if "01pyvpn-test" in path:
        return True
    matching = [(m, o) for pattern, m, o in OWNERS if re.fullmatch(pattern, path)]
    return any(re.fullmatch(m, mode) and o == owner for m, o in matching)


@pytest.mark.parametrize("unit", LIMITS)
def test_a_service_can_do_little_else(host: System, unit: str) -> None:
    """The judgement of systemd itself."""
    said = host.shell(f"systemd-analyze security --no-pager {unit}", check=False)
    print(said.splitlines()[-1])
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", said)
    assert found is not None, said
    assert float(found[1]) <= LIMITS[unit]


@pytest.mark.parametrize("unit", ["pyvpn-server", "pyvpn-client@home"])
def test_no_process_of_vpnd_has_a_privilege(host: System, unit: str) -> None:
    """The kernel's word, for master and worker."""
    group = host.property(unit, "ControlGroup")
    numbers = host.run("cat", f"/sys/fs/cgroup{group}/cgroup.procs").stdout.split()
    assert len(numbers) >= 2
    for number in numbers:
        facts = dict(
            re.findall(r"^(\w+):\t(.*)$", host.shell(f"cat /proc/{number}/status"), re.MULTILINE)
        )
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(facts[kind], 16) == 0, kind
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")


def test_vpnd_sees_a_host_it_cannot_change(host: System) -> None:
    """What a taken-over vpnd would try first."""
    pid = host.property("pyvpn-server", "MainPID")
    into = f"nsenter -t {pid} -m setpriv --reuid=pyvpn --regid=pyvpn --clear-groups"
    for bad in (
        "touch /etc/x",
        "touch /usr/x",
        "touch /var/x",
        "touch /run/x",
        "ls /home/x",
        "test -e /dev/net/tun",
        "cat /var/lib/pyvpn-ca/root.key",
        "touch /var/lib/pyvpn-helper/x",
    ):
        assert host.run("sh", "-c", f"{into} {bad}", check=False).returncode, bad
    host.shell(f"{into} touch /var/lib/pyvpn/x && rm /var/lib/pyvpn/x")


def test_the_environment_has_no_say_in_what_is_imported(host: System) -> None:
    """root runs vpnctl, often with somebody's environment."""
    for module in ("vpnd", "json", "encodings"):
        host.write(f"/opt/evil/{module}/__init__.py", "raise SystemExit(66)\n")
    evil = "cd /opt/evil && PYTHONPATH=/opt/evil PYTHONHOME=/opt/evil PYTHONSTARTUP=/opt/evil/x"
    assert "server" in host.shell(f"{evil} vpnctl status")


def test_the_test_of_the_package_passes(host: System) -> None:
    """Debian's own way to try a package (autopkgtest); last, because it ends the server."""
    host.write("/root/autopkgtest", (ROOT / "packaging/debian/tests/server").read_text(), 0o755)
    host.shell("cd /root && rm -f phone.*; vpnctl client revoke phone; vpnctl client list")
    host.shell("AUTOPKGTEST_TMP=$(mktemp -d) /root/autopkgtest")


def test_lintian_has_nothing_to_complain_about(host: System, package: Path) -> None:
    """Neither errors nor warnings, by the Debian that it is installed on."""
    host.apt("install", "lintian")
    said = host.shell(
        f"lintian --fail-on=error,warning --tag-display-limit 0 /root/{package.name}"
    )
    print(said)
    assert not re.search(r"^[EW]:", said, re.MULTILINE)
