"""pyvpn-helper: listens on its socket and serves one connection's request after the other.

SIGTERM ends it and leaves host and journals as they are: the helper that comes next adopts them.
"""

import argparse
import contextlib
import os
import selectors
import signal
import socket
import struct
import sys
from pathlib import Path

from helper import policy
from helper.dispatch import TROUBLE, Caller, Host
from helper.journal import JournalDirectory
from helper.messages import BadFrame, FrameReader, Refused, decode, frame

ADOPTION_S = 30.0  # how long a restarted helper keeps what nobody has claimed
MAX_CONNECTIONS = 32  # in all; each holds at most one frame
MAX_PER_UID = 16  # one user cannot keep the others out
MAX_REASON = 1000  # of a refusal, which may quote the request
READ_SIZE = 64 * 1024
UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid
WARNING, NOTICE, INFO = 4, 5, 6  # sd-daemon(3)
STOPPING = (signal.SIGTERM, signal.SIGINT)

OPTIONS = argparse.ArgumentParser(prog="pyvpn-helper", description="Changes the host for vpnd.")
for name, default, metavar, what in (
    ("--socket", "/run/pyvpn-helper.sock", "FILE", "the socket to listen on, if not systemd's"),
    ("--run-dir", "/run/pyvpn-helper", "DIR", "where it notes what it changes, to undo it"),
    ("--policy", "/etc/pyvpn/helper.toml", "FILE", "who may ask for what"),
):
    OPTIONS.add_argument(
        name,
        type=Path,
        default=Path(default),
        metavar=metavar,
        help=f"{what} (default: %(default)s)",
    )
OPTIONS.add_argument("--undo", action="store_true", help="undo what was left behind, and exit")


def log(level: int, text: str) -> None:
    """Write one line, with its level for the journal, without it for a person at a terminal."""
    line = f"pyvpn-helper: {' '.join(text.split())}\n"
    sys.stderr.write(line if sys.stderr.isatty() else f"<{level}>{line}")


class Connection:
    """A caller's socket and what it has sent so far."""

    def __init__(self, sock: socket.socket, caller: Caller, name: str) -> None:
        self.caller = caller
        self.name = name
        self.socket = sock
        self._reader = FrameReader()

    def on_readable(self) -> bool:
        """Serve what has come; return False at the end of the connection."""
        data = self.socket.recv(READ_SIZE)  # not recvmsg: fds sent to us never arrive
        for payload in self._reader.receive(data):
            fds: list[int] = []
            try:
                fields, fds = self.caller.handle(decode(payload))
                answer: dict[str, object] = {"ok": fields}
            except TROUBLE as exc:
                reason = str(exc)[:MAX_REASON]
                log(NOTICE, f"{self.name}: refused: {reason}")
                answer = {"error": reason}
            self._send(frame(answer), fds)
        return bool(data)

    def _send(self, data: bytes, fds: list[int]) -> None:
        try:  # never waits: an answer is small, who has no room for it does not read
            if socket.send_fds(self.socket, [data], fds) != len(data):
                raise BadFrame("does not read its answers")
        finally:
            for fd in fds:
                os.close(fd)


class Server:
    """The loop over the listening socket, the connections and the adoption deadlines."""

    def __init__(self, listener: socket.socket, host: Host, policy_path: Path) -> None:
        self._listener = listener
        self._host = host
        self._policy = policy_path
        self._selector = selectors.DefaultSelector()
        self._connections: dict[int, Connection] = {}

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, which only get through between two changes."""
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        for number in STOPPING:
            signal.signal(number, lambda *_: sys.exit(0))
        while True:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
            ready = [key.fd for key, _ in self._selector.select(self._host.next_expiry_s())]
            signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
            for fd in self._connections.keys() & ready:
                self._serve(fd)
            for line in self._host.expire():
                log(NOTICE, f"nobody came back for {line}")
            if self._listener.fileno() in ready:
                self._accept()

    def _serve(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            if connection.on_readable():
                return
        except Exception as exc:  # a mistake of ours too is this caller's end, not the helper's
            log(WARNING, f"{connection.name}: {type(exc).__name__}: {exc}; closing")
        self._selector.unregister(fd)
        del self._connections[fd]
        connection.socket.close()
        for failure in connection.caller.close():
            log(WARNING, f"left behind: {failure}")

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        sock.setblocking(False)
        pid, uid, _ = UCRED.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        )
        same = [c for c in self._connections.values() if c.caller.uid == uid]
        room = len(self._connections) < MAX_CONNECTIONS and len(same) < MAX_PER_UID
        try:
            caller = Caller(self._host, self._policy, uid, room=room)
        except Refused as exc:
            log(NOTICE, f"uid {uid}, pid {pid}: refused: {exc}")
            with contextlib.suppress(OSError), sock:
                sock.send(frame({"error": str(exc)}))
            return
        self._connections[sock.fileno()] = Connection(sock, caller, f"uid {uid}, pid {pid}")
        self._selector.register(sock, selectors.EVENT_READ)


def listen(path: Path) -> socket.socket:
    """Return systemd's listening socket, or a new one at `path` in place of a stale one."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=3)  # SD_LISTEN_FDS_START
    if path.is_socket():
        path.unlink()
    new = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    new.bind(str(path))
    path.chmod(0o666)  # anybody may knock: SO_PEERCRED and the policy decide
    new.listen(MAX_CONNECTIONS)
    return new


def run(options: argparse.Namespace, adoption_s: float = ADOPTION_S) -> int:
    """Run the helper as `options` say; return its exit status."""
    try:
        host = Host(JournalDirectory(options.run_dir), 0.0 if options.undo else adoption_s)
        if options.undo:
            log(NOTICE, ", ".join(host.expire()) or "nothing was left behind")
            return 1 if host.journals else 0
        policy.load(options.policy)  # a bad file must not wait for the first caller
        server = Server(listen(options.socket), host, options.policy)
    except (Refused, OSError) as exc:
        log(WARNING, str(exc))
        return 2
    log(INFO, f"ready on {options.socket}")
    server.run()
    return 0


def main() -> int:
    """Entry point."""
    return run(OPTIONS.parse_args())


if __name__ == "__main__":
    sys.exit(main())
