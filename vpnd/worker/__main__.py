"""`python -m vpnd.worker FD`: started by the master, never by hand."""

import asyncio
import signal
import socket
import struct
import sys

from vpnd import log
from vpnd.errors import Malformed, VpnError
from vpnd.host.process import harden
from vpnd.worker.client_worker import ClientWorker
from vpnd.worker.control import MAX_FDS, MAX_MESSAGE, decode_start
from vpnd.worker.files import raise_fd_limit, within_fd_limit
from vpnd.worker.messages import Start, StartClient
from vpnd.worker.worker import Worker


def main() -> int:
    """Receive how to work from the master, then work until it says stop."""
    border = socket.socket(fileno=int(sys.argv[1]))
    # Ctrl-C reaches the whole group: the master decides when a worker ends
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    harden()
    files = raise_fd_limit()
    try:
        settings, fds = receive_start(border)
        log.setup(settings.log_level, anonymise=settings.log_anonymise)
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
    """Return the first message and the descriptors beside it.

    Raises Malformed, or RestartNeeded when the master is of another version.
    """
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
    return decode_start(body), fds


if __name__ == "__main__":
    sys.exit(main())
