"""A vpnc-script: a program that sets up the interface from its environment.

The interface of OpenConnect's scripts, so that those of others work: `reason` says what
happened, the other names what the server gave.  The program is run by its name alone, without a
shell, and every value was checked before it gets here.  It has the rights of vpnd, which are none:
the helper runs no programs of others, so a script that changes the network must ask somebody else.
"""

import asyncio
import os
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

from vpnd import log
from vpnd.errors import HelperError
from vpnd.policy.split_tunnel import Link, Network
from vpnd.worker.messages import LinkUp

TIMEOUT_S = 60.0  # for one run; then it is killed
KEPT = ("PATH", "LANG", "LC_ALL", "TZ")  # of our own environment


class Script:
    """One script, run in order: pre-init, connect, attempt-reconnect, reconnect, disconnect."""

    def __init__(self, path: Path, interface: str) -> None:
        if not os.access(path, os.X_OK):
            raise HelperError(f"{path}: no program that can be run; chmod it, or name another")
        self._path = path
        self._interface = interface
        self._environment: dict[str, str] = {}
        self._connected = False

    async def prepare(self) -> None:
        """Run it before anything is set up."""
        await self._run("pre-init")

    async def connected(self, up: LinkUp, link: Link) -> None:
        """Run it with what the server gave.  Raises HelperError when it fails at first."""
        again, self._connected = self._connected, True
        self._environment = environment(up, link)
        status = await self._run("reconnect" if again else "connect")
        if status != 0 and not again:
            raise HelperError(
                f"{self._path}: ended with {status}; its output above says why (it runs without"
                " privileges, and must hand on what needs them; or go without --script)"
            )

    async def reconnecting(self) -> None:
        """Run it when the connection was lost."""
        if self._connected:
            await self._run("attempt-reconnect")

    async def disconnect(self) -> None:
        """Run it at the end, if it ever was told of a connection."""
        if self._connected:
            self._connected = False
            await self._run("disconnect")

    async def _run(self, reason: str) -> int:
        own = {name: os.environ[name] for name in KEPT if name in os.environ}
        names = {"reason": reason, "TUNDEV": self._interface, "VPNPID": str(os.getpid())}
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._path),
                stdin=asyncio.subprocess.DEVNULL,
                env=own | self._environment | names,
            )
        except OSError as exc:
            raise HelperError(f"{self._path}: cannot be run ({exc.strerror})") from exc
        try:
            status = await asyncio.wait_for(process.wait(), TIMEOUT_S)
        except BaseException as exc:
            process.kill()
            await process.wait()
            if not isinstance(exc, TimeoutError):
                raise
            status = -9
        if status:
            log.warning("script failed", name=self._path.name, reason=reason, exit_status=status)
        return status


def environment(up: LinkUp, link: Link) -> dict[str, str]:
    """Return what a script is told of a connection; `link` is the server's offer, checked."""
    names = {
        "VPNGATEWAY": gateway(up.remote),
        "INTERNAL_IP4_MTU": str(link.mtu),
        "INTERNAL_IP4_DNS": " ".join(_addresses(up.dns)),
        "CISCO_DEF_DOMAIN": _domain(up.default_domain),
        "CISCO_BANNER": "".join(c if c.isprintable() else " " for c in up.banner),
    }
    if up.address4:
        network = ip_interface(f"{up.address4}/{up.prefix4}").network
        names["INTERNAL_IP4_ADDRESS"] = up.address4
        names["INTERNAL_IP4_NETMASK"] = str(network.netmask)
        names["INTERNAL_IP4_NETMASKLEN"] = str(network.prefixlen)
        names["INTERNAL_IP4_NETADDR"] = str(network.network_address)
    if up.address6:
        names["INTERNAL_IP6_ADDRESS"] = up.address6
        names["INTERNAL_IP6_NETMASK"] = f"{up.address6}/{up.prefix6}"
    names |= dict(_routes("INC", [n for n in link.routes if ip_network(n).prefixlen]))
    names |= dict(_routes("EXC", link.exclude))
    return {name: value for name, value in names.items() if value}


def gateway(remote: str) -> str:
    """Return the bare address of "192.0.2.1:443", "[2001:db8::1]:443" or an address, or ""."""
    for text in (remote, remote.rpartition(":")[0]):
        try:
            return str(ip_address(text.strip("[]")))
        except ValueError:
            continue
    return ""


def _routes(kind: str, networks: Sequence[str]) -> Iterator[tuple[str, str]]:
    parsed: list[Network] = [ip_network(text) for text in networks]
    for version, prefix in ((4, "CISCO_SPLIT_"), (6, "CISCO_IPV6_SPLIT_")):
        some = [network for network in parsed if network.version == version]
        if some:
            yield f"{prefix}{kind}", str(len(some))
        for number, network in enumerate(some):
            name = f"{prefix}{kind}_{number}"
            yield f"{name}_ADDR", str(network.network_address)
            yield f"{name}_MASKLEN", str(network.prefixlen)
            if network.version == 4:
                yield f"{name}_MASK", str(network.netmask)


def _addresses(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        try:
            yield str(ip_address(text))
        except ValueError:
            continue


def _domain(text: str) -> str:
    """Return only such words of a domain list as can be no shell's business."""
    allowed = "-._"
    words = text.split()
    return " ".join(
        w for w in words if w.isascii() and all(c.isalnum() or c in allowed for c in w)
    )
