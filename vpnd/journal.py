"""The journal's own protocol: log lines with fields, one datagram each.

    MESSAGE=session opened: user=alice      a field on a line of its own
    PYVPN_USER=alice

    MESSAGE                                 or, where a value has line ends, its name alone,
    <8 bytes, little-endian: length>...     length and value, and a line end

systemd.io/JOURNAL_NATIVE_PROTOCOL.  An entry too large for a datagram goes as a sealed memfd
instead.  Nothing here ever waits: a line that the journal does not take at once is counted.
"""

import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress

SOCKET = "/run/systemd/journal/socket"
MAX_VALUE = 256 * 1024  # characters; a traceback has some thousand
SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_LENGTH = struct.Struct("<Q")


def is_stderr(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether standard error is the stream that systemd connected to the journal.

    A program that redirected it has JOURNAL_STREAM too, but another inode (systemd.exec(5)).
    """
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or replaced by an object
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def encode(fields: Mapping[str, str]) -> bytes:
    """Return one entry; names are upper case letters, digits and underscores."""
    entry = bytearray()
    for name, text in fields.items():
        value = text[:MAX_VALUE].encode(errors="replace")
        entry += name.encode("ascii")
        if b"\n" in value:
            entry += b"\n" + _LENGTH.pack(len(value)) + value + b"\n"
        else:
            entry += b"=" + value + b"\n"
    return bytes(entry)


class Journal:
    """A way to the journal; `lost` counts the entries it did not take since the last success."""

    def __init__(self, path: str = "") -> None:
        """Raise OSError where nobody listens on the journal's socket."""
        self.lost = 0
        self._path = path or SOCKET
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self._socket.sendto(b"", self._path)  # an empty entry is none
        except BlockingIOError:
            pass
        except OSError:
            self._socket.close()
            raise

    def send(self, fields: Mapping[str, str]) -> bool:
        """Hand over one entry; return False where it was lost."""
        entry = encode(fields)
        try:
            try:
                self._socket.sendto(entry, self._path)  # not connected: journald may restart
            except OSError as exc:
                if exc.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                    raise
                self._send_file(entry)
        except OSError:
            self.lost += 1
            return False
        return True

    def _send_file(self, entry: bytes) -> None:
        fd = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(entry)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))
            self._socket.sendmsg([], [rights], 0, self._path)
        finally:
            os.close(fd)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()
