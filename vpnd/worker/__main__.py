"""`python -m vpnd.worker FD`: started by the master, never by hand."""

import asyncio
import resource
import signal
import socket
import struct
import sys
from dataclasses import replace

from vpnd import log
from vpnd.errors import Malformed, VpnError
from vpnd.host.process import harden
from vpnd.worker.client_worker import ClientWorker
from vpnd.worker.control import MAX_FDS, MAX_MESSAGE, decode
from vpnd.worker.messages import Start, StartClient
from vpnd.worker.worker import BACKLOG, Worker

OWN_FILES = 128  # TUN queues, listeners, UDP sockets, the border, libraries


def main() -> int:
    """Receive how to work from the master, then work until it says stop."""
    border = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C reaches the whole group: the master decides when a worker ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    harden()
    files = raise_fd_limit()
    try:
        settings, fds = receive_start(border)
        log.setup(settings.log_level)
        worker: Worker | ClientWorker = (
            ClientWorker(settings, fds)
            if isinstance(settings, StartClient)
            else Worker(within_fd_limit(settings, files), fds)
        )
        border.setblocking(False)
        asyncio.run(worker.run(border))
    except VpnError as exc:
        log.error("worker cannot work", error=str(exc))
        return exc.exit_status
    return worker.exit_status


def receive_start(border: socket.socket) -> tuple[Start | StartClient, list[int]]:
    """Return the first message and the descriptors beside it.  Raises Malformed."""
    data, fds, _, _ = socket.recv_fds(border, 4, MAX_FDS)
    size = struct.unpack("!I", data)[0] if len(data) == 4 else 0
    if not 0 < size <= MAX_MESSAGE:
        raise Malformed("the master did not say how to work")
    body = b""
    while len(body) < size:
        piece = border.recv(size - len(body))
        if not piece:
            raise Malformed("the master went away")
        body += piece
    message, _, _ = decode(body)
    if not isinstance(message, Start | StartClient):
        raise Malformed("the master did not say how to work")
    return message, fds


def raise_fd_limit() -> int:
    """Allow as many open files as the system lets this process have; return their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def within_fd_limit(settings: Start, files: int) -> Start:
    """Return the settings with no more connections than so many open files allow.

    Else strangers would use up the files, and each further connection be an error of ours.
    """
    reserve = OWN_FILES + settings.tcp_listeners * BACKLOG
    room = max(files - reserve, files // 2)
    if settings.connections <= room:
        return settings
    log.warning("fewer connections than configured: raise LimitNOFILE (ulimit -n)", count=room)
    return replace(settings, connections=room)


if __name__ == "__main__":
    sys.exit(main())
