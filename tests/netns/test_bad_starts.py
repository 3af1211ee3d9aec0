"""A server that cannot start says why and what to do, in one line, and leaves nothing behind."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from socket import create_server

import pytest

from tests.netns.bed import PORT, Bed
from tests.netns.daemons import CA_USER, USER, Config, Daemons
from tests.netns.namespace import inside, run
from tests.netns.snapshot import State, differences, snapshot

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def bed(make_bed: Callable[[int], Bed]) -> Bed:
    return make_bed(0)


@pytest.fixture(scope="module")
def daemons(bed: Bed) -> Daemons:
    """A helper that runs, and a vpnd that could."""
    daemons = Daemons(bed.server)
    daemons.prepare()
    daemons.start_helper()
    return daemons


@pytest.fixture(scope="module", autouse=True)
def untouched(bed: Bed, daemons: Daemons) -> Iterator[State]:
    """Whatever goes wrong, the host stays as it was."""
    before = snapshot(bed.server)
    yield before
    daemons.wait_undone()
    assert differences(before, snapshot(bed.server)) == []


@pytest.fixture(autouse=True)
def _undone(daemons: Daemons) -> Iterator[None]:
    """What was done before the trouble, the helper takes back."""
    daemons.configure({})
    yield
    daemons.wait_undone()


def complaint(daemons: Daemons, status: int) -> str:
    """Start vpnd, which must end with the exit status; return the one line that says why."""
    daemons.start_vpnd(wait=False)
    assert daemons.vpnd.wait(20) == status
    said = daemons.vpnd.text()
    assert "Traceback" not in said
    lines = [line for line in said.splitlines() if not re.search(r" (INFO|WARNING) ", line)]
    (line,) = lines
    assert line.startswith("vpnd: ")
    return line.removeprefix("vpnd: ")


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    """Let a file or folder be missing."""
    hidden = path.with_name(f"{path.name}.away")
    path.rename(hidden)
    try:
        yield
    finally:
        if path.exists():
            path.unlink()
        hidden.rename(path)


@contextmanager
def owned_by_root(path: Path) -> Iterator[None]:
    """Let user pyvpn look into a folder but not write."""
    before = path.stat()
    os.chown(path, 0, 0)
    path.chmod(0o755)
    try:
        yield
    finally:
        path.chmod(before.st_mode)
        os.chown(path, before.st_uid, before.st_gid)


# configuration


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[server\n", r"not valid TOML: .*line 1.*; correct that line"),
        ("[server]\nprot = 1\n", r"server\.prot: unknown; did you mean port\?"),
        ("[sever]\n", r"sever: unknown; did you mean server\?"),
        ("server = 1\n", r"server: not a table; write \[server\] above it"),
        ("[server]\nport = 70000\n", r"server\.port: .*; use 1 to 65535"),
        ('[server]\nport = "443"\n', r"server\.port: .*; "),
        ("[network]\nmtu = 1000\n", r"network\.mtu: 1000 is below 1280.*; use 1280 to 9000"),
        ('[network]\nipv4 = "10.8.0.1/24"\n', r"network\.ipv4: .*; "),
        ('[network]\ninterface = "eth0"\n', r"network\.interface: .*"),
        ('[tls]\nkey = "/x"\n', r"tls\.certificate: missing; name certificate and key"),
    ],
)  # fmt: skip
def test_a_bad_configuration_is_named_by_file_key_and_remedy(
    daemons: Daemons, text: str, said: str
) -> None:
    """Exit status 2, and nothing else was touched."""
    daemons.config_file.write_text(text)
    line = complaint(daemons, 2)
    assert line.startswith(f"{daemons.config_file}: ")
    assert re.search(said, line), line


def test_a_configuration_that_is_not_there_or_not_readable(daemons: Daemons) -> None:
    """The two look alike to whoever wrote it as root."""
    with moved_away(daemons.config_file):
        assert "no such file; write it or name another file" in complaint(daemons, 2)
    daemons.config_file.chmod(0o600)
    try:
        assert "cannot be read (Permission denied); let the user" in complaint(daemons, 2)
    finally:
        daemons.config_file.chmod(0o644)


# keys and certificates


@pytest.mark.parametrize("name", ["server.crt", "server.key", "ca.crt"])
@pytest.mark.parametrize("content", [None, b"", b"no PEM\n"])
def test_a_key_or_certificate_that_is_missing_or_broken(
    daemons: Daemons, name: str, content: bytes | None
) -> None:
    """The line says which file, and what makes it."""
    path = daemons.folder / "state" / name
    with moved_away(path):
        if content is not None:
            path.write_bytes(content)
            path.chmod(0o644)
        line = complaint(daemons, 2)
    assert line.startswith(f"{path}: ")
    assert re.search("(no such file|not a readable PEM .*); .*vpnctl pki init", line), line


def test_a_certificate_that_does_not_fit_the_key(daemons: Daemons) -> None:
    """Both files are whole, and neither is wrong alone."""
    state = daemons.folder / "state"
    key = state / "server.key"
    with moved_away(key):
        shutil.copy(state / "server-next.key", key)
        shutil.chown(key, USER, USER)
        line = complaint(daemons, 2)
    assert line.startswith(f"{key}: does not belong to {state / 'server.crt'}; ")


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(daemons: Daemons) -> None:
    """A daemon has nobody to ask."""
    key = daemons.folder / "state/server.key"
    with moved_away(key):
        daemons.namespace.run(
            "openssl", "pkey", "-in", f"{key}.away", "-aes256", "-passout", "pass:secret",
            "-out", str(key),
        )  # fmt: skip
        key.chmod(0o644)
        line = complaint(daemons, 2)
    assert line.startswith(f"{key}: has a passphrase, and a daemon has nobody to ask; ")


# folders


def test_a_state_folder_that_is_not_there_or_not_writable(daemons: Daemons) -> None:
    """Without it a server would forget who was revoked."""
    state = daemons.folder / "state"
    with moved_away(state):
        assert str(state) in complaint(daemons, 2)
    with owned_by_root(state):
        line = complaint(daemons, 1)
        assert line.startswith(f"{state / 'pyvpn.sqlite'}: ")
        assert "user of vpnd" in line


def test_a_database_that_is_none(daemons: Daemons) -> None:
    """A wrong file is left alone: it may be somebody's."""
    database = daemons.folder / "state/pyvpn.sqlite"
    database.touch()
    with moved_away(database):
        database.write_bytes(b"something else entirely\n" * 100)
        shutil.chown(database, USER, USER)
        before = database.read_bytes()
        line = complaint(daemons, 1)
        assert database.read_bytes() == before
    assert line.startswith(f"{database}: is not a database; ")
    database.unlink()


