"""Whether this host has IPv6 at all."""

import errno
import socket


def why_no_ipv6() -> str:
    """Return why neither sockets nor interfaces can have IPv6 addresses, or nothing.

    A host that has it and switched it off (net.ipv6.conf.all.disable_ipv6) is no such host:
    sockets can be bound all the same, and the helper switches it on for the tunnel's link.
    """
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as exc:
        if exc.errno == errno.EAFNOSUPPORT:
            return "this kernel has no IPv6 (booted with ipv6.disable=1?)"
    return ""
