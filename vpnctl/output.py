"""What commands print: tables for people, tab-separated lines for scripts, JSON for programs.

Names and texts can come from a peer, so nothing reaches a terminal that could steer it: every
character that does not print is shown as U+FFFD.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDTH_OF_NO_TERMINAL = 120  # for --table into a file or a pipe
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
NOTHING = "-"  # an empty cell would be skipped by awk and cut


def wants_table(args: argparse.Namespace) -> bool:
    """Return True where a person reads: on a terminal, or with --table."""
    return bool(args.table) or sys.stdout.isatty()


def clean(text: str) -> str:
    """Return `text` on one line, with a mark for each character that does not print."""
    return "".join(char if char.isprintable() else REPLACEMENT for char in text)


def print_json(value: Any) -> None:
    """Print a JSON object; dataclasses (also inside) become objects, in ASCII."""
    print(json.dumps(value, indent=2, default=_plain_value))


def _plain_value(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def print_facts(args: argparse.Namespace, facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values, aligned for people, with a tab between for scripts."""
    rows = [(clean(name), clean(value.strip()) or NOTHING) for name, value in facts]
    if wants_table(args):
        width = max((len(name) for name, _ in rows), default=0) + 2
        for name, value in rows:
            print(f"{name:{width}}{value}")
    else:
        for name, value in rows:
            print(name, value, sep="\t")


def print_table(
    args: argparse.Namespace, headings: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    """Print rows of cells below their headings.

    A cell may have several lines; scripts get them on one, with blanks between.
    """
    if wants_table(args):
        _console().print(_rich_table(headings, rows))
        return
    for row in (headings, *rows):
        print("\t".join(clean(cell.replace("\n", " ")) or NOTHING for cell in row))


def _rich_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    cells = [list(row) for row in rows]
    stacked = any("\n" in cell for row in cells for cell in row)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
        leading=1 if stacked else 0,
    )
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    for row in cells:
        table.add_row(*(Text("\n".join(map(clean, cell.split("\n")))) for cell in row))
    return table


def _console() -> Console:
    width = None if sys.stdout.isatty() else WIDTH_OF_NO_TERMINAL
    return Console(width=width, highlight=False, markup=False, emoji=False)


def bytes_text(size: int) -> str:
    """Return a size for people: 512 B, 1.5 MB (powers of 1000)."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.4g} TB"


def duration_text(seconds: int) -> str:
    """Return a duration for people in its two greatest units: 3 d 4 h, 5 min 6 s."""
    seconds = max(0, seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (unit, size), (smaller, smaller_size) in pairwise(units):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size} {unit} {rest} {smaller}"
    return f"{seconds} s"


def day_text(at: int) -> str:
    """Return the day of a Unix time, in UTC, as 2026-01-31."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def counts_text(counts: Mapping[str, int], separator: str = ", ") -> str:
    """Return counters by name, greatest first: "source 3, replayed 1"."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return separator.join(f"{name} {count}" for name, count in ordered)
