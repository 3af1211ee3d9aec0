"""The server's host state, through the helper: TUN, sockets, link, firewall, forwarding.

The connection to the helper stands for all of it.  If the helper goes away, traffic goes
on; it is asked again until it is back, and then told the whole wanted state once more.
"""

import asyncio
import os
from contextlib import suppress
from dataclasses import dataclass, field

from vpnd import log
from vpnd.config.model import ServerConfig
from vpnd.dataplane.tun_queue import TCP_OFFLOAD, set_offload
from vpnd.errors import HelperError
from vpnd.host.helper_client import HelperClient
from vpnd.policy.leases import Pool

# Packets, or superpackets, between kernel and worker; the kernel's own default.  64 lost packets
# of a 1000 a second stream whenever the worker had to wait 64 ms for a processor.
TX_QUEUE_LEN = 500
SOCKET_BUFFER = 4 * 1024 * 1024  # bytes a UDP socket may hold: 20 ms at 1.6 Gb/s
RETRY_DELAY = 1.0  # seconds between two tries to reach a helper that went away


@dataclass(slots=True)
class Descriptors:
    """What the helper opened for us; the master keeps them, workers get copies."""

    tun: int
    tcp: list[int] = field(default_factory=list)
    udp: list[int] = field(default_factory=list)

    def all(self) -> list[int]:
        return [self.tun, *self.tcp, *self.udp]

    def close(self) -> None:
        for fd in self.all():
            os.close(fd)


class Network:
    """Brings the server's network up and keeps it so."""

    def __init__(self, config: ServerConfig, pool: Pool) -> None:
        self._config = config
        self._pool = pool
        self._helper: HelperClient | None = None
        self.firewall_backend = ""
        self.offload_reason = ""
        """Why the TUN gives no superpackets; empty when it does."""

    @property
    def addresses(self) -> list[str]:
        """The server's inner addresses with their prefix lengths."""
        networks = (self._pool.ipv4, self._pool.ipv6)
        return [
            f"{address}/{network.prefixlen}"
            for address, network in zip(self._pool.server_addresses(), networks, strict=True)
            if address is not None and network is not None
        ]

    @property
    def listen(self) -> list[tuple[str, int]]:
        server = self._config.server
        return [(str(address), server.port) for address in server.addresses]

    async def up(self) -> Descriptors:
        """Make the interface and the sockets; return them.  Raises HelperError."""
        helper = await self._connect()
        self._helper = helper
        (tun,) = await helper.open_tun(queues=1, tx_queue_len=TX_QUEUE_LEN)
        descriptors = Descriptors(tun)
        try:
            set_offload(tun, TCP_OFFLOAD)
        except OSError as exc:
            self.offload_reason = f"refused by the kernel ({exc.strerror})"
        for tcp, udp in await helper.open_sockets(
            self.listen, udp_per_address=1, buffer_bytes=SOCKET_BUFFER
        ):
            descriptors.tcp.append(tcp)
            descriptors.udp += udp
        await self._apply(helper)
        return descriptors

    async def _connect(self) -> HelperClient:
        path, interface = str(self._config.helper.socket), self._config.network.interface
        return await HelperClient.connect(path, interface)

    async def _apply(self, helper: HelperClient) -> None:
        """Tell the whole wanted state; the firewall first, so that nothing is open before."""
        networks = [str(n) for n in (self._pool.ipv4, self._pool.ipv6) if n is not None]
        self.firewall_backend = await helper.set_firewall(
            networks=networks,
            masquerade=self._config.firewall.masquerade,
            clamp_mss=self._config.firewall.clamp_mss,
            client_to_client=self._config.network.client_to_client,
        )
        await helper.set_link(
            mtu=self._config.network.mtu, addresses=self.addresses, forwarding=True
        )

    async def change(self, config: ServerConfig) -> None:
        """Put in force what a configuration says anew of firewall and link.

        A helper that is gone is told when it is back.  Raises HelperError where it refuses,
        and then nothing has changed.
        """
        before, self._config = self._config, config
        helper = self._helper
        if _changeable(before) == _changeable(config) or helper is None or helper.is_closed:
            return
        try:
            await self._apply(helper)
        except HelperError:
            self._config = before
            with suppress(HelperError):
                await self._apply(helper)
            raise

    async def keep(self) -> None:
        """Come back to the helper whenever it was gone; runs until cancelled."""
        assert self._helper is not None
        while True:
            await self._helper.wait_closed()
            log.warning("the helper is gone, traffic goes on without changes")
            self._helper = await self._return()
            log.event("the helper is back", interface=self._config.network.interface)

    async def _return(self) -> HelperClient:
        """Return a connection that stands for our state again.

        A refused change does not close the connection: that would undo what still works.
        """
        helper: HelperClient | None = None
        said = ""
        while True:
            await asyncio.sleep(RETRY_DELAY)
            try:
                if helper is None or helper.is_closed:
                    helper = await self._connect()
                await self._apply(helper)
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


def _changeable(config: ServerConfig) -> tuple[object, ...]:
    """Return all that the helper is told more than once."""
    network = config.network
    return (config.firewall, network.client_to_client, network.mtu)
