"""The mark of a first set-up that is under way, so that one that was killed can begin again.

    mark both ─► keys, authority ─► take the authority's mark away ─► server.crt ─► the other mark

Until there is a server.crt no server ran and no client was made: what lies beside the mark is
worth nothing and may go.  Afterwards the marks mean nothing.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from vpnd.pki.files import write_new

MARK = "pki-init.unfinished"


def begin(directory: Path, files: Sequence[str]) -> None:
    """Say that these files, of which there is none yet, are not complete until `end`."""
    _sweep(directory, files)
    write_new(directory / MARK, b"vpnctl pki init was begun and did not end: run it again\n")


def is_marked(directory: Path) -> bool:
    """Return whether a set-up was begun here and not ended."""
    return (directory / MARK).exists()


def clean(directory: Path, files: Sequence[str]) -> None:
    """Remove these files, what was being written to become one of them, and then the mark."""
    for name in files:
        (directory / name).unlink(missing_ok=True)
    _sweep(directory, files)
    end(directory)


def _sweep(directory: Path, files: Sequence[str]) -> None:
    """Remove what a process that was killed was writing (`vpnd.pki.files`)."""
    temporary = re.compile(rf"\.({'|'.join(map(re.escape, (*files, MARK)))})\.[0-9a-f]{{16}}")
    for path in list(directory.iterdir()):
        if temporary.fullmatch(path.name):
            path.unlink()


def end(directory: Path) -> None:
    """Take the mark away: all is there."""
    (directory / MARK).unlink(missing_ok=True)
