"""The test bed: clients, an internet and a server in network namespaces of their own.

      client0 198.51.100.2/30 ──┐                 ┌── web 192.0.2.80, 2001:db8:80::80 (on lo)
              2001:db8:1:1::2   │     internet    │
      client1 198.51.100.6/30 ──┼── (a router) ───┤
              2001:db8:1:2::2   │                 └── 203.0.113.2/24, 2001:db8:2::2 server
      ...                     ──┘

The internet knows no route to the tunnel's addresses: what reaches the web was translated.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.netns.namespace import PYTHON, Namespace
from tests.netns.process import Pid
from tests.netns.teardown import TEST_BEDS, take_down

WEB4, WEB6 = "192.0.2.80", "2001:db8:80::80"
SERVER4, SERVER6 = "203.0.113.2", "2001:db8:2::2"
PORT = 55555
CACHE = Path(__file__).resolve().parent.parent.parent / ".cache"
CUT = "pyvpn_cut"
BLOCKADE = "pyvpn_blockade"  # the nft table that plays a hostile network


def client_addresses(index: int) -> tuple[str, str]:
    """Return the outer IPv4 and IPv6 address of a client."""
    return f"198.51.100.{4 * index + 2}", f"2001:db8:1:{index + 1}::2"


class Bed:
    """Namespaces PREFIX-client, PREFIX-client1..., PREFIX-internet and PREFIX-server."""

    def __init__(self, prefix: str, folder: Path, *, clients: int = 1) -> None:
        self.folder = folder
        self.internet = Namespace(f"{prefix}-internet", folder)
        self.server = Namespace(f"{prefix}-server", folder)
        self.clients = [
            Namespace(f"{prefix}-client{index or ''}", folder) for index in range(clients)
        ]

    @classmethod
    def for_test(cls, number: int, *, clients: int) -> Self:
        """Return a bed whose folder names this process as its owner."""
        name = f"{os.getpid()}-{number}"
        bed = cls(f"pyvpn-t-{name}", TEST_BEDS / name, clients=clients)
        bed.make_folder()
        (bed.folder / "owner").write_text(str(Pid.of(os.getpid())))
        return bed

    def make_folder(self) -> None:
        """Make the folder of the bed, which user pyvpn can pass through."""
        self.folder.mkdir(parents=True, mode=0o755)
        (self.folder / "log").mkdir(mode=0o755)

    @property
    def client(self) -> Namespace:
        """The first client."""
        return self.clients[0]

    def build(self) -> None:
        """Create the namespaces and connect them."""
        for namespace in self._namespaces():
            namespace.create()
        self.internet.sysctl("net/ipv4/ip_forward", "1")
        self.internet.sysctl("net/ipv6/conf/all/forwarding", "1")
        self.internet.ip(f"address add {WEB4}/32 dev lo", f"address add {WEB6}/128 dev lo")
        self._connect(
            self.server, "server", (SERVER4, "203.0.113.1", 24), (SERVER6, "2001:db8:2::1")
        )
        for index, namespace in enumerate(self.clients):
            own4, own6 = client_addresses(index)
            router4 = f"198.51.100.{4 * index + 1}"
            self._connect(
                namespace,
                f"client{index}",
                (own4, router4, 30),
                (own6, f"2001:db8:1:{index + 1}::1"),
            )

    def _namespaces(self) -> Sequence[Namespace]:
        return [self.internet, self.server, *self.clients]

    def _connect(
        self, host: Namespace, link: str, ipv4: tuple[str, str, int], ipv6: tuple[str, str]
    ) -> None:
        own4, router4, length = ipv4
        own6, router6 = ipv6
        self.internet.ip(
            f"link add {link} type veth peer name uplink netns {host.name}",
            f"address add {router4}/{length} dev {link}",
            f"address add {router6}/64 dev {link} nodad",
            f"link set {link} up",
        )
        host.ip(
            f"address add {own4}/{length} dev uplink",
            f"address add {own6}/64 dev uplink nodad",
            "link set uplink up",
            f"route add default via {router4}",
            f"route add ::/0 via {router6}",
        )
        host.wait_link("uplink")

    def block_udp(self, port: int = PORT) -> None:
        """Let the internet drop UDP from and to a port, as some hotels do."""
        self.internet.nft(
            f"table inet {BLOCKADE} {{ chain forward {{ type filter hook forward priority 0;\n"
            f"udp dport {port} counter drop\nudp sport {port} counter drop\n}}\n}}\n"
        )

    def unblock_udp(self) -> None:
        """Let UDP through again."""
        self.internet.nft(f"delete table inet {BLOCKADE}")

    def cut(self) -> None:
        """Let the internet swallow everything from and to the server, without a word."""
        self.internet.nft(
            f"table inet {CUT} {{ chain forward {{ type filter hook forward priority 0;\n"
            'oifname "server" drop\niifname "server" drop\n}\n}\n'
        )

    def mend(self) -> None:
        """Let all through again, if it did not."""
        self.internet.run("nft", "delete", "table", "inet", CUT, check=False)

    def start_web(self) -> None:
        """Serve, in the internet, the address from which a client is seen (HTTP, port 80)."""
        web = self.internet.start("web", *PYTHON, "tests.netns.web", WEB4, WEB6)
        web.wait_for("^ready")

    def close(self) -> None:
        """End everything and delete the namespaces and the folder."""
        take_down(self.folder)
        for namespace in self._namespaces():
            for process in namespace.processes:
                process.wait()  # reaped: take_down knows processes by number only

    def keep_logs(self, to: Path) -> None:
        """Copy the logs to a place that outlives the bed."""
        with suppress(FileNotFoundError):
            shutil.copytree(self.folder / "log", to, dirs_exist_ok=True)
