"""The journal's protocol, against a socket that stands for journald's."""

import errno
import fcntl
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd import journal
from vpnd.journal import SEALS, Journal, encode, is_stderr

ROOT = Path(__file__).parent.parent
WORK = """
import sys
from vpnd import journal, log
journal.SOCKET = sys.argv[1]
log.setup("info", anonymise="anonymise" in sys.argv)
log.warning("tunnel refused", user="alice", address="203.0.113.7:4000", reason="no\\nreason")
log.event("quiet", level=10, user="bob")
try:
    1 / 0
except ZeroDivisionError:
    log._logger.exception("a bug")
"""


def decode(entry: bytes) -> dict[str, str]:
    """Return the fields of an entry, by the protocol's own description."""
    fields = {}
    while entry:
        line, _, entry = entry.partition(b"\n")
        name, has_value, value = line.partition(b"=")
        if not has_value:
            (size,) = struct.unpack_from("<Q", entry)
            value, end, entry = entry[8 : 8 + size], entry[8 + size : 9 + size], entry[9 + size :]
            assert end == b"\n"
        fields[name.decode()] = value.decode()
    return fields


class Journald:
    """The other end."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "socket")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(self.path)

    def entries(self) -> list[dict[str, str]]:
        """Return what has arrived."""
        found = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.socket, 1 << 20, 4)
            except BlockingIOError:
                return [entry for entry in found if entry]
            for fd in fds:
                assert not data
                assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS  # journald takes no other
                with os.fdopen(fd, "rb") as file:
                    file.seek(0)
                    data = file.read()
            found.append(decode(data))


@pytest.fixture
def journald() -> Iterator[Journald]:
    with tempfile.TemporaryDirectory(prefix="pyvpn-t-") as folder:
        made = Journald(Path(folder))
        yield made
        made.socket.close()


@given(st.dictionaries(st.from_regex(r"[A-Z][A-Z_]{0,9}", fullmatch=True), st.text(max_size=40)))
def test_what_was_written_is_what_is_read(fields: dict[str, str]) -> None:
    """Line ends inside a value make no other field."""
    readable = {k: v.encode(errors="replace").decode() for k, v in fields.items()}
    assert decode(encode(fields)) == readable


def test_an_entry_too_large_for_a_datagram_arrives_whole(journald: Journald) -> None:
    """A traceback of a deep recursion, say: as a sealed file."""
    way = Journal(journald.path)
    large = "x" * 1_000_000
    assert way.send({"MESSAGE": "small"})
    assert way.send({f"FIELD_{n}": large for n in range(4)})
    small, whole = journald.entries()
    assert small == {"MESSAGE": "small"}
    assert set(whole.values()) == {large[: journal.MAX_VALUE]}
    way.close()


def test_a_journal_that_does_not_read_is_not_waited_for(journald: Journald) -> None:
    """The data path must not stand still because a disk does; what is lost is counted."""
    way = Journal(journald.path)
    sent = 0
    while way.send({"MESSAGE": "flood"}):
        sent += 1
    assert 0 < sent < 100_000
    assert not way.send({"MESSAGE": "one more"})
    assert way.lost == 2
    assert len(journald.entries()) == sent
    assert way.send({"MESSAGE": "again"})
    way.close()


def test_a_journal_that_is_not_there_is_found_out_at_once(tmp_path: Path) -> None:
    """Then standard error is what remains."""
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        Journal(str(tmp_path / "absent"))


def test_only_the_very_stream_of_the_journal_counts() -> None:
    """A pipe to another program has the variable too: it must get readable lines."""
    here = os.fstat(2)
    assert not is_stderr({"JOURNAL_STREAM": f"{here.st_dev}:{here.st_ino + 1}"})
    assert not is_stderr({})


def work(journald: Journald, *options: str, is_journal: bool = True) -> str:
    """Log as a daemon would; return what reached its standard error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = os.fstat(theirs.fileno())
        inode = found.st_ino if is_journal else found.st_ino + 1
        subprocess.run(
            [sys.executable, "-c", WORK, journald.path, *options],
            cwd=ROOT, env={**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{inode}"},
            stderr=theirs.fileno(), check=True, timeout=60,
        )  # fmt: skip
        theirs.close()
        return b"".join(iter(lambda: ours.recv(65536), b"")).decode()


def test_a_line_in_the_journal_has_its_fields(journald: Journald) -> None:
    """`journalctl PYVPN_USER=alice -p warning` finds it; nothing is said twice."""
    assert work(journald) == ""
    refused, bug = journald.entries()
    assert refused == {
        "MESSAGE": "tunnel refused: user=alice address=203.0.113.7:4000 reason=no?reason",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "vpnd",
        "PYVPN_EVENT": "tunnel refused",
        "PYVPN_USER": "alice",
        "PYVPN_ADDRESS": "203.0.113.7:4000",
        "PYVPN_REASON": "no?reason",
    }
    assert bug["PRIORITY"] == "3"
    assert bug["MESSAGE"].splitlines()[0] == "a bug"
    assert bug["MESSAGE"].splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_stderr_that_is_not_the_journals_gets_lines_with_priorities(journald: Journald) -> None:
    """As from any other daemon."""
    said = work(journald, is_journal=False)
    assert said.startswith("<4>tunnel refused: user=alice ")
    assert journald.entries() == []


def test_no_field_of_an_anonymised_line_holds_an_address(journald: Journald) -> None:
    """The fields are as much the journal as the text is."""
    work(journald, "anonymise")
    refused = journald.entries()[0]
    assert refused["PYVPN_ADDRESS"] == "203.0.113.0/24"
    assert "address=203.0.113.0/24 " in refused["MESSAGE"]


def test_lines_that_were_lost_are_told_when_the_journal_reads_again(journald: Journald) -> None:
    """A gap in a log must be seen to be one."""
    flood = (
        "import sys; from vpnd import journal, log; journal.SOCKET = sys.argv[1]\n"
        "log.setup('info')\n"
        "for n in range(2000): log.event('line', count=n)\n"
        "print('through', flush=True); sys.stdin.readline(); log.event('last')\n"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = os.fstat(theirs.fileno())
        process = subprocess.Popen(
            [sys.executable, "-c", flood, journald.path], cwd=ROOT, stdin=subprocess.PIPE,
            env={**os.environ, "JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"},
            stdout=subprocess.PIPE, stderr=theirs.fileno(),
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"through\n"
        before = journald.entries()
        process.communicate(b"\n", timeout=60)
    last, lost = journald.entries()
    assert last["MESSAGE"] == "last"
    assert lost["MESSAGE"] == f"log lines were lost: count={2000 - len(before)}"
    assert lost["PRIORITY"] == "4"
