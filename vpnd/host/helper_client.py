"""vpnd's end of the connection to the privileged helper.

The connection stands for the host state: the helper undoes everything once its last copy is
closed.  Requests are answered one at a time, in order.

A connection that the service manager kept over a restart is *resumed*.  The process before may
have died at any moment: half a request may be on its way, and answers that nobody has read.
RESUME voids the first; the second are passed over until the token of our own Hello comes back.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import secrets
import socket
import struct
import sys
import termios
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from helper.messages import (
    MAX_FDS,
    RESUME,
    BadFrame,
    FrameReader,
    Hello,
    OpenSockets,
    OpenTun,
    Refused,
    Request,
    SetFirewall,
    SetLink,
    Undo,
    encode,
)
from vpnd.errors import HelperError, RestartNeeded, VpnError

READ_SIZE = 64 * 1024
FD = struct.Struct("i")
ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_FDS * FD.size)
UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
CHANGE_TIMEOUT_S = 60.0  # thousands of routes, or nft on a busy host
RESUME_TIMEOUT_S = 20.0  # what was asked before may still be under way; giving up undoes all
UNCLAIMED_S = 0.5  # for our own answer to follow a refusal that was perhaps another's
UNREAD_INTERVAL_S = 0.01  # between two looks whether the helper has read everything
OTHER_VERSION = "helper speaks protocol "  # so a helper of any version begins such a refusal

Answer = tuple[Mapping[str, Any], list[int]]


class HelperClient:
    """One interface's connection to the helper; made by `connect`."""

    adopted: bool
    """Whether the helper, restarted, still had this interface's state and kept it."""

    firewall_backends: tuple[str, ...]
    """The backends that work on this host, best first."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.adopted = False
        self.firewall_backends = ()
        self._socket = sock
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._reader = FrameReader()
        self._fds: list[int] = []
        self._sending = asyncio.Lock()
        self._answers: deque[asyncio.Future[Answer]] = deque()  # asked and not answered yet
        self._token = ""  # while set, answers without it are those that nobody read
        self._unclaimed = ""  # the last refusal among those
        self._closed = asyncio.Event()
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @classmethod
    async def connect(cls, path: str, interface: str, *, timeout_s: float = 5.0) -> Self:
        """Return a connection that speaks for `interface`; raise HelperError when refused."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(sock, path), timeout_s)
            _require_root(sock, path)
        except (OSError, TimeoutError) as exc:
            sock.close()
            raise HelperError(_explained(path, exc)) from exc
        except HelperError:
            sock.close()
            raise
        client = cls(sock, path)
        await client._greet(interface, timeout_s)
        return client

    @classmethod
    async def resume(
        cls, fd: int, path: str, interface: str, *, timeout_s: float = RESUME_TIMEOUT_S
    ) -> Self:
        """Return the connection `fd`, kept over a restart, after whatever was said on it before.

        Takes the descriptor.  Raises HelperError when the helper is gone, or does not go on with
        it: connect then.  Another copy of the connection keeps the host's state meanwhile.
        """
        try:
            sock = socket.socket(fileno=fd)
        except OSError as exc:
            os.close(fd)
            raise HelperError(f"{path}: no socket was kept ({exc.strerror})") from exc
        sock.setblocking(False)
        try:
            _require_root(sock, path)
        except HelperError:
            sock.close()
            raise
        client = cls(sock, path)
        client._token = secrets.token_hex(16)
        try:
            async with asyncio.timeout(timeout_s):
                while _unread(sock) and not client.is_closed:  # noqa: ASYNC110 - no event says
                    await asyncio.sleep(UNREAD_INTERVAL_S)
        except (OSError, TimeoutError) as exc:
            client.close()
            raise HelperError(_explained(path, exc)) from exc
        await client._greet(interface, timeout_s)
        return client

    async def _greet(self, interface: str, timeout_s: float) -> None:
        """Say Hello; close when it is not answered as it should be."""
        hello, prefix = Hello(interface, token=self._token), RESUME if self._token else b""
        try:
            facts, _ = await self._ask(lambda: hello, timeout_s, prefix=prefix)
        except BaseException as exc:
            self.close()
            if self._unclaimed or OTHER_VERSION in str(exc):
                raise _refusal(self._unclaimed or str(exc)) from exc
            raise
        self.adopted = bool(facts["adopted"])
        self.firewall_backends = tuple(facts["firewall_backends"])

    def fileno(self) -> int:
        """Return the connection's descriptor, for the service manager to keep a copy of."""
        return self._socket.fileno()

    async def open_tun(self, *, queues: int, tx_queue_len: int) -> list[int]:
        """Make the interface; return one non-blocking fd for each queue, the caller's to close.

        Each was made with a virtio-net header, without packet information.  The interface is down
        until `set_link`, and ends with the last of its fds.
        """
        _, fds = await self._ask(lambda: OpenTun(queues, tx_queue_len))
        return self._exactly(fds, queues)

    async def open_sockets(
        self, listen: Sequence[tuple[str, int]], *, udp_per_address: int, buffer_bytes: int
    ) -> list[tuple[int, list[int]]]:
        """Return (listening TCP fd, its UDP fds) for each (address, port); the caller's to close.

        All are non-blocking; the UDP sockets of one address are one SO_REUSEPORT group.
        """
        wanted = tuple((address, port) for address, port in listen)
        _, fds = await self._ask(lambda: OpenSockets(wanted, udp_per_address, buffer_bytes))
        step = 1 + udp_per_address
        self._exactly(fds, step * len(wanted))
        groups = [fds[start : start + step] for start in range(0, len(fds), step)]
        return [(group[0], group[1:]) for group in groups]

    async def set_link(
        self,
        *,
        mtu: int,
        addresses: Sequence[str],
        routes: Sequence[str] = (),
        forwarding: bool,
        exclude: Sequence[str] = (),
        keep_outside: bool = False,
        block_ipv6: bool = False,
    ) -> None:
        """Bring the interface to exactly this state, and up.

        `addresses` are "address/length", `routes` prefixes through the interface.  With
        `forwarding` the host forwards between it and the links that carry routes now: ask again
        when those change, and set the firewall first.

        With `keep_outside` every user but the calling one goes by the interface's own routes
        before the host's, and so does what is forwarded: the prefixes in `routes` go inside, other
        links' networks too unless they are in `exclude`.  `block_ipv6` makes all other IPv6
        unreachable; it may stay on beside a route to ::/0, which goes first.  Ask again when links
        came or went: their strict rp_filter is loosened.
        """
        where = tuple(addresses), tuple(routes), forwarding, tuple(exclude)
        await self._ask(lambda: SetLink(mtu, *where, keep_outside, block_ipv6))

    async def set_firewall(
        self,
        *,
        networks: Sequence[str],
        masquerade: bool,
        clamp_mss: bool,
        client_to_client: bool,
    ) -> str:
        """Put exactly these rules in force; return the name of the backend that did."""
        rules = (tuple(networks), masquerade, clamp_mss, client_to_client)
        facts, _ = await self._ask(lambda: SetFirewall(*rules))
        return str(facts["backend"])

    async def undo(self) -> None:
        """Take back everything; the connection stays and may begin anew."""
        await self._ask(Undo)

    @property
    def is_closed(self) -> bool:
        """Whether the helper is gone, or `close` was called."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """Return when the helper is gone, or `close` was called."""
        await self._closed.wait()

    def close(self) -> None:
        """Close this copy of the connection: if it is the last, the helper undoes everything."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        _close_fds(self._fds)
        for answer in self._answers:
            if not answer.done():
                answer.set_exception(HelperError(f"{self._path}: the helper is gone; {_START}"))

    async def _ask(
        self,
        make: Callable[[], Request],
        timeout_s: float = CHANGE_TIMEOUT_S,
        *,
        prefix: bytes = b"",
    ) -> Answer:
        """Send the request that `make` returns; return fields and fds of its answer."""
        try:
            data = prefix + encode(make())
        except Refused as exc:
            raise HelperError(str(exc)) from exc
        if self._closed.is_set():
            raise HelperError(f"{self._path}: the helper is gone; {_START}")
        try:
            async with asyncio.timeout(timeout_s):
                async with self._sending:
                    self._answers.append(self._loop.create_future())
                    answer = self._answers[-1]
                    with contextlib.suppress(OSError):  # a refusal may be waiting to be read
                        await self._loop.sock_sendall(self._socket, data)
                return await answer
        except TimeoutError as exc:
            self.close()
            fix = "look at its log (journalctl -u pyvpn-helper)"
            raise HelperError(f"{self._path}: no answer within {timeout_s:g} s; {fix}") from exc

    def _on_readable(self) -> None:
        try:  # socket.recv_fds forgets its flags
            flags = socket.MSG_CMSG_CLOEXEC
            data, ancillary, _, _ = self._socket.recvmsg(READ_SIZE, ANCILLARY_SIZE, flags)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        for _, _, packed in ancillary:  # SCM_RIGHTS is all that can come unasked
            self._fds.extend(
                fd for (fd,) in FD.iter_unpack(packed[: len(packed) // FD.size * FD.size])
            )
        try:
            for payload in self._reader.receive(data):
                self._take(json.loads(payload))
        except (BadFrame, ValueError):
            self.close()
        if not data:
            self.close()

    def _take(self, answer: Mapping[str, Any]) -> None:
        fds, self._fds = self._fds, []
        if self._token and not self._is_claimed(answer):
            _close_fds(fds)
            return
        self._token = ""
        asked = self._answers.popleft() if self._answers else None
        if asked is None or asked.done():  # nobody waits for it any more
            _close_fds(fds)
        elif "error" in answer:
            _close_fds(fds)
            asked.set_exception(HelperError(f"helper: {answer['error']}"))
        else:
            asked.set_result((answer["ok"], fds))

    def _is_claimed(self, answer: Mapping[str, Any]) -> bool:
        """Return whether this is the answer to our own first request.

        A refusal carries no token: whether it is ours shows when no other answer comes.
        """
        if "error" not in answer:
            return bool(answer["ok"].get("token") == self._token)
        self._unclaimed = str(answer["error"])
        if self._unclaimed.startswith(OTHER_VERSION):
            return True
        self._loop.call_later(UNCLAIMED_S, self._give_up)
        return False

    def _give_up(self) -> None:
        if self._token:
            self.close()

    def _exactly(self, fds: list[int], count: int) -> list[int]:
        if len(fds) != count:  # out of file descriptors: the kernel drops what does not fit
            _close_fds(fds)
            fix = "raise LimitNOFILE (ulimit -n)"
            raise HelperError(f"{self._path}: {len(fds)} of {count} descriptors arrived; {fix}")
        return fds


_START = "start pyvpn-helper (systemctl start pyvpn-helper, or pyvpn-helper as root)"


def _refusal(reason: str) -> VpnError:
    """Return what a refused Hello is raised as."""
    if OTHER_VERSION in reason:
        return RestartNeeded(reason.removeprefix("helper: "))
    return HelperError(f"helper: {reason}")


def _unread(sock: socket.socket) -> int:
    """Return the bytes that the other end has not read yet (SIOCOUTQ, unix(7))."""
    count = fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(FD.size))
    return int.from_bytes(count, sys.byteorder)


def _explained(path: str, exc: Exception) -> str:
    match exc:
        case FileNotFoundError() | ConnectionRefusedError():
            return f"{path}: helper not running; {_START}"
        case PermissionError():
            return f"{path}: permission denied; run vpnd as user pyvpn, or see its SocketGroup="
    return f"{path}: cannot be reached ({str(exc) or 'timed out'}); {_START}"


def _require_root(sock: socket.socket, path: str) -> None:
    """Raise HelperError unless root listens: nobody else may hand us an interface."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
    _, uid, _ = UCRED.unpack(data)
    if uid:
        raise HelperError(f"{path}: user id {uid} listens there, not root; check helper.socket")


def _close_fds(fds: list[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
