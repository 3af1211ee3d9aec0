"""What a status tells of the worker, in vpnctl's words; both roles have one."""

import asyncio
from typing import Protocol

from vpnd.ipc import api
from vpnd.worker.control import PeerGone
from vpnd.worker.messages import Message, StatusQuery, StatusReply

STATUS_TIMEOUT = 5.0  # seconds for the worker's figures; without them the rest is shown


class WorkerLink(Protocol):
    """The worker, as far as a status needs it."""

    @property
    def is_ready(self) -> bool: ...

    async def ask(self, message: Message) -> Message:
        """Raises PeerGone."""
        ...


async def figures(worker: WorkerLink) -> StatusReply:
    """Return the living figures, none where the worker does not answer."""
    try:
        reply = await asyncio.wait_for(worker.ask(StatusQuery()), STATUS_TIMEOUT)
    except (PeerGone, TimeoutError):
        reply = None
    return reply if isinstance(reply, StatusReply) else StatusReply([], {}, [])


def offloads(living: StatusReply, tun_refusal: str) -> list[api.Offload]:
    """Return how the kernel's batches are used; `tun_refusal` is why the TUN gives none, or ""."""
    return [
        api.Offload("TUN TSO", "off" if tun_refusal else "on", tun_refusal),
        *(
            api.Offload(entry.name, "on" if entry.on else "off", entry.reason)
            for entry in living.offloads
        ),
    ]
