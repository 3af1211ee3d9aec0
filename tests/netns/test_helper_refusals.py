"""What the helper does not do, and what it says then."""

import asyncio
import contextlib
import itertools
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import pytest

from helper.messages import Hello, encode, frame
from tests.netns.helper_host import HelperHost
from vpnd.errors import HelperError
from vpnd.host.helper_client import HelperClient

pytestmark = pytest.mark.netns
numbers = itertools.count(200)


@pytest.fixture(scope="module")
def host() -> Iterator[HelperHost]:
    host = HelperHost(next(numbers))
    try:
        host.build()
        host.start()
        yield host
    finally:
        host.close()


@contextlib.asynccontextmanager
async def connected(host: HelperHost) -> AsyncIterator[HelperClient]:
    client = await host.connect()
    try:
        yield client
    finally:
        client.close()


async def refusal(call: Awaitable[object]) -> str:
    with pytest.raises(HelperError) as info:
        await call
    return str(info.value)


def test_policy_refusals_name_the_line_to_change(host: HelperHost) -> None:
    """An administrator must not have to search."""

    async def scenario() -> None:
        says = await refusal(host.connect("pyvpn77"))
        assert "user root may not have interface pyvpn77; change interfaces in" in says
        assert "helper.toml, line 3, [user.root]" in says
        async with connected(host) as client:
            link = {"mtu": 1400, "forwarding": False}
            says = await refusal(client.set_link(addresses=["203.0.113.1/24"], **link))
            assert "network 203.0.113.0/24" in says
            assert "line 4" in says
            says = await refusal(
                client.set_link(addresses=["10.8.0.1/24"], routes=["0.0.0.0/0"], **link)
            )
            assert "a route to 0.0.0.0/0; add default_route in" in says
            listen = [("127.0.0.1", 60001)]
            says = await refusal(
                client.open_sockets(listen, udp_per_address=1, buffer_bytes=65536)
            )
            assert "port 60001" in says
            rules = {"masquerade": False, "clamp_mss": False, "client_to_client": False}
            assert "network 198.51" in await refusal(
                client.set_firewall(networks=["198.51.100.0/24"], **rules)
            )

    asyncio.run(scenario())


def test_a_user_without_a_table_gets_nothing(host: HelperHost) -> None:
    """Anybody may knock, SO_PEERCRED says who it is."""
    source = (
        "import asyncio, sys\n"
        "from vpnd.host.helper_client import HelperClient\n"
        "try: asyncio.run(HelperClient.connect(*sys.argv[1:]))\n"
        "except Exception as exc: print(exc)\n"
    )
    program = (sys.executable, "-P", "-c", source, str(host.socket), "pyvpn0")
    said = host.host.run(*program, user="mail").stdout
    assert "user mail may not use the helper; add a table [user.mail] to" in said
    assert said.count("\n") == 1


def test_an_interface_has_one_connection(host: HelperHost) -> None:
    """Two daemons would fight over it."""

    async def scenario() -> None:
        async with connected(host):
            assert "pyvpn0 is in use by another connection" in await refusal(host.connect())
        (await host.connect()).close()

    asyncio.run(scenario())


def test_ports_in_use_and_foreign_addresses_are_named(host: HelperHost) -> None:
    """Nothing is half open afterwards."""

    async def scenario() -> None:
        async with connected(host) as client:
            sizes = {"udp_per_address": 2, "buffer_bytes": 1 << 20}
            at = ("127.0.0.1", 5555)
            [(tcp, udp)] = await client.open_sockets([at], **sizes)
            assert "127.0.0.1:5555 is in use" in await refusal(client.open_sockets([at], **sizes))
            os.close(tcp)
            # Our own UDP sockets would welcome another in their SO_REUSEPORT group.
            assert "127.0.0.1:5555 is in use" in await refusal(client.open_sockets([at], **sizes))
            for fd in udp:
                os.close(fd)
            says = await refusal(client.open_sockets([at, ("192.0.2.99", 5555)], **sizes))
            assert "192.0.2.99:5555 is not an address of this host" in says
            [(tcp, udp)] = await client.open_sockets([at], **sizes)
            for fd in (tcp, *udp):
                os.close(fd)

    asyncio.run(scenario())


def test_sockets_are_as_promised(host: HelperHost) -> None:
    """Workers take them as they are: non-blocking, one family, listening, large buffers."""

    async def scenario() -> None:
        async with connected(host) as client:
            listen = [("0.0.0.0", 443), ("::", 443)]
            groups = await client.open_sockets(listen, udp_per_address=2, buffer_bytes=4 << 20)
            for tcp_fd, udp_fds in groups:
                assert len(udp_fds) == 2
                for fd in (tcp_fd, *udp_fds):
                    assert not os.get_blocking(fd)
                    assert not os.get_inheritable(fd)
                    with socket.socket(fileno=fd) as sock:
                        if sock.family == socket.AF_INET6:
                            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
                        if sock.type == socket.SOCK_STREAM:
                            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                        else:
                            size = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
                            assert size == 2 * (4 << 20)  # the kernel doubles it, socket(7)

    asyncio.run(scenario())


