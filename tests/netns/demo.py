"""The demo: stock openconnect and our own client reach a web server through pyvpn.

python -m tests.netns.demo [--keep | --stop]       (`./run.sh demo` prepares what it needs)
"""

import argparse
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tests.netns.bed import CACHE, PORT, SERVER4, SERVER6, WEB4, WEB6, Bed
from tests.netns.client import USER, Client
from tests.netns.daemons import Daemons
from tests.netns.namespace import Namespace
from tests.netns.openconnect import OpenConnect
from tests.netns.process import BedError
from tests.netns.teardown import take_down
from tests.netns.web import fetch

FOLDER = Path("/run/pyvpn-demo")
LOGS_OF_A_FAILURE = CACHE / "demo-logs"
T = TypeVar("T")


class Steps:
    """Prints one line for each step: what was done and what was seen."""

    def __init__(self) -> None:
        self._number = 0

    def __call__(self, what: str, step: Callable[[], T], seen: Callable[[T], str]) -> T:
        """Do a step; `seen` words its result."""
        self._number += 1
        print(f"{self._number:2}  {what:<42}", end=" ", flush=True)
        try:
            result = step()
        except BaseException:
            print("FAILED", flush=True)
            raise
        print(seen(result), flush=True)
        return result


def demonstrate(bed: Bed) -> None:
    """Build everything and show that it works; BedError names the step that did not."""
    remotes = [f"{SERVER4}:{PORT}"]  # what the profiles of our own client say
    steps, server = Steps(), Daemons(bed.server, {"server": {"remotes": remotes}})
    steps("network namespaces", bed.build, lambda _: f"client - internet - server {SERVER4}")
    steps("a web server in the internet", bed.start_web, lambda _: f"http://{WEB4}/")
    steps("certificate authority, server's keys", server.prepare, lambda _: "made")
    steps("pyvpn-helper (root)", server.start_helper, lambda _: f"pid {server.helper.pid.number}")
    steps("vpnd (user pyvpn)", server.start_vpnd, lambda _: f"pid {server.vpnd.pid.number}, ready")
    certificate = steps(
        "client certificate for demo",
        lambda: server.add_client("demo"),
        lambda made: f"{made.p12.name}, password shown once",
    )
    pins = server.pins()
    client = steps(
        "stock openconnect logs in",
        lambda: OpenConnect.start(bed.client, pins=pins, certificate=certificate),
        lambda started: f"pid {started.process.pid.number}",
    )
    steps(
        "the tunnel is up",
        client.wait_connected,
        lambda env: f"{env['INTERNAL_IP4_ADDRESS']} {env.get('INTERNAL_IP6_ADDRESS', '')}",
    )
    steps("packets travel over UDP (DTLS)", client.wait_dtls, lambda cipher: cipher)
    for address in server.addresses():
        steps(
            f"ping {address}",
            partial(bed.client.ping, address),
            lambda took: f"{took} ms",
        )
    for web, outer in ((WEB4, SERVER4), (WEB6, SERVER6)):
        steps(
            f"fetch from {web}, through NAT",
            partial(fetch_translated, bed.client, web, outer),
            lambda address: f"it saw {address}, the server",
        )
    connect_own_client(steps, bed, server)
    print("\nvpnctl status\n", server.vpnctl("--table", "status").stdout, sep="\n", flush=True)


def connect_own_client(steps: Steps, bed: Bed, server: Daemons) -> None:
    """Connect the second client with pyvpn's own client, and change its keys."""
    own, namespace = Client(bed.clients[1]), bed.clients[1]
    profiles = server.folder / "profiles"
    server.vpnctl("client", "add", "laptop", "--output", str(profiles))
    own.prepare()
    own.start_helper()
    steps(
        "pyvpn's own client connects",
        lambda: own.connect(tomllib.loads((profiles / "laptop.toml").read_text())),
        lambda _: f"pid {own.vpnd.pid.number}, user {USER}",
    )
    steps(
        f"fetch from {WEB4}, all traffic inside",
        partial(fetch_translated, namespace, WEB4, SERVER4),
        lambda address: f"it saw {address}, the server",
    )
    steps(
        "vpnctl rotate-keys, on the server",
        lambda: server.vpnctl("rotate-keys", "--user", "laptop").stdout,
        lambda said: said.split("\t")[-1].strip(),
    )


def fetch_translated(client: Namespace, web: str, outer: str) -> str:
    """Fetch from the web; BedError unless the request came from the server's outer address."""
    seen = fetch(client, web)
    if seen != outer:
        raise BedError(f"the web server at {web} saw {seen}, not the server's {outer}")
    return seen


def how_to_enter(bed: Bed) -> str:
    """Say what one can do with a demo that is kept."""
    folders = [f"--{name}-dir={FOLDER / name}" for name in ("run", "state", "ca")]
    return f"""The demo is kept. As root:
  enter the client    nsenter --net=/run/netns/{bed.client.name} bash
  enter the other     nsenter --net=/run/netns/{bed.clients[1].name} bash
  enter the server    nsenter --net=/run/netns/{bed.server.name} bash
  the internet        nsenter --net=/run/netns/{bed.internet.name} bash
  ask the server      ./run.sh vpnctl {" ".join(folders)} status
  read the logs       {FOLDER}/log/
  end it              ./run.sh demo --stop"""


def demo(*, keep: bool) -> int:
    """Run the demo and take it down again unless it is to be kept; return the exit status."""
    if FOLDER.exists():
        print(f"a demo is up already ({FOLDER}): ./run.sh demo --stop ends it", file=sys.stderr)
        return 1
    bed = Bed("pyvpn-demo", FOLDER, clients=2)
    bed.make_folder()
    done = False
    try:
        demonstrate(bed)
        done = True
    except BedError as exc:
        bed.keep_logs(LOGS_OF_A_FAILURE)
        said = str(exc).replace(f"{FOLDER}/log", str(LOGS_OF_A_FAILURE))
        print(f"demo: {said}\nall logs: {LOGS_OF_A_FAILURE}/", file=sys.stderr)
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
    finally:
        if keep and done:
            print(how_to_enter(bed))
        else:
            bed.close()
            print("all torn down" + (", nothing is left" if done else ""))
    return 0 if done else 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run.sh demo", description=__doc__.split("\n")[0])
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--keep", action="store_true", help="leave it up and say how to enter")
    choice.add_argument("--stop", action="store_true", help="end a demo that was kept")
    arguments = parser.parse_args()
    if arguments.stop:
        print("all torn down" if FOLDER.exists() else "there is no demo")
        take_down(FOLDER)
        return 0
    return demo(keep=arguments.keep)


if __name__ == "__main__":
    sys.exit(main())
