"""vpnd's end of the connection, against a helper that is a few lines of this file."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from helper.messages import PROTOCOL, RESUME, FrameReader, Hello, decode, frame
from vpnd.errors import HelperError, RestartNeeded
from vpnd.host.helper_client import HelperClient

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="the client talks to root alone")
HELLO = frame({"ok": {"protocol": 1, "adopted": False, "firewall_backends": ["nftables"]}})


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def refusal(path: Path) -> str:
    with pytest.raises(HelperError) as info:
        await HelperClient.connect(str(path), "pyvpn0", timeout_s=0.2)
    return str(info.value)


def test_no_helper_is_explained(tmp_path: Path) -> None:
    """The operator's first mistake: nothing listens, or nothing ever did."""
    path = tmp_path / "helper.sock"
    says = asyncio.run(refusal(path))
    assert says.startswith(f"{path}: helper not running; start pyvpn-helper (")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert asyncio.run(refusal(path)) == says


@needs_root
def test_a_helper_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    """vpnd must not hang at its start."""
    path = tmp_path / "helper.sock"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(path))
        deaf.listen()
        assert "no answer within 0.2 s" in asyncio.run(refusal(path))


@needs_root
def test_a_listener_that_is_not_root_is_refused(tmp_path: Path) -> None:
    """A stranger's helper would hand us a stranger's interface."""
    path = tmp_path / "helper.sock"
    with socket.socket(socket.AF_UNIX) as stranger:
        os.seteuid(65534)
        try:
            stranger.bind("\0" + str(path))
            stranger.listen()
        finally:
            os.seteuid(0)
        says = asyncio.run(refusal(Path("\0" + str(path))))
    assert "user id 65534 listens there, not root" in says


