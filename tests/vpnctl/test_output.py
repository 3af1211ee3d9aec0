"""What is printed, and that it cannot steer a terminal."""

import argparse

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnctl import output


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (2_500_000_000, "2.5 GB"),
        (5 * 10**12, "5 TB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_are_short(size: int, text: str) -> None:
    """Three digits are what a person reads."""
    assert output.bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0 s"),
        (59, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h 0 min"),
        (90_061, "1 d 1 h"),
        (800 * 86400, "800 d 0 h"),
    ],
)
def test_durations_have_two_units(seconds: int, text: str) -> None:
    """A clock that was set back shows as nothing, not as less."""
    assert output.duration_text(seconds) == text


def test_counters_come_greatest_first() -> None:
    """The reason that matters is read first."""
    assert output.counts_text({"a": 1, "b": 9, "c": 1}) == "b 9, a 1, c 1"


@given(st.text())
def test_a_cleaned_text_is_one_printable_line(text: str) -> None:
    """No escape sequence, no line end, no direction mark."""
    assert output.clean(text).isprintable()
    assert len(output.clean(text)) == len(text)


@pytest.mark.parametrize("table", [False, True])
def test_a_tables_cells_print_as_they_are(capsys: pytest.CaptureFixture[str], table: bool) -> None:
    """No markup, no emoji names, no colours for what looks like a number."""
    args = argparse.Namespace(table=table)
    output.print_table(args, ["A", "B"], [["[bold]x[/bold]", ":smile:\x1b[31m"], ["", "\t1"]])
    out = capsys.readouterr().out
    assert "[bold]x[/bold]" in out
    assert ":smile:\N{REPLACEMENT CHARACTER}[31m" in out
    assert "\x1b" not in out


def test_scripts_find_every_cell(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty cell is a dash and a cell of two lines is one: columns stay columns."""
    output.print_table(argparse.Namespace(table=False), ["A", "B", "C"], [["", "x\ny", "z\tw"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["A\tB\tC", "-\tx y\tz\N{REPLACEMENT CHARACTER}w"]