ATTACH = """
import fcntl, struct
with open("/dev/net/tun", "r+b", buffering=0) as tun:
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"pyvpn0", 0x0001 | 0x0100 | 0x5000))
"""


def test_another_user_cannot_attach_a_queue(host: HelperHost) -> None:
    """A queue reads a share of everybody's traffic; /dev/net/tun is open to all."""

    async def scenario() -> None:
        async with connected(host) as client:
            fds = await client.open_tun(queues=2, tx_queue_len=500)
            done = host.host.run(sys.executable, "-c", ATTACH, user="daemon", check=False)
            assert "Operation not permitted" in done.stderr or "Permission" in done.stderr
            details = host.host.run("ip", "-d", "link", "show", "pyvpn0").stdout
            assert "user root" in details
            assert "numqueues 2" in details
            for fd in fds:
                os.close(fd)

    device = Path("/dev/net/tun")
    mode = device.stat().st_mode & 0o777
    device.chmod(0o666)  # what udev does on every desktop and server
    try:
        asyncio.run(scenario())
    finally:
        device.chmod(mode)


ROGUE = """
from helper import messages, tun
opened = []
real = tun._open_device

def with_company():
    if len(opened) == 1:
        opened.append(real())
        tun._attach(opened[-1], "pyvpn5", first=False)
    opened.append(real())
    return opened[-1]

tun._open_device = with_company
try:
    tun.open_queues("pyvpn5", messages.OpenTun(2, 500))
except messages.Refused as exc:
    print(exc)
"""


def test_a_queue_that_joined_before_the_owner_was_set_is_found(host: HelperHost) -> None:
    """Between making the interface and owning it anybody can attach; the count tells."""
    done = host.host.run(sys.executable, "-P", "-c", ROGUE)
    assert done.stdout.startswith("somebody else joined pyvpn5 while it was made")
    assert "pyvpn5" not in host.host.run("ip", "link").stdout


def test_an_interface_of_somebody_else_is_left_alone(host: HelperHost) -> None:
    """What we did not make we neither join nor remove."""

    async def scenario() -> None:
        host.host.ip("tuntap add dev pyvpn0 mode tun multi_queue")
        async with connected(host) as client:
            says = await refusal(client.open_tun(queues=1, tx_queue_len=500))
            assert "pyvpn0 exists already" in says
            says = await refusal(client.set_link(mtu=1400, addresses=[], forwarding=False))
            assert "ask for OpenTun first" in says
        (await host.connect()).close()
        host.host.ip("link delete pyvpn0")

    asyncio.run(scenario())


def test_inner_networks_that_overlap_a_link_are_refused(host: HelperHost) -> None:
    """The rules against false sources would cut that link off, the administrator with it."""

    async def scenario() -> None:
        host.host.ip("address add 10.8.7.1/16 dev eth1")
        async with connected(host) as client:
            rules = {"masquerade": True, "clamp_mss": True, "client_to_client": False}
            says = await refusal(client.set_firewall(networks=["10.8.0.0/24"], **rules))
            assert "10.8.0.0/24 overlaps 10.8.7.1/16 of eth1: choose another" in says
        host.host.ip("address delete 10.8.7.1/16 dev eth1")

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",
        frame({"request": "Reboot"}),
        frame({"request": "Hello", "interface": "pyvpn0"}),
        frame({"request": "Undo"}),
    ],
)
def test_nonsense_ends_the_connection_and_nobody_elses(host: HelperHost, data: bytes) -> None:
    """An unlimited frame, an unknown request, missing fields, a request before Hello."""

    async def scenario() -> None:
        async with connected(host) as other:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                sock.connect(str(host.socket))
                sock.sendall(data)
                assert sock.recv(100) == b""
            await other.undo()

    asyncio.run(scenario())


def test_descriptors_sent_to_the_helper_never_arrive(host: HelperHost) -> None:
    """A root process that collects strangers' files can be made to do things with them."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(host.socket))
        socket.send_fds(sock, [encode(Hello("pyvpn1"))], [write_end])
        os.close(write_end)
        assert b'"ok"' in sock.recv(1000)
        assert pipe.read(1) == b""  # the last writer is gone


def test_crowds_are_bounded(host: HelperHost) -> None:
    """One user's idle connections leave room for the others."""

    async def scenario() -> None:
        clients: list[HelperClient] = []
        idle = [socket.socket(socket.AF_UNIX) for _ in range(16)]
        for sock in idle:
            sock.connect(str(host.socket))
        assert "too many connections" in await refusal(host.connect())
        for sock in idle:
            sock.close()
        clients.append(await host.connect())
        clients[0].close()

    asyncio.run(scenario())
