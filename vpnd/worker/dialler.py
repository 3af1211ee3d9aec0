"""Opens a TLS connection to a server: its name resolved, its addresses raced, the right one wins.

The resolver of this host may be reached through the tunnel alone (systemd-resolved is another
user than we are), and does not answer while the tunnel is lost.  So a name is resolved again at
every try, but where addresses are known that worked, a resolver that fails or is slow is not
waited for.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address

from vpnd import log
from vpnd.protocol.client_channel import ClientChannel
from vpnd.protocol.tls_client import ServerNotTrusted, TlsClientStream, client_context
from vpnd.worker.client_stream import ConnectionFailed, ServerConnection
from vpnd.worker.messages import RemoteEntry, StartClient

DIAL_TIMEOUT = 15.0  # seconds to resolve, race the addresses, and finish TLS
HAPPY_EYEBALLS_DELAY = 0.25  # seconds, RFC 8305 section 8
RESOLVER_PATIENCE = 1.0  # seconds, where addresses are known that worked
ANSWER_AGE = 30.0  # seconds that a late answer of the resolver is good for, the longest wait
MAX_ADDRESSES = 16  # of one name
MAX_NAMED = 4  # of them in a message


class Dialler:
    """Makes connections whose TLS stands and whose server is the right one."""

    def __init__(self, settings: StartClient, *, chacha_first: bool) -> None:
        self._worked: dict[str, list[str]] = {}  # addresses by name, the last that did first
        self._asked: dict[str, tuple[float, asyncio.Future[list[str]]]] = {}
        self._settings = settings
        self._chacha_first = chacha_first
        self.show(settings.renewed_pem or settings.certificate_pem)

    def show(self, certificate_pem: str) -> None:
        """Show this certificate from now on; it is for the same key.  Raises ConfigError."""
        settings = self._settings
        self._contexts = {
            remote.ca_pem: client_context(
                ca_pem=remote.ca_pem,
                certificate_pem=certificate_pem,
                key_pem=settings.key_pem,
                allow_tls12=settings.allow_tls12,
                chacha_first=self._chacha_first,
            )
            for remote in settings.remotes
        }

    def worked(self, host: str) -> list[str]:
        """Return the addresses of a name among which one was the right server's."""
        return list(self._worked.get(host, ()))

    def remember(self, host: str, addresses: Sequence[str]) -> None:
        """Take over what another Dialler's `worked` returned."""
        self._worked[host] = list(addresses)

    async def dial(self, remote: RemoteEntry, host: str, port: int) -> ServerConnection:
        """Return a connection to `host`, which must be the server that `remote` describes.

        Raises ServerNotTrusted, another ProtocolError, ConnectionFailed, OSError or TimeoutError.
        """
        async with asyncio.timeout(DIAL_TIMEOUT):
            addresses = await self._addresses(host)
            connection = await self._race(remote, host, port, addresses)
        first = connection.address[0]
        self._worked[host] = [first, *(other for other in addresses if other != first)]
        return connection

    # names

    async def _addresses(self, host: str) -> list[str]:
        if _is_address(host):
            return [host]
        worked = self._worked.get(host)
        answer = self._resolving(host)
        try:
            async with asyncio.timeout(RESOLVER_PATIENCE if worked else None):
                found = await asyncio.shield(answer)
        except (OSError, ConnectionFailed) as exc:
            if not worked:
                raise
            said = explain(exc, host)
            log.event("going to the addresses that worked before", name=host, reason=said)
            return worked
        finally:
            if answer.done():
                del self._asked[host]
        return found

    def _resolving(self, host: str) -> asyncio.Future[list[str]]:
        """Return the answer to come, or one that came late; one question at a time."""
        now = time.monotonic()
        asked_at, answer = self._asked.get(host, (0.0, None))
        if answer is None or (answer.done() and now - asked_at > ANSWER_AGE):
            answer = resolve(host)
            self._asked[host] = now, answer
        return answer

    # addresses

    async def _race(
        self, remote: RemoteEntry, host: str, port: int, addresses: Sequence[str]
    ) -> ServerConnection:
        """Try one address after the other without waiting long; the first right server wins."""
        waiting = list(addresses)
        running: dict[asyncio.Task[ServerConnection], str] = {}
        failures: dict[str, Exception] = {}
        winner: ServerConnection | None = None
        try:
            while winner is None and (waiting or running):
                if waiting:
                    address = waiting.pop(0)
                    one = asyncio.create_task(self._try(remote, host, port, address))
                    running[one] = address
                done, _ = await asyncio.wait(
                    running,
                    timeout=HAPPY_EYEBALLS_DELAY if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task in done:
                    address, trouble = running.pop(task), task.exception()
                    if isinstance(trouble, Exception):
                        failures[address] = trouble
                    elif winner is None:
                        winner = task.result()
                    else:
                        task.result().close()
        finally:
            for task in running:
                task.cancel()
                task.add_done_callback(_close_loser)
        if winner is None:
            raise _summary(host, {each: failures[each] for each in addresses})
        return winner

    async def _try(
        self, remote: RemoteEntry, host: str, port: int, address: str
    ) -> ServerConnection:
        def make() -> ServerConnection:
            tls = TlsClientStream(
                self._contexts[remote.ca_pem],
                server_name=remote.server_name or host,
                pins=remote.pins,
            )
            return ServerConnection(tls, ClientChannel(host, port))

        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(make, address, port)
        try:
            await connection.secured()
        except BaseException:
            connection.close()
            raise
        return connection


def _close_loser(task: asyncio.Task[ServerConnection]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def resolve(host: str) -> asyncio.Future[list[str]]:
    """Return the addresses of a name, to come; ConnectionFailed or OSError if there are none.

    The thread is one that nobody waits for: a dead resolver must not keep a client from ending.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()
    answer.add_done_callback(asyncio.Future.exception)  # it may come when nobody waits any more

    def work() -> None:
        found: list[str] = []
        trouble: Exception | None = None
        try:
            entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            found = in_turns(str(entry[4][0]) for entry in entries)
        except OSError as exc:
            trouble = exc
        except UnicodeError:
            trouble = ConnectionFailed(f"{host[:80]!r} is no name of a server")
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_settle, answer, found, trouble)

    threading.Thread(target=work, name="resolver", daemon=True).start()
    return answer


def _settle(
    answer: asyncio.Future[list[str]], found: list[str], trouble: Exception | None
) -> None:
    if not answer.done():
        answer.set_result(found) if trouble is None else answer.set_exception(trouble)


def in_turns(addresses: Iterable[str]) -> list[str]:
    """Return addresses with the families in turns, RFC 8305 section 4, each address once."""
    once = list(dict.fromkeys(addresses))[:MAX_ADDRESSES]
    first_is_v6 = bool(once) and ":" in once[0]
    first = [each for each in once if (":" in each) == first_is_v6]
    second = [each for each in once if (":" in each) != first_is_v6]
    turns: list[str] = []
    while first or second:
        turns += first[:1] + second[:1]
        first, second = first[1:], second[1:]
    return turns


def _summary(host: str, failures: Mapping[str, Exception]) -> Exception:
    """Return the one trouble that says what all of them say."""
    for trouble in failures.values():
        if isinstance(trouble, ServerNotTrusted):
            return trouble
    texts = {address: explain(trouble, host) for address, trouble in failures.items()}
    if len(set(texts.values())) == 1:
        return next(iter(failures.values()))
    told = [f"{address} ({text})" for address, text in texts.items()]
    rest = f" and {len(told) - MAX_NAMED} more" if len(told) > MAX_NAMED else ""
    return ConnectionFailed(f"no address of {host} works: {', '.join(told[:MAX_NAMED])}{rest}")


def explain(trouble: Exception, host: str) -> str:
    """Return why a try to reach `host` failed, for a person."""
    if isinstance(trouble, socket.gaierror):
        return f"the name {host} is not resolved: {trouble.strerror}"
    if isinstance(trouble, OSError) and trouble.errno:
        return os.strerror(trouble.errno)
    return str(trouble) or "no answer in time"
