"""The sockets of the server: bound here, since ports below 1024 need root; used in the workers."""

import contextlib
import errno
import socket

from helper.messages import OpenSockets, Refused

SO_SNDBUFFORCE = 32  # asm-generic/socket.h; beyond net.core.wmem_max, needs CAP_NET_ADMIN
SO_RCVBUFFORCE = 33
BACKLOG = 1024  # the kernel cuts it to net.core.somaxconn


def open_sockets(request: OpenSockets) -> list[socket.socket]:
    """Return for each address a listening TCP socket, then its UDP sockets; all non-blocking.

    Raises Refused for a port in use and for an address that is not on this host.
    """
    found: list[socket.socket] = []
    with contextlib.ExitStack() as unless_all_well:
        for address, port in request.listen:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            try:
                found.append(socket.create_server((address, port), family=family, backlog=BACKLOG))
                unless_all_well.enter_context(found[-1])
                with socket.socket(family, socket.SOCK_DGRAM) as probe:
                    # The real ones would join another program's SO_REUSEPORT group in silence.
                    _bind(probe, address, port)
                for _ in range(request.udp_per_address):
                    found.append(socket.socket(family, socket.SOCK_DGRAM))
                    unless_all_well.enter_context(found[-1])
                    for option in (SO_RCVBUFFORCE, SO_SNDBUFFORCE):
                        found[-1].setsockopt(socket.SOL_SOCKET, option, request.buffer_bytes)
                    found[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    _bind(found[-1], address, port)
            except OSError as exc:
                raise Refused(_explained(exc, address, port)) from exc
        unless_all_well.pop_all()
    for each in found:
        each.setblocking(False)
    return found


def _bind(new: socket.socket, address: str, port: int) -> None:
    if new.family == socket.AF_INET6:
        new.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    new.bind((address, port))


def _explained(exc: OSError, address: str, port: int) -> str:
    known = {
        errno.EADDRINUSE: "is in use: end the other program (see `ss -lntup`), or change the port",
        errno.EADDRNOTAVAIL: "is not an address of this host: correct server.addresses",
        errno.EAFNOSUPPORT: "cannot be: this host has IPv6 switched off; correct server.addresses",
    }
    at = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    return f"{at} {known.get(exc.errno or 0, f'cannot be bound: {exc.strerror}')}"
