"""One queue of a TUN device, opened with a virtio header and TCP offload by the helper.

A read yields one frame: a 10-byte `virtio_net_hdr` (linux/virtio_net.h) and an IP packet
of up to 64 KiB, which may be a TCP superpacket.  A write takes the same.
"""

import errno
import fcntl
import os
from collections.abc import Sequence

from vpnd.wire.virtio import HEADER

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

    __slots__ = ("_room", "fd", "gone")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.gone = False
        """The link was deleted: the fd stays readable for ever, so stop watching it."""
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
            os.writev(self.fd, pieces)
        except OSError as exc:
            if exc.errno not in _REFUSALS:
                self.gone = True
            return False
        return True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
