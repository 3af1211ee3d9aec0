"""The client's host state, through the helper: TUN, addresses, routes.

The connection to the helper stands for all of it.  If the helper goes away, traffic goes on;
it is asked again until it is back, and then told the whole wanted state once more.  While the
server is not reached everything stays as it is: what was to go through the tunnel waits.
"""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

from vpnd import log
from vpnd.dataplane.tun_queue import TCP_OFFLOAD, set_offload
from vpnd.errors import HelperError
from vpnd.host.addresses import own_addresses
from vpnd.host.helper_client import HelperClient
from vpnd.policy.split_tunnel import Link

TX_QUEUE_LEN = 500  # packets between kernel and worker, as on the server
RETRY_DELAY = 1.0  # seconds between two tries to reach a helper that went away
NUMBERS = range(10, 1000)  # of clients' interfaces; the lower ones are servers'
MAX_TRIES = 16  # interfaces that others take while we look for a free one


class Network:
    """Brings the client's network up and keeps it so."""

    def __init__(self, helper_socket: Path, interface: str = "") -> None:
        self._path = str(helper_socket)
        self._wanted_interface = interface
        self._helper: HelperClient | None = None
        self._link: Link | None = None
        self._changing = asyncio.Lock()
        self.interface = interface
        self.offload_reason = ""
        """Why the TUN gives no superpackets; empty when it does."""

    @property
    def link(self) -> Link | None:
        """What is in force, None before the first connection."""
        return self._link

    async def up(self) -> int:
        """Make the interface; return its TUN queue, the caller's.  Raises HelperError."""
        self._helper = await self._connect_first()
        (tun,) = await self._helper.open_tun(queues=1, tx_queue_len=TX_QUEUE_LEN)
        try:
            set_offload(tun, TCP_OFFLOAD)
        except OSError as exc:
            self.offload_reason = f"refused by the kernel ({exc.strerror})"
        return tun

    async def _connect_first(self) -> HelperClient:
        """Return a connection for the wanted interface, or for the first that is free."""
        if self._wanted_interface:
            if self._wanted_interface in _links():
                raise HelperError(
                    f"interface {self._wanted_interface} is there already: end what uses it, "
                    "or set another network.interface"
                )
            return await HelperClient.connect(self._path, self._wanted_interface)
        refusal: HelperError | None = None
        for number, name in enumerate(_free_interfaces()):
            try:
                helper = await HelperClient.connect(self._path, name)
            except HelperError as exc:
                refusal = refusal or exc
                if number == MAX_TRIES:
                    break
            else:
                self.interface = name
                return helper
        raise refusal or HelperError("pyvpn10 to pyvpn999 are all taken: end some tunnels")

    def own_addresses(self) -> list[str]:
        """Return the host's addresses but the tunnel's, [] where the kernel does not say."""
        try:
            return own_addresses(except_link=self.interface)
        except OSError as exc:
            log.warning("the kernel does not name this host's addresses", error=str(exc))
            return []

    async def apply(self, link: Link) -> None:
        """Bring the interface to this state; nothing happens where it is so.

        Raises HelperError.
        """
        async with self._changing:
            if link != self._link and self._helper is not None:
                await self._set(self._helper, link)
            self._link = link

    def adopt(self, link: Link) -> None:
        """Take note of what somebody else, a script, has set up."""
        self._link = link

    async def renew(self) -> None:
        """Say the wanted state again: links came or went, and the helper looks at them anew."""
        async with self._changing:
            if self._link is not None and self._helper is not None:
                try:
                    await self._set(self._helper, self._link)
                except HelperError as exc:
                    log.warning("routes not renewed", error=str(exc))

    @staticmethod
    async def _set(helper: HelperClient, link: Link) -> None:
        await helper.set_link(
            mtu=link.mtu,
            addresses=link.addresses,
            routes=link.routes,
            forwarding=False,
            exclude=link.exclude,
            keep_outside=True,
            block_ipv6=link.block_ipv6,
        )

    async def keep(self, *, by_script: bool) -> None:
        """Come back to the helper whenever it was gone; runs until cancelled."""
        assert self._helper is not None
        while True:
            await self._helper.wait_closed()
            log.warning("the helper is gone, traffic goes on without changes")
            self._helper = await self._return(by_script=by_script)
            log.event("the helper is back", interface=self.interface)

    async def _return(self, *, by_script: bool) -> HelperClient:
        """Return a connection that stands for our state again.

        A refused change does not close the connection: that would undo what still works.
        """
        helper: HelperClient | None = None
        said = ""
        while True:
            await asyncio.sleep(RETRY_DELAY)
            try:
                if helper is None or helper.is_closed:
                    helper = await HelperClient.connect(self._path, self.interface)
                if self._link is not None and not by_script:
                    await self._set(helper, self._link)
            except HelperError as exc:
                if helper is not None and str(exc) != said:
                    log.error("the helper does not restore the network", error=str(exc))
                    said = str(exc)
                continue
            return helper

    def down(self) -> None:
        """Let the helper undo everything."""
        if self._helper is not None:
            self._helper.close()


def _free_interfaces() -> Iterator[str]:
    taken = _links()
    yield from (name for number in NUMBERS if (name := f"pyvpn{number}") not in taken)


def _links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}
