"""The server's host state, through the helper: TUN, sockets, link, firewall, forwarding.

The connection to the helper stands for all of it.  If the helper goes away, traffic goes
on; it is asked again until it is back, and then told the whole wanted state once more.

systemd keeps copies of the connection (`helper`), the TUN queue (`tun-0`) and the listening
sockets (`tcp-N`, `udp-N`).  After a restart they are taken back, as far as they fit the
configuration, which may have changed.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from vpnd import log
from vpnd.config.model import ServerConfig
from vpnd.dataplane.tun_queue import enable_offload
from vpnd.errors import HelperError
from vpnd.host.helper_client import HelperClient
from vpnd.host.inherited import Endpoint, endpoint, tun_interface
from vpnd.host.systemd import Kept
from vpnd.policy.leases import Pool

# Packets, or superpackets, between kernel and worker; the kernel's own default.  64 lost packets
# of a 1000 a second stream whenever the worker had to wait 64 ms for a processor.
TX_QUEUE_LEN = 500
SOCKET_BUFFER = 4 * 1024 * 1024  # bytes a UDP socket may hold: 20 ms at 1.6 Gb/s
RETRY_DELAY = 1.0  # seconds between two tries to reach a helper that went away
HELPER, TUN, TCP, UDP = "helper", "tun-0", "tcp-", "udp-"  # names of what is kept over a restart


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

    def __init__(
        self,
        config: ServerConfig,
        pool: Pool,
        kept: Kept,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_change` is called when the helper went away, and when it is back."""
        self._config = config
        self._pool = pool
        self._kept = kept
        self._on_change = on_change
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

    @property
    def has_helper(self) -> bool:
        return self._helper is not None and not self._helper.is_closed

    async def up(self) -> Descriptors:
        """Make the interface and the sockets, or take them back; return them.

        Raises HelperError, and RestartNeeded for a helper of another version.
        """
        tun = await self._kept_tun()
        self._helper = helper = await self._kept_helper() or await self._connect()
        if tun is not None and not helper.adopted:  # it was undone meanwhile
            os.close(tun)
            tun = None
            await self._forget(TUN)
        if tun is None:
            (tun,) = await helper.open_tun(queues=1, tx_queue_len=TX_QUEUE_LEN)
            self._kept.put(TUN, tun)
        try:
            enable_offload(tun)
        except OSError as exc:
            self.offload_reason = f"refused by the kernel ({exc.strerror})"
        sockets = await self._sockets(helper)
        self._kept.drop_rest()
        await self._apply(helper)
        return Descriptors(tun, [t for t, _ in sockets.values()], [u for _, u in sockets.values()])

    async def _kept_tun(self) -> int | None:
        """Return the TUN queue from before; without the right one, forget whose it was, too."""
        tun = self._kept.take(TUN)
        if tun is not None and tun_interface(tun) != self._config.network.interface:
            os.close(tun)
            tun = None
            await self._forget(TUN, HELPER)
        return tun

    async def _kept_helper(self) -> HelperClient | None:
        """Return the connection from before, None when there is none that goes on."""
        fd = self._kept.take(HELPER)
        if fd is None:
            return None
        path, interface = str(self._config.helper.socket), self._config.network.interface
        try:
            return await HelperClient.resume(fd, path, interface)
        except HelperError as exc:
            log.warning("the connection to the helper does not go on", error=str(exc))
            await self._forget(HELPER)
            return None

    async def _forget(self, *names: str) -> None:
        for name in names:
            self._kept.drop(name)
        await self._kept.settled()  # the kernel lets go of a name or port with the last copy

    async def _sockets(self, helper: HelperClient) -> dict[Endpoint, tuple[int, int]]:
        """Return TCP and UDP socket of each address: those kept, else new ones."""
        pairs = await self._kept_sockets()
        missing = [where for where in self.listen if where not in pairs]
        if missing:
            groups = await helper.open_sockets(
                missing, udp_per_address=1, buffer_bytes=SOCKET_BUFFER
            )
            for where, (tcp, (udp,)) in zip(missing, groups, strict=True):
                pairs[where] = tcp, udp
                number = next(n for n in itertools.count() if not self._kept.has(f"{TCP}{n}"))
                self._kept.put(f"{TCP}{number}", tcp)
                self._kept.put(f"{UDP}{number}", udp)
        return {where: pairs[where] for where in self.listen}

    async def _kept_sockets(self) -> dict[Endpoint, tuple[int, int]]:
        """Return the sockets from before whose address is still wanted; forget the others."""
        pairs: dict[Endpoint, tuple[int, int]] = {}
        unfit = []
        numbers = {name[len(TCP) :] for name in self._kept.names if name.startswith((TCP, UDP))}
        for number in numbers:
            tcp, udp = self._kept.take(TCP + number), self._kept.take(UDP + number)
            if tcp is not None and udp is not None:
                where = endpoint(tcp, socket.SOCK_STREAM)
                both = where is not None and endpoint(udp, socket.SOCK_DGRAM) == where
                if where in self.listen and where not in pairs and both:
                    pairs[where] = tcp, udp
                    continue
            unfit += [TCP + number, UDP + number]
            for fd in (tcp, udp):
                if fd is not None:
                    os.close(fd)
        if unfit:
            await self._forget(*unfit)
        return pairs

    async def _connect(self) -> HelperClient:
        path, interface = str(self._config.helper.socket), self._config.network.interface
        helper = await HelperClient.connect(path, interface)
        self._kept.put(HELPER, helper.fileno())
        return helper

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
            self._on_change()
            self._helper = await self._return()
            log.event("the helper is back", interface=self._config.network.interface)
            self._on_change()

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
