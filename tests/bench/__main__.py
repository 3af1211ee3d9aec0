"""Measure this VPN beside others: `./run.sh bench` prepares what it needs.

Every system has two namespaces of its own, joined by a veth pair, and stays connected; the
measurements take turns among the systems, several rounds, and medians count.  The last line is
one JSON object with our throughput and CPU time of a bulk flow over theirs.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tests.bench import measure
from tests.bench.link import Link
from tests.bench.report import Figures, ratios, table
from tests.bench.systems import (
    Bare,
    OcservStock,
    OcservStockTls,
    OpenVpn,
    Pyvpn,
    PyvpnStock,
    PyvpnStockTls,
    System,
    WireGuardGo,
)
from tests.netns.bed import CACHE
from tests.netns.process import BedError
from tests.netns.teardown import take_down_dead

OURS = "pyvpn"
PEERS = {"openvpn": "openvpn", "ocserv": "ocserv+openconnect", "wireguard_go": "wireguard-go"}
LOSS_LIMIT = 0.01
LADDER = (1.0, 0.8, 0.6, 0.45, 0.3, 0.2)  # of the TCP rate, until UDP passes
NOT_QUICK = ("pyvpn+openconnect", "pyvpn+openconnect TLS", "ocserv+openconnect TLS")
Measurement = Callable[[System, Figures], None]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.sh bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer figures, within 120 s")
    parser.add_argument("--json", action="store_true", help="all figures as JSON, not the table")
    parser.add_argument("--wireguard-go", metavar="PATH", help="another wireguard-go binary")
    parser.add_argument("--only", metavar="NAME,...", help="measure these systems alone")
    parser.add_argument("--rounds", type=int, help="of each measurement (quick: 2, else 5)")
    parser.add_argument("--seconds", type=float, help="of each transfer (quick: 2, else 5)")
    parser.add_argument("--debian13", metavar="PYTHON", help="an interpreter with its libraries")
    parser.add_argument("--against", metavar="TREE", help="another clone of pyvpn to compare")
    options = parser.parse_args()
    if options.wireguard_go:
        options.wireguard_go = str(Path(options.wireguard_go).absolute())
    if options.debian13:
        options.debian13 = str(Path(options.debian13).absolute())
    if options.wireguard_go:
        options.wireguard_go = str(Path(options.wireguard_go).absolute())
    if options.debian13:
        options.debian13 = str(Path(options.debian13).absolute())
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.seconds = options.seconds or (2.0 if options.quick else 5.0)
    return options


def catalogue(options: argparse.Namespace) -> dict[str, type[System]]:
    """Return every system by the name of its column."""
    kinds: dict[str, type[System]] = {"bare link": Bare, OURS: Pyvpn}
    if options.debian13:
        kinds["pyvpn Debian 13"] = _pyvpn(options.debian13, None)
    if options.against:
        kinds["pyvpn other tree"] = _pyvpn(sys.executable, options.against)
    WireGuardGo.path = options.wireguard_go
    kinds |= {
        PEERS["openvpn"]: OpenVpn,
        PEERS["ocserv"]: OcservStock,
        PEERS["wireguard_go"]: WireGuardGo,
        "pyvpn+openconnect": PyvpnStock,
        "pyvpn+openconnect TLS": PyvpnStockTls,
        "ocserv+openconnect TLS": OcservStockTls,
    }
    if options.only:
        wanted = options.only.split(",")
        if unknown := set(wanted) - set(kinds):
            sys.exit(f"bench: no such system: {', '.join(sorted(unknown))}; {', '.join(kinds)}")
        return {name: kind for name, kind in kinds.items() if name in wanted}
    return {n: kind for n, kind in kinds.items() if not (options.quick and n in NOT_QUICK)}


def _pyvpn(interpreter: str, tree: str | None) -> type[Pyvpn]:
    path = ("env", f"PYTHONPATH={Path(tree).resolve()}") if tree else ()

    class Other(Pyvpn):
        python = (*path, interpreter, "-P", "-m")

    return Other


def measurements(options: argparse.Namespace) -> list[tuple[str, Measurement, int]]:
    """Return what to measure and how often, cheap things first."""
    rounds, seconds = options.rounds, options.seconds

    def tcp(what: str, *iperf: str) -> tuple[str, Measurement, int]:
        def one(system: System, figures: Figures) -> None:
            figures.add(what, measure.bulk(system, seconds, *iperf))

        return what, one, rounds

    def ping(system: System, figures: Figures) -> None:
        figures.add("ping idle", measure.latency(system, min(seconds, 2)))

    def ping_loaded(system: System, figures: Figures) -> None:
        figures.add("ping loaded", measure.latency(system, min(seconds, 4), beside=()))

    def small(system: System, figures: Figures) -> None:
        figures.add("udp small", measure.datagrams(system, min(seconds, 3), 64, "0"))

    chosen = [
        tcp("tcp up"),
        tcp("tcp down", "--reverse"),
        ("ping idle", ping, 1 if options.quick else 3),
        ("ping loaded", ping_loaded, 1 if options.quick else 3),
    ]
    if options.quick:
        return chosen
    return [
        *chosen,
        tcp("8 flows", "--parallel", "8"),
        tcp("both ways", "--bidir"),
        ("udp small", small, 3),
        ("udp bulk", partial(udp_bulk, seconds=min(seconds, 3)), 1),
    ]


def udp_bulk(system: System, figures: Figures, *, seconds: float) -> None:
    """Find the highest rate that passes with less than 1 % loss."""
    rate = figures.median("tcp up", "gbps") or 1.0
    for share in LADDER:
        found = measure.datagrams(system, seconds, 1400, f"{rate * share * 1e9:.0f}")
        if found.loss < LOSS_LIMIT:
            figures.add("udp bulk", found)
            return


def start_all(kinds: dict[str, type[System]], beds: ExitStack) -> list[tuple[System, Figures]]:
    """Set every tunnel up that can be; say what is missing for the others."""
    running = []
    for number, (name, kind) in enumerate(kinds.items()):
        if how := kind.missing():
            say(f"not measured: {name} (to have it: {how})")
            continue
        link = Link.for_test(900 + number, clients=1)
        beds.callback(link.close)
        try:
            link.build()
            system = kind(name, link)
            system.start()
            system.link.client.ping(system.target, count=2)
            measure.serve(system)
        except BedError as exc:
            link.keep_logs(CACHE / "bench-logs" / name.replace(" ", "-"))
            say(f"not measured: {name} ({exc})")
            continue
        running.append((system, Figures(name, system.version(), system.detail())))
    return running


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def take_turns(running: Sequence[tuple[System, Figures]], options: argparse.Namespace) -> None:
    """Measure one thing after the other, of all systems in turn: they share the weather."""
    for what, one, rounds in measurements(options):
        for number in range(rounds):
            say(f"{what}, {number + 1} of {rounds}")
            for system, figures in running:
                try:
                    one(system, figures)
                except BedError as exc:
                    say(str(exc))


def main() -> None:
    options = arguments()
    take_down_dead()
    with ExitStack() as beds:
        running = start_all(catalogue(options), beds)
        take_turns(running, options)
        found = {system.name: figures for system, figures in running}
    machine = f"{os.cpu_count()} processors, Linux {platform.release()}"
    if options.json:
        systems = {name: figures.as_dict() for name, figures in found.items()}
        print(json.dumps({"machine": machine, "systems": systems}))
    else:
        print(f"{machine}; medians of {options.rounds} x {options.seconds:g} s, taking turns")
        print(table(list(found.values())))
    print(ratios(found.get(OURS), {key: found.get(name) for key, name in PEERS.items()}))


if __name__ == "__main__":
    main()
