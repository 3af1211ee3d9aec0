"""Medians of what was measured, as a table, as JSON, and as ratios."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass
class Figures:
    """Everything about one system."""

    name: str
    version: str = ""
    detail: str = ""
    samples: dict[str, list[Any]] = field(default_factory=dict)

    def add(self, what: str, sample: Any) -> None:
        self.samples.setdefault(what, []).append(sample)

    def median(self, what: str, figure: str) -> float | None:
        """Return the median of a figure, None where it was not measured."""
        samples = self.samples.get(what)
        return median(getattr(s, figure) for s in samples) if samples else None

    def both_ways(self, figure: str) -> float | None:
        """Return the mean of the medians up and down."""
        up, down = self.median("tcp up", figure), self.median("tcp down", figure)
        return None if up is None or down is None else (up + down) / 2

    def as_dict(self) -> dict[str, Any]:
        """Return medians and samples."""
        result: dict[str, Any] = {"version": self.version, "detail": self.detail}
        for what, samples in self.samples.items():
            figures = asdict(samples[0])
            result[what] = {figure: self.median(what, figure) for figure in figures}
            result[what]["samples"] = [asdict(sample) for sample in samples]
        return result


ROWS = (
    ("one TCP flow up, Gb/s", "tcp up", "gbps", "{:.2f}"),
    ("one TCP flow down, Gb/s", "tcp down", "gbps", "{:.2f}"),
    ("  CPU s/GB up, both ends", "tcp up", "cpu_s_per_gb", "{:.1f}"),
    ("  CPU s/GB down, both ends", "tcp down", "cpu_s_per_gb", "{:.1f}"),
    ("8 TCP flows up, Gb/s", "8 flows", "gbps", "{:.2f}"),
    ("both directions at once, Gb/s", "both ways", "gbps", "{:.2f}"),
    ("UDP 1400 bytes below 1 % loss, Gb/s", "udp bulk", "gbps", "{:.2f}"),
    ("UDP 64 bytes, packets/s", "udp small", "packets_per_s", "{:.0f}"),
    ("  lost", "udp small", "loss", "{:.1%}"),
    ("ping idle p50, ms", "ping idle", "p50", "{:.2f}"),
    ("ping idle p99, ms", "ping idle", "p99", "{:.2f}"),
    ("ping beside a TCP flow p50, ms", "ping loaded", "p50", "{:.2f}"),
    ("ping beside a TCP flow p99, ms", "ping loaded", "p99", "{:.2f}"),
)


def table(figures: Sequence[Figures]) -> str:
    """Return the medians, a column for each system."""
    lines = [["", *(each.name for each in figures)]]
    lines.append(["", *(each.version for each in figures)])
    lines.append(["", *(each.detail for each in figures)])
    for title, what, figure, form in ROWS:
        cells = [each.median(what, figure) for each in figures]
        if any(cell is not None for cell in cells):
            shown = ("-" if cell is None else form.format(cell) for cell in cells)
            lines.append([title, *shown])
    widths = [max(len(line[at]) for line in lines) for at in range(len(lines[0]))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def ratios(ours: Figures | None, peers: Mapping[str, Figures | None]) -> str:
    """Return our figure over theirs, throughput and CPU of a bulk flow, as one JSON object."""
    result: dict[str, dict[str, float | None]] = {}
    for title, figure in (("bulk", "gbps"), ("cpu", "cpu_s_per_gb")):
        own = ours.both_ways(figure) if ours else None
        result[title] = {}
        for name, peer in peers.items():
            theirs = peer.both_ways(figure) if peer else None
            result[title][name] = round(own / theirs, 3) if own and theirs else None
    return json.dumps(result)