def test_a_run_folder_that_is_not_there_or_not_writable(daemons: Daemons) -> None:
    """It comes from systemd or run.sh; whoever starts vpnd by hand has to make it."""
    folder = daemons.folder / "run"
    with moved_away(folder):
        line = complaint(daemons, 2)
        assert line.startswith(f"{folder}/")
        assert "the run directory must exist and belong to the user" in line
    with owned_by_root(folder):
        assert "the run directory must exist and belong to the user" in complaint(daemons, 2)


# the host


def test_a_port_that_is_in_use(bed: Bed, daemons: Daemons) -> None:
    """The line names address and port, by TCP and by UDP."""
    with inside(bed.server, lambda: create_server(("0.0.0.0", PORT))):
        line = complaint(daemons, 1)
    assert re.search(rf"0\.0\.0\.0.* {PORT}|0\.0\.0\.0:{PORT}", line), line
    assert "in use" in line


def test_an_address_that_this_host_does_not_have(daemons: Daemons) -> None:
    """A typing error in the address is not a busy port."""
    daemons.configure({"server": {"addresses": ["192.0.2.99"]}})
    line = complaint(daemons, 1)
    assert "192.0.2.99" in line
    assert "in use" not in line


def test_an_interface_that_somebody_else_made(bed: Bed, daemons: Daemons) -> None:
    """It is not taken over, and not removed."""
    bed.server.ip("tuntap add dev pyvpn0 mode tun")
    try:
        assert "pyvpn0 exists already: end the program that made it" in complaint(daemons, 1)
        bed.server.ip("link show pyvpn0")
    finally:
        bed.server.ip("link delete pyvpn0")


@pytest.mark.parametrize(
    ("config", "what", "key"),
    [
        ({"network": {"interface": "pyvpn500"}}, "interface pyvpn500", "interfaces"),
        ({"network": {"ipv4": "8.8.8.0/24"}}, "network 8.8.8.0/24", "networks"),
        ({"server": {"port": 4443}}, "port 4443", "ports"),
    ],
)
def test_what_the_policy_refuses_is_named_with_the_line_to_change(
    daemons: Daemons, config: Config, what: str, key: str
) -> None:
    """The policy is root's, the configuration perhaps not: the operator has to know which."""
    policy = daemons.folder / "etc/helper.toml"
    before = policy.read_text()
    policy.write_text(re.sub(r'ports = \["1-65535"\]', 'ports = ["55555"]', before, count=1))
    daemons.configure(config)
    try:
        line = complaint(daemons, 1)
        lines = policy.read_text().splitlines()
    finally:
        policy.write_text(before)
    assert f"user pyvpn may not have {what}" in line
    found = re.search(rf"change {key} in {policy}, line (\d+), \[user\.pyvpn\]", line)
    assert found is not None, line
    assert lines[int(found[1]) - 1].startswith(key)


