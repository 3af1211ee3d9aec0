"""What the authority has signed for clients: one JSON object a line, in its own directory.

The store forgets a serial number when a client gets another one; whoever reads our revocation
list must not.  Entries are dropped when their certificates have ended.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from vpnd.errors import ConfigError
from vpnd.pki.certificates import serial_text
from vpnd.pki.files import PRIVATE, replace
from vpnd.pki.reading import not_after

FILE = "issued.jsonl"


@dataclass(frozen=True, slots=True)
class Issued:
    """One certificate; times in Unix seconds."""

    serial: str
    user: str
    client: str
    issued: int
    not_after: int


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the authority: what is done within is done by one process at a time."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def record(directory: Path, leaf: x509.Certificate, user: str, client: str, now: datetime) -> None:
    """Write down a certificate before it leaves the authority."""
    end = int(not_after(leaf).timestamp())
    entry = Issued(serial_text(leaf), user, client, int(now.timestamp()), end)
    line = json.dumps(asdict(entry), separators=(",", ":")) + "\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(directory / FILE, flags, PRIVATE)
    try:
        before = os.fstat(fd).st_size
        try:
            written = os.write(fd, line.encode())
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, before)
            raise
        if written < len(line):
            os.ftruncate(fd, before)
            raise ConfigError(f"{directory / FILE}: the disk is full; free some space")
    finally:
        os.close(fd)


def read(directory: Path) -> list[Issued]:
    """Return all entries, the oldest first.  Raises ConfigError."""
    path = directory / FILE
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    try:
        return [Issued(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as exc:
        raise ConfigError(
            f"{path}: is damaged ({exc}); put it back from a copy, or move it away: then the "
            "revocation list knows only what the server knows"
        ) from exc


def prune(directory: Path, now: datetime) -> list[Issued]:
    """Drop entries of certificates that have ended; return the others."""
    entries = read(directory)
    left = [entry for entry in entries if entry.not_after > now.timestamp()]
    if len(left) < len(entries):
        _write(directory, left)
    return left


def _write(directory: Path, entries: Sequence[Issued]) -> None:
    lines = (json.dumps(asdict(entry), separators=(",", ":")) + "\n" for entry in entries)
    replace(directory / FILE, "".join(lines).encode())
