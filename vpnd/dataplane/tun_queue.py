"""One queue of a TUN device, opened with a virtio header and TCP offload by the helper.

A read yields one frame: a 10-byte `virtio_net_hdr` (linux/virtio_net.h) and an IP packet
of up to 64 KiB, which may be a TCP superpacket.  A write takes the same.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from vpnd.wire.segment import segment, segment_room
from vpnd.wire.virtio import HEADER, PLAIN

Writev: TypeAlias = Callable[[int, Sequence[bytes | bytearray | memoryview]], int]

TUNSETOFFLOAD = 0x400454D0  # linux/if_tun.h, as the two flags below
TUN_F_CSUM = 0x01
TUN_F_TSO4 = 0x02
TUN_F_TSO6 = 0x04
TUN_F_TSO_ECN = 0x08
TUN_F_USO = 0x20 | 0x40  # Linux 6.2
TCP_OFFLOAD = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
MAX_FRAME = HEADER.size + 65535
# EIO: the link is not up; EINVAL: the kernel does not like the packet; ENOBUFS, EAGAIN: full
_REFUSALS = frozenset({errno.EIO, errno.EINVAL, errno.ENOBUFS, errno.EAGAIN, errno.ENOMEM})


def set_offload(fd: int, flags: int) -> None:
    """Say which superpackets reads may yield.  Holds for the whole device, not the queue.

    Raises OSError (EINVAL) where the kernel does not know a flag.
    """
    fcntl.ioctl(fd, TUNSETOFFLOAD, flags)


def enable_offload(fd: int) -> None:
    """Let reads yield superpackets of TCP, and of UDP where the kernel has them.

    Raises OSError where it has neither.
    """
    try:
        set_offload(fd, TCP_OFFLOAD | TUN_F_USO)
    except OSError:
        set_offload(fd, TCP_OFFLOAD)


class TunQueue:
    """Reads and writes frames; owns `fd`."""

    __slots__ = ("_room", "_writev", "fd", "gone", "gso", "gso_reason", "on_written")

    def __init__(self, fd: int, *, writev: Writev = os.writev) -> None:
        self.fd = fd
        self._writev = writev
        self.gso = True
        """Superpackets may be written; some kernels read them but take none."""
        self.gso_reason = ""
        self.gone = False
        """The link was deleted: the fd stays readable for ever, so stop watching it."""
        self.on_written: Callable[[], None] | None = None
        """Called after a batch was written: the kernel's answer to it waits already, mostly."""
        self._room = memoryview(b"")

    def read(self, frames: int, size: int) -> list[memoryview]:
        """Return what waits, up to so many frames, or so many bytes and a frame.

        The frames are valid until the next read.
        """
        if len(self._room) < size + MAX_FRAME:
            self._room = memoryview(bytearray(size + MAX_FRAME))
        found: list[memoryview] = []
        at = 0
        while at < size and len(found) < frames:
            buffer = self._room[at : at + MAX_FRAME]
            try:
                got = os.readv(self.fd, (buffer,))
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno not in _REFUSALS:
                    self.gone = True
                break
            found.append(buffer[:got])
            at += got
        return found

    def write(self, pieces: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Write one frame given in pieces; return False when the kernel did not take it."""
        try:
            self._writev(self.fd, pieces)
        except OSError as exc:
            if exc.errno == errno.EINVAL and self.gso and pieces[0] != PLAIN:
                return self._write_each(b"".join(pieces), exc)
            if exc.errno not in _REFUSALS:
                self.gone = True
            return False
        return True

    def _write_each(self, superpacket: bytes, refusal: OSError) -> bool:
        """Write a refused superpacket as its packets, and join none ever after.

        Unless they are not taken either: then it was not for being one.
        """
        packets = segment(memoryview(superpacket), memoryview(bytearray(segment_room(0))), 0)
        try:
            for packet in packets:
                self._writev(self.fd, (PLAIN, packet))
        except OSError:
            return False
        self.gso = False
        self.gso_reason = f"the kernel refused a superpacket ({refusal.strerror})"
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
