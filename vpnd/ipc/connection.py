"""One caller's connection, kept within bounds.

asyncvarlink parses and dispatches, but takes messages of any size, at any pace, and queues
answers without end for a caller who does not read them.  Here a message has a size and a time
in which it must be whole, one call is worked on at a time, and the next one is read only when
the answer to the last has been taken.  File descriptors that come along are closed unseen.
"""

import asyncio
import logging
from collections.abc import Callable

from asyncvarlink import (
    FileDescriptorArray,
    VarlinkInterfaceRegistry,
    VarlinkInterfaceServerProtocol,
    VarlinkMethodCall,
    VarlinkTransport,
)
from asyncvarlink.serviceinterface import PermissionDenied
from asyncvarlink.types import JSONObject

from vpnd import log
from vpnd.errors import VpnError
from vpnd.ipc.access import CHANGES, Caller, permits
from vpnd.ipc.api import Failed

MAX_MESSAGE = 1024 * 1024  # a call is a few hundred bytes; room for lists to come
MAX_MESSAGE_OF_STRANGER = 64 * 1024  # who may only ask for counts, and may be many
MESSAGE_TIMEOUT_S = 10.0  # from a message's first byte to its last
ANSWER_TIMEOUT_S = 10.0  # for the caller to take an answer
MAX_LOGGED_NAME = 64  # as long as a valid name

_log = logging.getLogger(__name__)


class Connection(VarlinkInterfaceServerProtocol):
    """Serve `registry` to one caller; `refused(reason)` is called when it breaks a bound."""

    def __init__(
        self,
        registry: VarlinkInterfaceRegistry,
        caller: Caller,
        *,
        is_admin: bool,
        refused: Callable[[str], None],
        message_timeout_s: float = MESSAGE_TIMEOUT_S,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        super().__init__(registry)
        self._caller = caller
        self._is_admin = is_admin
        self._refused = refused
        self._message_timeout_s = message_timeout_s
        self._answer_timeout_s = answer_timeout_s
        self._max_message = MAX_MESSAGE if is_admin else MAX_MESSAGE_OF_STRANGER
        self._partial = bytearray()
        self._deadline: asyncio.TimerHandle | None = None
        self._stream: VarlinkTransport | None = None
        self._unsent: set[asyncio.Future[None]] = set()
        self._call: asyncio.Task[None] | None = None

    @property
    def call(self) -> asyncio.Task[None] | None:
        """The call that is being worked on or answered, or the last one."""
        return self._call

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, VarlinkTransport)
        self._stream = transport

    def message_received(self, data: bytes, fds: FileDescriptorArray | None) -> None:  # noqa: ARG002 - the transport closes them
        """Collect `data`; pass whole messages on, refuse what is too long."""
        if self._stream is None:
            return
        *whole, rest = data.split(b"\0")
        for part in whole:
            if not self._take(bytes(self._partial) + part):
                return
            self._partial.clear()
        self._partial += rest
        if len(self._partial) > self._max_message:
            self._refuse("message too long")
            return
        if whole:
            self._clear_deadline()
            self._stream.pause_reading()  # the library reads on when it has worked these off
        if self._partial:
            self._set_deadline()

    def _take(self, message: bytes) -> bool:
        if len(message) > self._max_message:
            self._refuse("message too long")
            return False
        try:
            super().message_received(message + b"\0", None)
        except (RecursionError, ValueError):  # nested too deep, not UTF-8, or a giant number
            self._refuse("not JSON")
            return False
        return True

    def _set_deadline(self) -> None:
        if self._deadline is None:
            loop = asyncio.get_running_loop()
            self._deadline = loop.call_later(self._message_timeout_s, self._message_is_late)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _message_is_late(self) -> None:
        self._deadline = None
        if self._call is not None and not self._call.done():
            self._set_deadline()  # it was we who did not read: the clock starts anew
        else:
            self._refuse("message not finished in time")

    def request_received(
        self, obj: JSONObject, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Start a call; the future is done when its answer has been taken."""
        if self._stream is None:
            return None  # refused or gone: what else it had sent is not worked on
        called: asyncio.Future[None] | None = super().request_received(obj, fds)
        if called is None and not self._unsent:
            return None
        self._call = asyncio.ensure_future(self._answered(called))
        return self._call

    async def _answered(self, called: asyncio.Future[None] | None) -> None:
        if called is not None:
            await called
        if self._unsent:
            _, late = await asyncio.wait(self._unsent, timeout=self._answer_timeout_s)
            if late:
                self._refuse("answer not taken in time")

    def send_message(
        self, obj: JSONObject, fds: list[int] | None = None, autoclose: bool = True
    ) -> asyncio.Future[None]:
        """Send an answer; where that fails nobody reads, and the connection ends."""
        if self._stream is None:
            sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            sent.set_exception(BrokenPipeError())
            return sent
        sent = super().send_message(obj, fds, autoclose)
        if sent not in self._unsent:
            self._unsent.add(sent)
            sent.add_done_callback(self._sent)
        return sent

    def _sent(self, sent: asyncio.Future[None]) -> None:
        self._unsent.discard(sent)
        if sent.exception() is not None:
            self._drop()

    def error_received(self, err: Exception, data: bytes, fds: FileDescriptorArray | None) -> None:
        """Turn away what is not a JSON object: there is no call to answer."""
        del err, data, fds
        self._refuse("not JSON")

    def call_received(
        self, call: VarlinkMethodCall, fds: FileDescriptorArray | None
    ) -> asyncio.Future[None] | None:
        """Dispatch a call that this caller may make.  Raises PermissionDenied."""
        if not permits(call.method, is_admin=self._is_admin):
            raise PermissionDenied
        if call.method in CHANGES:
            named = call.parameters.get("name", call.parameters.get("session", ""))
            log.event(
                "asked by vpnctl",
                method=call.method_name,
                name=str(named)[:MAX_LOGGED_NAME],
                uid=self._caller.uid,
                pid=self._caller.pid,
            )
        running: asyncio.Future[None] | None = super().call_received(call, fds)
        return running

    def handle_call_exception(self, exc: BaseException, oneway: bool) -> None:
        """Answer expected trouble with its sentence, a bug with where to look."""
        del oneway
        if isinstance(exc, VpnError):
            raise Failed(reason=str(exc))
        _log.error("a call failed: this is a bug in vpnd", exc_info=exc)
        raise Failed(reason="vpnd failed on this call: its log says more")

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._stream = None
        super().connection_lost(exc)

    def _refuse(self, reason: str) -> None:
        if self._stream is not None:
            self._refused(reason)
            self._drop()

    def _drop(self) -> None:
        self._clear_deadline()
        if self._stream is not None:
            stream, self._stream = self._stream, None
            stream.abort()
