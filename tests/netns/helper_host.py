"""A host with a helper between two networks, for the tests of the helper.

    lan 198.51.100.2 -- eth1 [host] eth0 -- inet 192.0.2.2        both also with IPv6

The programs run in the host's namespace; tests talk to the helper over its socket, which needs no
namespace, and play vpnd themselves.
"""

import os
import signal
import sys
from pathlib import Path

from tests.netns.namespace import Namespace, run
from tests.netns.process import Pid, Process
from tests.netns.teardown import TEST_BEDS, take_down
from vpnd.host.helper_client import HelperClient

SOURCE = """
import itertools, os, signal, sys
from argparse import Namespace
from pathlib import Path
from helper import firewall_nft, forwarding, journal, link, sysctl
from helper.__main__ import run
folder, adoption_s, forwarding.FORCE = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
effects = itertools.count(1)

def dying(effect):
    def wrapped(*arguments, **named):
        if next(effects) == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return effect(*arguments, **named)
    return wrapped

sysctl.write, firewall_nft._run = dying(sysctl.write), dying(firewall_nft._run)
journal.JournalDirectory.save = dying(journal.JournalDirectory.save)
journal.JournalDirectory.remove = dying(journal.JournalDirectory.remove)
link.undo, link.set_link = dying(link.undo), dying(link.set_link)
link.getattr = lambda netlink, kind: dying(getattr(netlink, kind))  # each address, route, rule
sys.exit(run(Namespace(
    socket=folder / "helper.sock", run_dir=folder / "run", policy=folder / "helper.toml",
    undo=False), adoption_s))
"""
POLICY = """
[user.root]
interfaces = ["pyvpn0-9"]
networks = ["10.0.0.0/8", "fd00::/8"]
ports = ["1-60000"]

[user.daemon]
interfaces = ["pyvpn0"]
networks = ["10.0.0.0/8"]
ports = []

[user.games]
interfaces = ["pyvpn10-11"]
networks = ["0.0.0.0/0", "::/0"]
default_route = true
"""
ADDRESSES = (
    "address add 192.0.2.{}/24 dev eth0",
    "address add 2001:db8:1::{}/64 dev eth0 nodad",
    "address add 198.51.100.{}/24 dev eth1",
    "address add 2001:db8:2::{}/64 dev eth1 nodad",
)


class HelperHost:
    """Three namespaces, and the helper in the middle one."""

    helper: Process

    def __init__(self, number: int) -> None:
        name = f"{os.getpid()}-h{number}"
        self.folder = TEST_BEDS / name
        (self.folder / "log").mkdir(parents=True)
        self.folder.chmod(0o755)
        (self.folder / "owner").write_text(str(Pid.of(os.getpid())))
        (self.folder / "helper.toml").write_text(POLICY)
        self.socket = self.folder / "helper.sock"
        self.run_dir = self.folder / "run"
        self.host, self.inet, self.lan = (
            Namespace(f"pyvpn-t-{name}-{end}", self.folder) for end in ("host", "inet", "lan")
        )

    def build(self) -> None:
        """Create and connect the namespaces."""
        for namespace in (self.host, self.inet, self.lan):
            namespace.create()
        for link, other in (("eth0", self.inet), ("eth1", self.lan)):
            pair = f"name {link} netns {self.host.name} type veth peer name {link}"
            run("ip", "link", "add", *pair.split(), "netns", other.name)
            mine = [line.format(1) for line in ADDRESSES if line.split()[4] == link]
            theirs = [line.format(2) for line in ADDRESSES if line.split()[4] == link]
            self.host.ip(f"link set {link} up", *mine)
            other.ip(f"link set {link} up", *theirs)
        self.inet.ip("route add default via 192.0.2.1", "route add default via 2001:db8:1::1")
        self.lan.ip("route add default via 198.51.100.1", "route add default via 2001:db8:2::1")
        self.inet.ping("192.0.2.1", count=1)  # neighbours resolved, links settled
        self.lan.ping("198.51.100.1", count=1)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for namespace in (self.host, self.inet, self.lan):
            for process in namespace.processes:
                process.kill()
        take_down(self.folder)

    def start(
        self, *, adoption_s: float = 30.0, force: str = "force_forwarding", dies_at: int = 0
    ) -> None:
        """Start the helper, to be killed before the effect numbered `dies_at`, if any.

        `force` names IPv6's per-link switch, "none" plays an old kernel.
        """
        arguments = (str(self.folder), str(adoption_s), force, str(dies_at))
        self.helper = self.host.start("helper", sys.executable, "-P", "-c", SOURCE, *arguments)
        self.helper.wait_for("ready on")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End the helper; return its exit status."""
        return self.helper.stop(signum)

    def undo(self) -> str:
        """Run `pyvpn-helper --undo`; return what it says."""
        options = ("--run-dir", str(self.run_dir), "--policy", str(self.folder / "helper.toml"))
        return self.host.run(sys.executable, "-P", "-m", "helper", *options, "--undo").stderr

    async def connect(self, interface: str = "pyvpn0") -> HelperClient:
        """Say Hello as this process."""
        return await HelperClient.connect(str(self.socket), interface)

    async def set_up(self, client: HelperClient, *, number: int = 0) -> list[int]:
        """Bring everything up that a server asks for; return the TUN's fds."""
        network4, network6 = f"10.8.{number}.", f"fd00:{number + 1}::"
        networks = [f"{network4}0/24", f"{network6}/64"]
        fds = await client.open_tun(queues=2, tx_queue_len=500)
        await client.set_firewall(
            networks=networks, masquerade=True, clamp_mss=True, client_to_client=False
        )
        addresses = [f"{network4}1/24", f"{network6}1/64"]
        await client.set_link(mtu=1400, addresses=addresses, forwarding=True)
        return fds

    def journals(self) -> list[Path]:
        """Return the journals on disk."""
        return sorted(self.run_dir.glob("*.json"))
