"""The linters, so that one command tells all."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.once
ROOT = Path(__file__).parent.parent
CODE = ("helper", "packaging", "tests", "vpnctl", "vpnd")  # not .cache: others wrote that
HIDDEN = {".git", ".cache", ".hypothesis"}


def run(*argv: str) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout}{done.stderr}"


def shell_scripts() -> Iterator[str]:
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if HIDDEN & set(parts) or parts[0].startswith(".venv") or not path.is_file():
            continue
        with path.open("rb") as file:
            if file.readline(64).startswith((b"#!/bin/sh", b"#!/usr/bin/env bash")):
                yield str(path.relative_to(ROOT))


def test_ruff_format() -> None:
    """Nobody discusses layout."""
    run(sys.executable, "-m", "ruff", "format", "--check", "--diff", *CODE)


def test_ruff_check() -> None:
    """The rules of pyproject.toml hold everywhere."""
    run(sys.executable, "-m", "ruff", "check", *CODE)


@pytest.mark.timeout(300)  # the first run on a slow machine has no cache
def test_mypy_strict() -> None:
    """Types are complete in what ships."""
    run(sys.executable, "-m", "mypy")


@pytest.mark.timeout(300)
def test_mypy_strict_in_the_generator() -> None:
    """What it makes is installed."""
    run(sys.executable, "-m", "mypy", "packaging/manual.py")


@pytest.mark.timeout(300)
def test_mypy_strict_in_the_test_bed() -> None:
    """The bed is a program of its own, on which many tests stand."""
    beds = [p for name in ("netns", "systemd") for p in (ROOT / "tests" / name).glob("[!t]*.py")]
    bed = (str(p.relative_to(ROOT)) for p in sorted(beds))
    run(sys.executable, "-m", "mypy", "--explicit-package-bases", *bed)


@pytest.mark.parametrize("script", list(shell_scripts()))
def test_shellcheck(script: str) -> None:
    """Quoting mistakes in a script that root runs are not found by trying it."""
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (./run.sh test as root installs it)")
    run("shellcheck", script)
