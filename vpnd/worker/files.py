"""How many files a worker may have open, and so how many connections."""

import resource
from dataclasses import replace

from vpnd import log
from vpnd.worker.messages import Start

BACKLOG = 512  # connections that may wait to be accepted; asyncio takes so many in one turn
OWN_FILES = 128  # TUN queues, listeners, UDP sockets, the border, libraries


def fd_limit() -> int:
    """Return how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


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
