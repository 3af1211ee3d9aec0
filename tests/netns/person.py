"""A person at a terminal: reads what a program shows there, and types."""

import os
import pty
import select
import time
from collections.abc import Mapping, Sequence

from tests.netns.namespace import ENVIRONMENT

WAIT_S = 30.0


class Person:
    """Types on a terminal of their own, which a program was started from."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] = ENVIRONMENT) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], list(argv), dict(env))
        self.seen = ""

    def wait_for(self, text: str) -> None:
        """Read until it is shown; what was shown before counts until something is typed."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.seen:
            ready = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            try:
                data = os.read(self._fd, 4096) if ready else b""
            except OSError:  # the terminal's other side is closed
                data = b""
            assert data, f"{text!r} did not come: {self.seen}"
            self.seen += data.decode(errors="replace")

    def type(self, text: str, end: str = "\n") -> None:
        """Type a line, or keys with another end."""
        self.seen = ""
        os.write(self._fd, f"{text}{end}".encode())

    def wait(self) -> int:
        """Return the program's exit status, once it has ended."""
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._fd)
        return status
