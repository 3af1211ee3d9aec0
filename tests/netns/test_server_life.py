"""What vpnd may do, and what it leaves behind when it ends, in good order or not."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.daemons import USER
from tests.netns.namespace import as_user
from tests.netns.openconnect import OpenConnect
from tests.netns.process import Pid
from tests.netns.site import Site
from tests.netns.snapshot import State, differences, snapshot

pytestmark = pytest.mark.netns
NO_CAPABILITIES = "0" * 16
ATTACH = """
import fcntl, os, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)  # as root: on many hosts anybody may open it
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
TUNSETIFF, IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x400454CA, 1, 0x1000, 0x4000, 0x100
flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE
try:
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"pyvpn0", flags))
except OSError as exc:
    sys.exit(f"refused: {exc.strerror}")
"""


@pytest.fixture
def before(site: Site) -> Iterator[State]:
    """The server's network as it was before the site's programs were started."""
    site.daemons.stop()
    before = snapshot(site.bed.server)
    site.daemons.start()
    yield before
    for program in (site.daemons.vpnd, site.daemons.helper):
        program.kill()
    site.daemons.start()


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def connect(site: Site, name: str) -> OpenConnect:
    client = site.connect(certificate=site.daemons.add_client(name))
    client.wait_connected()
    site.bed.client.ping(site.gateway4)
    return client


def family_of(pid: Pid) -> list[Path]:
    """Return /proc/PID of a process and of its children, theirs too."""
    proc = Path(f"/proc/{pid.number}")
    children = (proc / f"task/{pid.number}/children").read_text().split()
    return [proc, *(p for child in children for p in family_of(Pid.of(int(child))))]


def test_vpnd_and_its_worker_have_no_privilege_at_all(site: Site) -> None:
    """Whoever takes over the part that reads the network has gained an unprivileged user."""
    family = family_of(site.daemons.vpnd.pid)
    assert len(family) >= 2  # master and worker
    uid = int(site.bed.server.run("id", "-u", USER).stdout)
    for proc in family:
        status = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines())
        assert status["Uid"].split() == [str(uid)] * 4, proc
        assert status["Groups"].strip() == ""
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert status[kind] == NO_CAPABILITIES, (proc, kind)
        assert status["NoNewPrivs"] == "1"


def test_vpnds_user_cannot_read_the_authoritys_keys(site: Site) -> None:
    """A broken-in server must not be able to make certificates."""
    folder = site.daemons.folder / "ca"
    assert any(folder.glob("*.key"))
    for command in (["ls", str(folder)], ["cat", str(folder / "issuing.key")]):
        done = site.bed.server.run(*as_user(USER), *command, check=False)
        assert "Permission denied" in done.stderr


def test_another_user_cannot_attach_a_queue_to_the_tun(site: Site) -> None:
    """A queue more would get a share of everybody's packets."""
    done = site.bed.server.run(sys.executable, "-c", ATTACH, check=False)
    assert done.stderr.strip() == "refused: Operation not permitted"


def test_a_stop_leaves_nothing_behind(site: Site, before: State) -> None:
    """Stopping a VPN must not need a reboot to get the old network back."""
    client = connect(site, "stopped")
    assert differences(before, snapshot(site.bed.server))
    site.daemons.stop()
    assert differences(before, snapshot(site.bed.server)) == []
    client.vanish()


def test_kill_9_of_vpnd_leaves_nothing_behind(site: Site, before: State) -> None:
    """The helper undoes what was asked for when the one who asked is gone."""
    client = connect(site, "killed")
    site.daemons.vpnd.kill()
    site.daemons.wait_undone()
    assert differences(before, snapshot(site.bed.server)) == []
    client.vanish()


def test_kill_9_of_both_leaves_nothing_behind_after_clean(site: Site, before: State) -> None:
    """The journal on disk outlives everybody who could have cleaned up."""
    client = connect(site, "both")
    site.daemons.helper.kill()
    site.daemons.vpnd.kill()
    site.daemons.undo()
    assert differences(before, snapshot(site.bed.server)) == []
    client.vanish()