# the helper


def test_a_helper_that_does_not_run(daemons: Daemons) -> None:
    """There is no socket, or a socket that nobody listens on."""
    daemons.configure({"helper": {"socket": str(daemons.folder / "nowhere.sock")}})
    assert "helper not running; start pyvpn-helper" in complaint(daemons, 1)
    daemons.helper.kill()
    try:
        daemons.configure({})
        assert "helper not running; start pyvpn-helper" in complaint(daemons, 1)
    finally:
        daemons.start_helper()


def test_a_helper_that_is_not_roots(daemons: Daemons) -> None:
    """Somebody else who listens there is not told what we want, nor believed."""
    path = daemons.folder / "run/impostor.sock"
    with ExitStack() as stack:
        listening = (
            "import os, socket, sys\n"
            "with socket.socket(socket.AF_UNIX) as sock:\n"
            "    sock.bind(sys.argv[1]); sock.listen(); print('ready', flush=True)\n"
            "    sock.accept()[0].recv(1)\n"
        )
        impostor = daemons.namespace.start(
            "impostor", sys.executable, "-c", listening, str(path), user=USER
        )
        stack.callback(impostor.kill)
        impostor.wait_for("^ready")
        daemons.configure({"helper": {"socket": str(path)}})
        line = complaint(daemons, 1)
        assert re.search(r"user id \d+ listens there, not root; check helper.socket", line), line
    path.unlink()


def test_a_host_without_a_tun_device(bed: Bed, daemons: Daemons) -> None:
    """As in many containers; the helper sees it, vpnd tells it."""
    refused = run("unshare", "--mount", "true", check=False).stderr
    if refused:
        pytest.skip(f"needs a mount namespace, which a plain chroot has not: {refused.strip()}")
    daemons.helper.stop()
    blind = Blind(bed.server)
    blind.start_helper()
    try:
        line = complaint(blind, 1)
        blind.wait_undone()
    finally:
        blind.helper.stop()
        daemons.start_helper()
    assert "/dev/net/tun cannot be opened (No such file or directory): modprobe tun" in line


class Blind(Daemons):
    """The same folders, and a helper in a mount namespace without /dev/net/tun."""

    def _helper_argv(self) -> tuple[str, ...]:
        hide = 'mount -t tmpfs none /dev/net && exec "$@"'
        return ("unshare", "--mount", "sh", "-c", hide, "sh", *super()._helper_argv())


# vpnctl


def test_vpnctl_without_a_daemon_says_so(daemons: Daemons) -> None:
    """Exit status 3 is for scripts, the line is for people."""
    for command in (["status"], ["user", "list"], ["client", "list"]):
        done = daemons.vpnctl(*command, check=False)
        assert (done.returncode, done.stdout) == (3, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("vpnctl: vpnd is not running (nobody answers on ")
        assert "systemctl start pyvpn-server" in line


def test_a_stranger_sees_counts_only(bed: Bed, daemons: Daemons, untouched: State) -> None:
    """Who is connected from where is nobody's business; how many is no secret."""
    daemons.start_vpnd()
    try:
        daemons.add_user("alice", "correct horse battery staple")
        done = daemons.vpnctl("--json", "status", user=CA_USER)
        assert '"users": 1' in done.stdout
        assert "pyvpn0" not in done.stdout
        assert "10.8." not in done.stdout
        for command in (["user", "list"], ["client", "list"], ["client", "revoke", "x"]):
            done = daemons.vpnctl(*command, user=CA_USER, check=False)
            assert done.returncode == 4
            assert "alice" not in done.stdout + done.stderr
            assert len(done.stderr.splitlines()) == 1
    finally:
        assert daemons.vpnd.stop() == 0
    daemons.wait_undone()
    assert differences(untouched, snapshot(bed.server)) == []


def test_a_second_vpnd_on_the_same_folders_leaves_the_first_alone(daemons: Daemons) -> None:
    """Somebody starts it by hand and has forgotten about systemd."""
    daemons.start_vpnd()
    first = daemons.vpnd
    try:
        line = complaint(daemons, 1)
        assert re.search(r"pyvpn0 .*; \w+", line), line
        daemons.vpnd = first
        assert daemons.status()["state"] == "up"
    finally:
        assert first.stop() == 0
