"""What a descriptor from before a restart is: it may be of an earlier configuration."""

import fcntl
import os
import socket
import struct

TUNGETIFF = 0x800454D2  # linux/if_tun.h
IFREQ = struct.Struct("16s24x")  # struct ifreq: the name, room for the rest

Endpoint = tuple[str, int]


def tun_interface(fd: int) -> str:
    """Return the interface of a TUN queue; "" when it is none, or its interface is gone."""
    try:
        found = fcntl.ioctl(fd, TUNGETIFF, bytes(IFREQ.size))
    except OSError:
        return ""
    name: bytes = IFREQ.unpack(found)[0]
    return name.partition(b"\0")[0].decode(errors="replace")


def endpoint(fd: int | None, kind: socket.SocketKind) -> Endpoint | None:
    """Return the (address, port) of a socket of this kind; None when it is another, or none."""
    if fd is None:
        return None
    try:
        with socket.socket(fileno=os.dup(fd)) as sock:
            if sock.type != kind or sock.family not in {socket.AF_INET, socket.AF_INET6}:
                return None
            address: Endpoint = sock.getsockname()[:2]
            return address
    except OSError:
        return None
