"""One measurement each: iperf3 and ping between the ends of a tunnel, and what it cost."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.systems import System
from tests.netns.process import BedError, Process

IPERF_PORT = 5201
GRACE_S = 20.0  # iperf3 beyond its own time
PING_EVERY_S = 0.01


@dataclass(frozen=True)
class Bulk:
    """A transfer: Gb/s at the receiver, and CPU seconds per GB of the tunnel's processes."""

    gbps: float
    cpu_s_per_gb: float
    loss: float = 0.0
    packets_per_s: float = 0.0


@dataclass(frozen=True)
class Latency:
    """Round trips in ms, and the share of echoes that did not come back."""

    p50: float
    p99: float
    loss: float


def serve(system: System) -> Process:
    """Start iperf3 at the server's end."""
    server = system.link.server.start(
        "iperf3", "iperf3", "--server", "--port", str(IPERF_PORT), "--forceflush"
    )
    server.wait_for("Server listening")
    return server


def cpu_s(pids: Sequence[int]) -> float:
    """Return user and system seconds of processes so far (proc(5))."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def bulk(system: System, seconds: float, *options: str) -> Bulk:
    """Transfer for some seconds; options are iperf3's (`--reverse` for down)."""
    pids = system.pids()
    before = cpu_s(pids)
    end = _iperf(system, seconds, *options)["end"]
    spent = cpu_s(pids) - before
    sums = [end[key] for key in end if key.startswith("sum_received")]  # two with --bidir
    received = sum(each["bytes"] for each in sums)
    return Bulk(received * 8e-9 / sums[0]["seconds"], spent / (received / 1e9))


def datagrams(system: System, seconds: float, size: int, rate: str) -> Bulk:
    """Send datagrams of `size` bytes up at a rate ("0": as fast as they go)."""
    pids = system.pids()
    before = cpu_s(pids)
    options = ("--udp", "--length", str(size), "--bitrate", rate)
    report = _iperf(system, seconds, *options)["end"]["sum"]
    spent = cpu_s(pids) - before
    sent, lost = report["packets"], report["lost_packets"]
    arrived = max(sent - lost, 0)
    took = report["seconds"]
    received = arrived * size
    return Bulk(
        received * 8e-9 / took,
        spent / (received / 1e9) if received else 0.0,
        loss=lost / sent if sent else 1.0,
        packets_per_s=arrived / took,
    )


def _iperf(system: System, seconds: float, *options: str) -> dict[str, Any]:
    argv = ("iperf3", "--client", system.target, "--port", str(IPERF_PORT))
    done = system.link.client.run(
        *argv, "--time", f"{seconds:g}", "--json", *options,
        check=False, timeout_s=seconds + GRACE_S,
    )  # fmt: skip
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise BedError(f"{system.name}: iperf3: {done.stderr or done.stdout}") from None
    if "error" in result:
        raise BedError(f"{system.name}: iperf3: {result['error']}")
    return result


def latency(system: System, seconds: float, *, beside: Sequence[str] | None = None) -> Latency:
    """Ping every 10 ms, alone or beside a saturating TCP flow with these iperf3 options."""
    load = None
    if beside is not None:
        argv = ("iperf3", "--client", system.target, "--port", str(IPERF_PORT))
        load = system.link.client.start(
            "load", *argv, "--time", f"{seconds + 1:g}", "--forceflush", *beside
        )
        load.wait_for("connected to")
    count = round(seconds / PING_EVERY_S)
    every = ("-i", str(PING_EVERY_S), "-c", str(count), "-W", "1")
    said = system.link.client.run(
        "ping", *every, system.target, check=False, timeout_s=seconds + GRACE_S
    ).stdout
    if load is not None:
        load.wait(GRACE_S)
    times = sorted(float(found) for found in re.findall(r"time=([0-9.]+) ms", said))
    if not times:
        raise BedError(f"{system.name}: no echo came back")
    return Latency(_quantile(times, 0.5), _quantile(times, 0.99), 1 - len(times) / count)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
