"""Many light clients in one program: each holds a tunnel over TLS, and comes back when it ends.

    python -m tests.netns.crowd ADDRESS PORT    cookies on stdin, one a line

Prints "all N connected" each time all of them are, with a line of JSON: for each client its inner
address, and how many seconds after the first loss the last of them was back.
"""

import asyncio
import json
import ssl
import sys
import time
from collections.abc import Sequence

from tests.netns.namespace import PYTHON, Namespace
from tests.netns.process import Process

PROGRAM = (*PYTHON, "tests.netns.crowd")
RETRY_S = 0.05  # nobody tells when a server is there again
SESSIONS = """
import sys, time
from pathlib import Path
from vpnd.auth.cookies import cookie_hash, new_cookie, new_session_id
from vpnd.store.contract import Session, User
from vpnd.store.sqlite import open_store
store, now = open_store(Path(sys.argv[1])), time.time()
store.users.put(User(name=sys.argv[2]))
for number in range(int(sys.argv[3])):
    cookie = new_cookie()
    store.sessions.put(Session(
        id=new_session_id(), cookie_hash=cookie_hash(cookie), user=sys.argv[2], client=None,
        lease_key=f"user:{sys.argv[2]}#{number}", method="password",
        serial=None, created=now, expires_at=None, disconnected_at=now))
    print(cookie)
store.close()
"""


class Crowd:
    """So many clients, and where they stand."""

    def __init__(self, address: str, port: int, cookies: Sequence[str]) -> None:
        self._where = address, port
        self._cookies = cookies
        self._inner = [""] * len(cookies)
        self._lost_at = 0.0
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname, self._context.verify_mode = False, ssl.CERT_NONE
        self._connected = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(len(self._cookies)):
                group.create_task(self._stay(number))

    async def _stay(self, number: int) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(*self._where, ssl=self._context)
            except OSError:
                await asyncio.sleep(RETRY_S)
                continue
            try:
                await self._tunnel(number, reader, writer)
            except (OSError, EOFError):
                pass
            finally:
                writer.transport.abort()

    async def _tunnel(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        cookie = self._cookies[number]
        ask = f"CONNECT /CSCOSSLC/tunnel HTTP/1.1\r\nHost: v\r\nCookie: webvpn={cookie}\r\n\r\n"
        writer.write(ask.encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        if " 200 " not in head[0]:
            print(f"refused: {head[0]}", flush=True)
            raise SystemExit(1)
        fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        self._inner[number] = fields["X-CSTP-Address"]
        self._count(+1)
        try:
            while await reader.read(65536):
                pass
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        total = len(self._cookies)
        if change < 0 and self._connected == total:
            self._lost_at = time.monotonic()
        self._connected += change
        if change > 0 and self._connected == total:
            took = time.monotonic() - self._lost_at if self._lost_at else 0.0
            print(f"all {total} connected", flush=True)
            print(json.dumps({"inner": self._inner, "took_s": round(took, 3)}), flush=True)


def begin_sessions(namespace: Namespace, state_dir: object, user: str, count: int) -> str:
    """Write a user with sessions into a store that nobody uses; return the cookies, a line each.

    Logging in by password would cost more than all the rest of a test.
    """
    program = (*PYTHON[:2], "-c", SESSIONS, str(state_dir), user, str(count))
    return namespace.run(*program, user="pyvpn").stdout


def start_crowd(namespace: Namespace, address: str, port: int, cookies: str) -> Process:
    """Start the clients in a namespace."""
    return namespace.start("crowd", *PROGRAM, address, str(port), stdin=cookies.encode())


def main() -> None:
    address, port = sys.argv[1:]
    asyncio.run(Crowd(address, int(port), sys.stdin.read().split()).run())


if __name__ == "__main__":
    main()
