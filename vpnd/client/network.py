"""The client's host state, through the helper: TUN, addresses, routes.

The connection to the helper stands for all of it.  If the helper goes away, traffic goes on;
it is asked again until it is back, and then told the whole wanted state once more.  While the
server is not reached everything stays as it is: what was to go through the tunnel waits.

systemd keeps copies of the connection (`helper`) and the TUN queue (`tun-0`): after a restart
they are taken back, and the routes were there all the time.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from vpnd import log
from vpnd.dataplane.tun_queue import enable_offload
from vpnd.errors import HelperError
from vpnd.host.addresses import own_addresses
from vpnd.host.helper_client import HelperClient
from vpnd.host.inherited import tun_interface
from vpnd.host.systemd import Kept
from vpnd.policy.split_tunnel import Link

TX_QUEUE_LEN = 500  # packets between kernel and worker, as on the server
RETRY_DELAY = 1.0  # seconds between two tries to reach a helper that went away
NUMBERS = range(10, 1000)  # of clients' interfaces; the lower ones are servers'
HELPER, TUN = "helper", "tun-0"  # names of what is kept over a restart
MAX_TRIES = 16  # interfaces that others take while we look for a free one


class Network:
    """Brings the client's network up and keeps it so."""

    def __init__(
        self,
        helper_socket: Path,
        interface: str,
        kept: Kept,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called when the helper went away, and when it is back."""
        self._kept = kept
        self._on_change = on_change
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

    @property
    def has_helper(self) -> bool:
        return self._helper is not None and not self._helper.is_closed

    async def up(self) -> int:
        """Make the interface, or take it back; return its TUN queue, the caller's.

        Raises HelperError, and RestartNeeded for a helper of another version.
        """
        tun = await self._kept_tun()
        if tun is None:
            helper = await self._connect_first()
        else:
            helper = await self._kept_helper()
            if not helper.adopted:  # it was undone meanwhile
                os.close(tun)
                tun = None
                await self._forget(TUN)
        self._helper = helper
        if tun is None:
            (tun,) = await helper.open_tun(queues=1, tx_queue_len=TX_QUEUE_LEN)
            self._kept.put(TUN, tun)
        try:
            enable_offload(tun)
        except OSError as exc:
            self.offload_reason = f"refused by the kernel ({exc.strerror})"
        return tun

    async def _kept_tun(self) -> int | None:
        """Return the TUN queue from before; without the right one, forget whose it was, too."""
        tun = self._kept.take(TUN)
        interface = "" if tun is None else tun_interface(tun)
        if interface and self._wanted_interface in {"", interface}:
            self.interface = interface
            return tun
        if tun is not None:
            os.close(tun)
        await self._forget(TUN, HELPER)
        return None

    async def _kept_helper(self) -> HelperClient:
        """Return the connection from before, or another for the same interface."""
        fd = self._kept.take(HELPER)
        if fd is not None:
            try:
                return await HelperClient.resume(fd, self._path, self.interface)
            except HelperError as exc:
                log.warning("the connection to the helper does not go on", error=str(exc))
                await self._forget(HELPER)
        return await self._connect(self.interface)

    async def _forget(self, *names: str) -> None:
        for name in names:
            self._kept.drop(name)
        await self._kept.settled()  # the kernel lets go of the interface with the last copy

    async def _connect(self, interface: str) -> HelperClient:
        helper = await HelperClient.connect(self._path, interface)
        self._kept.put(HELPER, helper.fileno())
        return helper

    async def _connect_first(self) -> HelperClient:
        """Return a connection for the wanted interface, or for the first that is free."""
        if self._wanted_interface:
            if self._wanted_interface in _links():
                raise HelperError(
                    f"interface {self._wanted_interface} is there already: end what uses it, "
                    "or set another network.interface"
                )
            return await self._connect(self._wanted_interface)
        refusal: HelperError | None = None
        for number, name in enumerate(_free_interfaces()):
            try:
                helper = await self._connect(name)
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
            self._on_change()
            self._helper = await self._return(by_script=by_script)
            log.event("the helper is back", interface=self.interface)
            self._on_change()

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
                    helper = await self._connect(self.interface)
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