def served(path: Path, serve: Callable[[socket.socket], None]) -> asyncio.Task[None]:
    """Let `serve` have the one connection that comes, in a thread."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener:
            sock, _ = listener.accept()
        with sock:
            serve(sock)

    return asyncio.create_task(asyncio.to_thread(run))


@needs_root
def test_a_cancelled_request_does_not_shift_the_answers(tmp_path: Path) -> None:
    """Else the next caller would get the descriptors of the one that gave up."""

    def serve(sock: socket.socket) -> None:
        reader = FrameReader()
        while data := sock.recv(4096):
            for payload in reader.receive(data):
                kind = type(decode(payload)).__name__
                if kind == "Hello":
                    sock.sendall(HELLO)
                elif kind == "SetFirewall":  # answered together with the one before it
                    socket.send_fds(sock, [frame({"ok": {"index": 1}})], [0, 0])
                    sock.sendall(frame({"ok": {"backend": "nftables"}}))

    async def scenario() -> None:
        path = tmp_path / "helper.sock"
        task = served(path, serve)
        client = await HelperClient.connect(str(path), "pyvpn0")
        opening = asyncio.create_task(client.open_tun(queues=2, tx_queue_len=500))
        await asyncio.sleep(0)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        before = descriptors()
        backend = await client.set_firewall(
            networks=[], masquerade=False, clamp_mss=False, client_to_client=False
        )
        assert backend == "nftables"
        assert descriptors() == before
        client.close()
        await task

    asyncio.run(scenario())


@needs_root
def test_an_answer_in_pieces_keeps_its_descriptors(tmp_path: Path) -> None:
    """Descriptors come with the first byte, the answer's end may come later."""
    read_end, write_end = os.pipe()

    def serve(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(HELLO)
        sock.recv(4096)
        answer = frame({"ok": {"index": 1}})
        socket.send_fds(sock, [answer[:3]], [read_end])
        for at in range(3, len(answer)):
            sock.sendall(answer[at : at + 1])

    async def scenario() -> None:
        task = served(tmp_path / "helper.sock", serve)
        client = await HelperClient.connect(str(tmp_path / "helper.sock"), "pyvpn0")
        (fd,) = await client.open_tun(queues=1, tx_queue_len=500)
        assert os.fstat(fd).st_ino == os.fstat(read_end).st_ino
        assert not os.get_inheritable(fd)
        os.close(fd)
        await client.wait_closed()  # the helper went away
        with pytest.raises(HelperError, match="the helper is gone"):
            await client.undo()
        await task

    asyncio.run(scenario())
    os.close(read_end)
    os.close(write_end)


@needs_root
def test_a_helper_that_dies_while_asked_is_an_error(tmp_path: Path) -> None:
    """Nobody waits for an answer that cannot come."""

    def serve(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(HELLO)
        sock.recv(4096)

    async def scenario() -> None:
        task = served(tmp_path / "helper.sock", serve)
        client = await HelperClient.connect(str(tmp_path / "helper.sock"), "pyvpn0")
        with pytest.raises(HelperError, match="the helper is gone; start pyvpn-helper"):
            await client.undo()
        await client.wait_closed()
        await task

    asyncio.run(scenario())


def resumed(serve: Callable[[socket.socket], None]) -> tuple[int, asyncio.Task[None]]:
    """Return a connection as the process before left it, and let `serve` have the other end."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs:
            serve(theirs)

    return ours.detach(), asyncio.create_task(asyncio.to_thread(run))


def hello(sock: socket.socket) -> Hello:
    """Return the Hello that comes behind RESUME."""
    data = b""
    while RESUME not in data:
        data += sock.recv(4096)
    (payload,) = FrameReader().receive(data)
    request = decode(payload)
    assert isinstance(request, Hello)
    return request


def greeting(token: str) -> bytes:
    facts = {"token": token, "adopted": True, "firewall_backends": ["nftables"]}
    return frame({"ok": {"protocol": PROTOCOL, **facts}})


@needs_root
def test_answers_that_nobody_read_are_passed_over() -> None:
    """The process before was killed with questions open; their descriptors are not for us."""

    def serve(sock: socket.socket) -> None:
        socket.send_fds(sock, [frame({"ok": {"index": 1}})], [0, 0])
        sock.sendall(greeting("of the process before") + frame({"error": "somebody else's"}))
        sock.sendall(greeting(hello(sock).token))
        sock.recv(4096)
        sock.sendall(frame({"ok": {"backend": "nftables"}}))

    async def scenario() -> None:
        fd, task = resumed(serve)
        before = descriptors()
        client = await HelperClient.resume(fd, "helper.sock", "pyvpn0")
        assert client.adopted
        assert client.fileno() == fd
        backend = await client.set_firewall(
            networks=[], masquerade=False, clamp_mss=False, client_to_client=False
        )
        assert backend == "nftables"
        assert descriptors() <= before
        client.close()
        await task

    asyncio.run(scenario())


@needs_root
def test_nothing_is_said_before_all_that_was_said_is_read() -> None:
    """The mark that voids half a request must not be cut in two by a read for that request."""
    left = frame({"request": "Undo"})[:-1] + b" " * 100_000

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        sent = ours.send(left)
        client = asyncio.create_task(HelperClient.resume(ours.detach(), "-", "pyvpn0"))
        loop = asyncio.get_running_loop()
        heard = b""
        while len(heard) < sent:
            await asyncio.sleep(0)
            piece = await loop.sock_recv(theirs, 1000)
            assert RESUME not in piece
            heard += piece
        request = await loop.sock_recv(theirs, 4096)
        assert request.startswith(RESUME)
        theirs.close()
        with pytest.raises(HelperError, match="the helper is gone"):
            await client

    asyncio.run(scenario())


@needs_root
def test_a_resumed_connection_that_is_refused_says_why() -> None:
    """The refusal has no token; that no other answer follows shows whose it is."""

    def serve(sock: socket.socket) -> None:
        hello(sock)
        sock.sendall(frame({"error": "no such thing"}))
        sock.recv(4096)

    async def scenario() -> None:
        fd, task = resumed(serve)
        with pytest.raises(HelperError, match=r"^helper: no such thing$"):
            await HelperClient.resume(fd, "helper.sock", "pyvpn0")
        await task

    asyncio.run(scenario())


@needs_root
@pytest.mark.parametrize("resume", [False, True])
def test_a_helper_of_another_version_asks_for_a_restart(tmp_path: Path, *, resume: bool) -> None:
    """An upgrade was made while one of the two ran; systemd starts who exits with 75 again."""
    path = tmp_path / "helper.sock"

    def serve(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(
            frame({"error": "helper speaks protocol 7: restart helper and vpnd together"})
        )

    async def scenario() -> None:
        if resume:
            fd, task = resumed(serve)
            client = HelperClient.resume(fd, str(path), "pyvpn0")
        else:
            task = served(path, serve)
            client = HelperClient.connect(str(path), "pyvpn0")
        with pytest.raises(RestartNeeded, match=r"^helper speaks protocol 7") as info:
            await client
        assert info.value.exit_status == 75
        await task

    asyncio.run(scenario())


@needs_root
def test_what_is_no_connection_to_root_is_not_resumed() -> None:
    """Whatever is stored under that name: it is closed, and another connection made."""

    async def scenario() -> None:
        for fd, reason in ((os.memfd_create("test"), "no socket"), (strangers(), "not root")):
            with pytest.raises(HelperError, match=reason):
                await HelperClient.resume(fd, "helper.sock", "pyvpn0")
            with pytest.raises(OSError, match="Bad file"):
                os.fstat(fd)

    asyncio.run(scenario())


def strangers() -> int:
    """Return a socket whose other end is a stranger's."""
    os.seteuid(65534)
    try:
        ours, theirs = socket.socketpair()
    finally:
        os.seteuid(0)
    theirs.close()
    return ours.detach()
