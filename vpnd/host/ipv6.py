"""What this host can do with IPv6, which some switch off."""

import errno
import socket
from pathlib import Path

DEFAULT = Path("/proc/sys/net/ipv6/conf/default/disable_ipv6")  # of links that are yet to come


def why_no_sockets() -> str:
    """Return why nothing can listen on IPv6 addresses, or nothing."""
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close()
    except OSError as exc:
        if exc.errno == errno.EAFNOSUPPORT:
            return "this kernel has no IPv6 (ipv6.disable=1)"
    return ""


def why_no_addresses() -> str:
    """Return why a new interface can have no IPv6 address, or nothing."""
    try:
        is_off = DEFAULT.read_text("ascii").strip() == "1"
    except OSError:  # no IPv6 at all, or /proc is hidden from us: the helper will see
        return why_no_sockets()
    return "IPv6 is switched off (net.ipv6.conf.default.disable_ipv6=1)" if is_off else ""
