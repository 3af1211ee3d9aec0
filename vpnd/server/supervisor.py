"""Starts the worker process, talks to it, and starts it again when it dies.

Fork and exec: a worker begins with an address space of its own and gets what it needs, and
no more, over one socket.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import vpnd
from vpnd import log
from vpnd.errors import HelperError, Malformed, RestartNeeded
from vpnd.worker.control import TUN_GONE, ControlChannel, PeerGone, encode
from vpnd.worker.messages import Message, Ping, Ready, Start, StartClient, Stop

START_TIMEOUT = 20.0  # seconds from exec to Ready, on a slow machine
PING_INTERVAL = 5.0  # seconds between two questions whether the worker still works
PING_TIMEOUT = 15.0  # seconds for the answer, on a machine that has other things to do
ANSWER_INTERVAL = 0.1  # seconds until a worker that is just dying is known to be dead
STOP_TIMEOUT = 5.0  # seconds from Stop to exit; then it is killed
RESTART_DELAYS = (0.0, 0.5, 1.0, 2.0, 5.0)  # seconds; the last one for good
STEADY_AFTER = 60.0  # seconds of work after which a death counts as the first again


class Supervisor:
    """One worker process, kept running."""

    def __init__(
        self,
        start: Callable[[], tuple[Start | StartClient, Sequence[int]]],
        on_message: Callable[[Message], Awaitable[Message | None]],
        on_gone: Callable[[], None],
    ) -> None:
        self._start = start
        self._on_message = on_message
        self._on_gone = on_gone
        self._process: asyncio.subprocess.Process | None = None
        self._border: socket.socket | None = None  # of a process that waits for its start message
        self._channel: ControlChannel | None = None
        self._ready = asyncio.Event()
        self._stopping = False

    @property
    def is_ready(self) -> bool:
        return self._ready.is_set()

    async def ask(self, message: Message) -> Message:
        """Ask the worker.  Raises PeerGone when there is none."""
        if self._channel is None:
            raise PeerGone("no worker is running")
        return await self._channel.ask(message)

    def send(self, message: Message) -> None:
        """Tell the worker, if there is one."""
        if self._channel is not None:
            self._channel.send(message)

    async def wait_ready(self) -> bool:
        """Return whether the worker has said that it serves, within START_TIMEOUT."""
        try:
            await asyncio.wait_for(self._ready.wait(), START_TIMEOUT)
        except TimeoutError:
            return False
        return True

    async def prepare(self) -> None:
        """Let a process load its code already, while its start message is still being made."""
        self._border = await self._spawn()

    async def answer(self) -> None:
        """Return when the worker answers: at once, or as soon as there is one that does."""
        while True:
            await self._ready.wait()
            try:
                await self.ask(Ping())
            except PeerGone:
                await asyncio.sleep(ANSWER_INTERVAL)
            else:
                return

    async def run(self) -> None:
        """Keep a worker running until `stop`.

        Raises HelperError when its interface was deleted: only a start from the beginning
        makes a new one, and clients come back to that by their cookies.  Raises RestartNeeded
        when the worker's code is not of our version any more.
        """
        loop = asyncio.get_running_loop()
        deaths = 0
        while not self._stopping:
            began = loop.time()
            status = await self._run_once()
            if self._stopping:
                return
            if status == TUN_GONE:
                raise HelperError("the tunnel's interface was deleted; start vpnd again")
            if status == RestartNeeded.exit_status:
                raise RestartNeeded("pyvpn was upgraded while it ran; start vpnd again")
            deaths = 1 if loop.time() - began > STEADY_AFTER else deaths + 1
            delay = RESTART_DELAYS[min(deaths, len(RESTART_DELAYS)) - 1]
            log.error("worker died, starting another", exit_status=status, count=deaths)
            await asyncio.sleep(delay)

    async def _spawn(self) -> socket.socket:
        """Start a process; return our end of the border."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",  # or it would import from the current directory, whoever writes there
                "-m",
                "vpnd.worker",
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=worker_environment(),
            )
        return ours

    async def _run_once(self) -> int:
        ours, self._border = self._border or await self._spawn(), None
        process = self._process
        assert process is not None
        settings, fds = self._start()
        try:
            socket.send_fds(ours, [encode(settings)], list(fds))
        except OSError:  # it is dead already; the exit status says more
            ours.close()
            return await self._reap(process)
        ours.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=ours)
        self._channel = ControlChannel(reader, writer, self._receive)
        late = asyncio.get_running_loop().call_later(START_TIMEOUT, self._kill_unless_ready)
        watching = asyncio.create_task(self._watch(process))
        try:
            await self._channel.run()
        except Malformed as exc:
            log.error("worker said something that is not in the protocol", error=str(exc))
            process.kill()
        finally:
            late.cancel()
            watching.cancel()
            self._ready.clear()
            self._channel = None
            self._on_gone()
        return await self._reap(process)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kill a worker that does not answer any more: its clients come back to a new one."""
        await self._ready.wait()
        while True:
            await asyncio.sleep(PING_INTERVAL)
            try:
                await asyncio.wait_for(self.ask(Ping()), PING_TIMEOUT)
            except PeerGone:
                return
            except TimeoutError:
                log.error("worker does not answer, killing it", pid=process.pid)
                process.kill()
                return

    def _kill_unless_ready(self) -> None:
        if not self.is_ready and self._process is not None:
            log.error("worker does not get ready, killing it", pid=self._process.pid)
            self._process.kill()

    async def _reap(self, process: asyncio.subprocess.Process) -> int:
        try:
            return await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
            return await process.wait()

    async def _receive(self, message: Message) -> Message | None:
        if isinstance(message, Ready):
            self._ready.set()
            return None
        return await self._on_message(message)

    async def stop(self, *, good_bye: bool = True) -> None:
        """Let the worker close its tunnels and end; without a good-bye its session goes on."""
        self._stopping = True
        self.send(Stop(good_bye))
        if self._border is not None:  # it was not told anything yet
            self._border.close()
            self._border = None
            if self._process is not None:
                self._process.kill()
        if self._process is not None:
            await self._reap(self._process)

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0


def worker_environment() -> dict[str, str]:
    """Return an environment that finds our packages and holds nothing else of ours."""
    keep = {"PATH", "LANG", "LC_ALL", "TZ", "JOURNAL_STREAM", "PYTHONDONTWRITEBYTECODE"}
    environment = {key: value for key, value in os.environ.items() if key in keep}
    environment["PYTHONPATH"] = str(Path(vpnd.__file__).resolve().parent.parent)
    return environment
