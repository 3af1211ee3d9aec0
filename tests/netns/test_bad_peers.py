"""Strangers who keep to no rule: every limit holds, and a client at work notices nothing."""

import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.netns.bed import SERVER4, SERVER6
from tests.netns.bystander import Bystander
from tests.netns.site import Site
from tests.netns.stranger import (
    INIT,
    PATIENCE_S,
    HungUpError,
    Stranger,
    request,
    tcp,
    udp,
    until_closed,
)
from tests.protocol.psk_client import PskClient
from vpnd.wire import cstp
from vpnd.wire.cstp import PacketType
from vpnd.wire.http import MAX_BODY, MAX_HEAD, MAX_REQUESTS
from vpnd.worker.datagrams import HANDSHAKES_PER_TUNNEL
from vpnd.worker.streams import HANDSHAKE_TIMEOUT

pytestmark = pytest.mark.netns

PASSWORD = "correct horse battery staple"
LOGIN_TIMEOUT_S = 10
PER_ADDRESS, PENDING = 6, 12
LIMITS = {"connections_per_address": PER_ADDRESS, "handshakes_pending": PENDING}
ADDRESS = "198.51.100.2"  # of the client that misbehaves
LATER_S = 5.0  # a time-out may be noticed so much later on a busy machine


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    config = {"limits": LIMITS, "auth": {"login_timeout_s": LOGIN_TIMEOUT_S}}
    site = make_site(clients=3, config=config)
    site.daemons.add_user("bob", PASSWORD)
    return site


@pytest.fixture(scope="module")
def bystander(site: Site) -> Iterator[Bystander]:
    bystander = Bystander(site, 1, "bystander")
    yield bystander
    bystander.stop()


class Silent:
    """Peers that stop half-way, each in another place, from an address of their own.

    They begin with the first test and are asked in the last, so that nobody waits for them.
    """

    def __init__(self, site: Site) -> None:
        namespace = site.bed.clients[2]
        mute, half = tcp(namespace), tcp(namespace)
        half.sendall(client_hello()[:100])
        no_request, half_request = Stranger(namespace), Stranger(namespace)
        half_request.send(b"POST / HTTP/1.1\r\nHost:")
        self.held_s: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._hold, args=held, daemon=True)
            for held in (
                ("mute", mute),
                ("half a hello", half),
                ("no request", no_request.tls),
                ("half a request", half_request.tls),
            )
        ]
        for thread in self._threads:
            thread.start()

    def _hold(self, name: str, peer: socket.socket) -> None:
        began = time.monotonic()
        with peer:
            until_closed(peer)
        self.held_s[name] = time.monotonic() - began

    def wait(self) -> None:
        """Wait until the server has hung up on all."""
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="module")
def silent(site: Site) -> Iterator[Silent]:
    silent = Silent(site)
    yield silent
    silent.wait()


@pytest.fixture(autouse=True)
def _undisturbed(site: Site, bystander: Bystander, silent: Silent) -> Iterator[None]:  # noqa: ARG001 - begins early
    """Whatever a test does, another client's transfer goes on, and no code of ours fails."""
    yield
    bystander.check()
    assert "Traceback" not in site.daemons.vpnd.text()
    assert "worker died" not in site.daemons.vpnd.text()


@pytest.fixture
def stranger(site: Site) -> Iterator[Stranger]:
    with Stranger(site.bed.client) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def cookie(site: Site) -> str:
    """A session of bob's that may open one tunnel after the other."""
    with Stranger(site.bed.client) as stranger:
        answer = stranger.log_in({"username": "bob", "password": PASSWORD})
    return answer.cookies["webvpn"]


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="vpn.example").do_handshake()
    return outgoing.read()


def users(site: Site) -> list[str]:
    return sorted(session["user"] for session in site.daemons.sessions())


# HTTP


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD, 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD + b"\r\n\r\n", 431),
        (request("POST", "/", headers=[("Content-Length", str(MAX_BODY + 1))]), 413),
        (request("POST", "/", headers=[("Content-Length", "9" * 30)]), 400),
        (request("POST", "/", headers=[("Transfer-Encoding", "chunked")]), 411),
        (request("POST", "/", headers=[("X", "y\r\n folded")]), 400),
        (request("POST", "/", body=b"<?xml version='1.0'?><!DOCTYPE x><config-auth/>"), 400),
        (request("POST", "/", body=b"<" * MAX_BODY), 413),
        (request("POST", "/", body=b"a=b&a=c"), 400),
        (request("POST", "/", body=b"\xff" * 9), 400),
        (b"\x16\x03\x01\x02\x00\x01", 400),
        (request("DELETE", "/"), 404),
        (request("GET", "/etc/passwd"), 404),
        (request("CONNECT", "/CSCOSSLC/tunnel", body=b"x"), 400),
        (request("CONNECT", "example.org:443"), 404),
    ],
    ids=[
        "endless head", "long head", "long body", "huge length", "chunked", "folded", "DTD",
        "markup", "field twice", "not UTF-8", "TLS in TLS", "method", "path", "CONNECT with body",
        "proxy",
    ],
)  # fmt: skip
def test_a_request_beyond_the_rules_is_answered_as_such_and_is_the_last(
    stranger: Stranger, data: bytes, status: int
) -> None:
    """A client whose request was refused can tell why; a scanner gets no more than that."""
    stranger.send(*(data[at : at + 16000] for at in range(0, len(data), 16000)))
    answer = stranger.answer()
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    assert answer.body == ""
    assert stranger.rest() == b""


def test_a_connection_carries_sixteen_requests(stranger: Stranger) -> None:
    """The last answer says that it is the last."""
    for number in range(1, MAX_REQUESTS + 1):
        answer = stranger.ask("POST", "/", body=INIT)
        assert answer.status == 200
        assert (answer.headers.get("connection") == "close") == (number == MAX_REQUESTS)
    assert stranger.rest() == b""


@pytest.mark.parametrize("records", [1, 2])
def test_a_request_before_the_last_one_was_answered_ends_the_connection(
    stranger: Stranger, records: int
) -> None:
    """Pipelined requests are how requests are smuggled; in one record or in two."""
    two = [request("POST", "/", body=INIT)] * 2
    stranger.send(*(two if records == 2 else [b"".join(two)]))
    assert stranger.answer().status == 400
    assert stranger.rest() == b""


def test_packets_before_the_answer_to_connect_leave_no_tunnel_behind(
    site: Site, stranger: Stranger, cookie: str
) -> None:
    """Whoever does not wait is refused, and what was made for him meanwhile is given back."""
    connect = request("CONNECT", "/CSCOSSLC/tunnel", headers=[("Cookie", f"webvpn={cookie}")])
    stranger.send(connect, cstp.encode(PacketType.KEEPALIVE))
    assert stranger.answer().status == 400
    assert stranger.rest() == b""
    assert users(site) == ["bystander"]


def test_a_client_that_hangs_up_during_connect_leaves_no_tunnel_behind(
    site: Site, stranger: Stranger, cookie: str
) -> None:
    """Its session may resume, that is all."""
    mark = site.daemons.vpnd.mark()
    connect = request("CONNECT", "/CSCOSSLC/tunnel", headers=[("Cookie", f"webvpn={cookie}")])
    stranger.send(connect)
    stranger.close()
    site.daemons.vpnd.wait_for("tunnel closed, session may resume: user=bob", since=mark)
    assert users(site) == ["bystander"]


@pytest.mark.parametrize("name", ["X-CSTP-Base-MTU", "X-CSTP-MTU"])
@pytest.mark.parametrize("size", ["0", "1", "575", "65536", "9" * 40, "-1", "1e3", "", "0x500"])
def test_sizes_that_a_client_claims_stay_within_bounds(
    stranger: Stranger, cookie: str, name: str, size: str
) -> None:
    """Sums with them have gone below zero elsewhere; here they are clamped, or no numbers."""
    answer = stranger.connect(cookie, [(name, size)])
    if answer.status == 200:
        assert 500 < int(answer.headers["x-cstp-mtu"]) <= 1400
        assert 576 <= int(answer.headers["x-cstp-base-mtu"]) <= 65535
    else:
        assert answer.status == 400
        assert not size.isdecimal()


# connections


def test_an_address_has_so_many_connections(site: Site) -> None:
    """One more is reset before it costs a handshake; a place is free when one leaves."""
    mark = site.daemons.vpnd.mark()
    with ExitStack() as held:
        for _ in range(PER_ADDRESS):
            first = held.enter_context(Stranger(site.bed.client))
        with tcp(site.bed.client) as one_more:
            assert until_closed(one_more) == b""
        site.daemons.vpnd.wait_for("too many connections from this address", since=mark)
        first.close()
        refused = 0
        while refused < 100:  # our end is closed before the server has noticed
            try:
                held.enter_context(Stranger(site.bed.client))
                break
            except HungUpError:
                refused += 1
        assert refused < 100


def test_the_addresses_of_one_ipv6_network_count_as_one(site: Site) -> None:
    """Everybody has 2^64 of them."""
    site.bed.client.ip(
        *(f"address add 2001:db8:1:1::{n:x}/64 dev uplink nodad" for n in range(16, 24))
    )
    with ExitStack() as held:
        for number in range(PER_ADDRESS):
            source = f"2001:db8:1:1::{16 + number:x}"
            held.enter_context(Stranger(site.bed.client, server=SERVER6, source=source))
        with pytest.raises(HungUpError):
            Stranger(site.bed.client, server=SERVER6, source="2001:db8:1:1::17")


# junk


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 4096,
        b"\x16\x03\x01\xff\xff" + b"x" * 70000,
        client_hello()[:5] + b"\xff" * 200,
        b"\x80\x2e\x01\x00\x02",  # SSL 2
    ],
    ids=["HTTP", "zeros", "long record", "broken hello", "SSL 2"],
)
def test_junk_on_the_tcp_port_is_hung_up_on(site: Site, junk: bytes) -> None:
    """Scanners send all of it, all day; none of it is worth a warning."""
    mark = site.daemons.vpnd.mark()
    with tcp(site.bed.client) as sock:
        try:
            sock.sendall(junk)
        except ConnectionError:
            return
        sock.shutdown(socket.SHUT_WR)
        assert len(until_closed(sock)) < 100  # an alert at most
    assert "WARNING" not in site.daemons.vpnd.text(mark)


def drops(site: Site) -> int:
    count: int = site.daemons.status()["drops"].get("unknown-source", 0)
    return count


def test_junk_on_the_udp_port_gets_no_answer_and_leaves_no_state(site: Site) -> None:
    """An answer to a stranger would be sent to whoever he claims to be."""
    hello = PskClient(b"k" * 32, app_id=os.urandom(32)).hello()
    junk = [
        hello,
        hello[:40],
        b"\x17\xfe\xfd" + os.urandom(100),
        b"\x16\xfe\xfd" + os.urandom(100),
        os.urandom(1400),
        b"\x00",
        *(PskClient(b"k" * 32, app_id=os.urandom(8)).hello() for _ in range(20)),
    ]
    before = drops(site)
    mark = site.daemons.vpnd.mark()
    with udp(site.bed.client) as sock, udp(site.bed.client, server=SERVER6) as sock6:
        for datagram in junk:
            sock.send(datagram)
            sock6.send(datagram)
        deadline = time.monotonic() + PATIENCE_S
        while drops(site) < before + 2 * len(junk) and time.monotonic() < deadline:
            pass  # asking takes a while
        assert drops(site) == before + 2 * len(junk)
        for quiet in (sock, sock6):
            quiet.setblocking(False)
            with pytest.raises(BlockingIOError):
                quiet.recv(2048)
    assert ADDRESS not in site.daemons.vpnd.text(mark)


def test_a_hello_with_the_right_app_id_and_the_wrong_key_changes_nothing(
    site: Site, stranger: Stranger, cookie: str
) -> None:
    """App-IDs travel in clear: whoever read one gets answers, few, and no channel."""
    answer = stranger.connect(cookie, [("X-DTLS-CipherSuite", "PSK-NEGOTIATE")])
    app_id = bytes.fromhex(answer.headers["x-dtls-app-id"])
    with ExitStack() as held:
        thieves = []
        for _ in range(3 * HANDSHAKES_PER_TUNNEL):
            thief = PskClient(b"k" * 32, app_id=app_id)
            sock = held.enter_context(udp(site.bed.client))
            sock.send(thief.hello())
            thieves.append((sock, thief))
        for sock, thief in thieves[:HANDSHAKES_PER_TUNNEL]:
            sock.send(thief.step(sock.recv(2048)))
            assert not thief.is_done
        limited = 2 * HANDSHAKES_PER_TUNNEL
        deadline = time.monotonic() + PATIENCE_S
        while (drops := site.session("bob")["drops"]) != {"handshake-limit": limited}:
            assert time.monotonic() < deadline, drops
    assert site.session("bob")["channel"] == "TLS"
    stranger.send(cstp.encode(PacketType.DPD_REQUEST, b"still here"))
    assert stranger.tls.recv(65536) == cstp.encode(PacketType.DPD_RESPONSE, b"still here")


@pytest.mark.parametrize(
    "junk",
    [
        b"no packet at all",
        b"STF\x01\x00\x00\x00\x01",
        b"STF\x01\xff\xff\x00\x00",
        cstp.encode(PacketType.COMPRESSED, b"x" * 20),
    ],
    ids=["no header", "wrong last byte", "too long", "compressed"],
)
def test_junk_in_an_open_tunnel_ends_that_tunnel_alone(
    site: Site, stranger: Stranger, cookie: str, junk: bytes
) -> None:
    """Nothing after it can be believed; the log says whose tunnel it was."""
    assert stranger.connect(cookie).status == 200
    mark = site.daemons.vpnd.mark()
    stranger.send(junk)
    stranger.rest()
    site.daemons.vpnd.wait_for(f"unexpected: user=bob .*address={stranger.name}", since=mark)
    site.daemons.vpnd.wait_for("tunnel closed, session may resume: user=bob", since=mark)
    assert users(site) == ["bystander"]


def test_packets_that_are_no_ip_cost_nothing_but_themselves(
    site: Site, stranger: Stranger, cookie: str
) -> None:
    """They are dropped and counted, the tunnel stays; unknown types are passed over."""
    assert stranger.connect(cookie).status == 200
    forged = b"\x45\x00\x00\x14" + bytes(8) + bytes([1, 2, 3, 4]) + bytes([10, 8, 0, 1])
    for payload in (b"", b"\x00", b"\x45" * 19, b"\x60" * 39, os.urandom(1400), forged):
        stranger.send(cstp.encode(PacketType.DATA, payload))
    stranger.send(cstp.encode(0x2A, b"what?"), cstp.encode(PacketType.DPD_REQUEST, b"still here"))
    assert stranger.tls.recv(65536) == cstp.encode(PacketType.DPD_RESPONSE, b"still here")
    assert sum(site.session("bob")["drops"].values()) == 6


def test_a_tunnel_whose_client_does_not_read_is_bounded(
    site: Site, stranger: Stranger, cookie: str
) -> None:
    """What is owed to it stays below a limit; then it is cut off."""
    assert stranger.connect(cookie).status == 200
    mark = site.daemons.vpnd.mark()
    ask = cstp.encode(PacketType.DPD_REQUEST, bytes(16000))
    with pytest.raises((ConnectionError, ssl.SSLError)):
        ask_on(stranger.tls, ask * 4)
    site.daemons.vpnd.wait_for("client does not read", since=mark)
    assert users(site) == ["bystander"]


def ask_on(sock: socket.socket, data: bytes) -> None:
    for _ in range(1024):  # 64 MiB: more than all buffers on the way hold
        sock.sendall(data)


# silence; last, because it has to be waited for


def test_peers_that_fall_silent_are_hung_up_on(site: Site, silent: Silent) -> None:
    """A connection that does nothing must not hold a place for long, wherever it stopped."""
    silent.wait()
    for name, limit_s in (
        ("mute", HANDSHAKE_TIMEOUT),
        ("half a hello", HANDSHAKE_TIMEOUT),
        ("no request", LOGIN_TIMEOUT_S),
        ("half a request", LOGIN_TIMEOUT_S),
    ):
        assert limit_s - 1 < silent.held_s[name] < limit_s + LATER_S
    for complaint in ("TLS handshake timed out", "login timed out"):
        lines = [
            line
            for line in site.daemons.vpnd.text().splitlines()
            if complaint in line and "198.51.100.10:" in line
        ]
        assert len(lines) == 2


def test_only_so_many_logins_are_under_way(site: Site, silent: Silent) -> None:
    """The address that has most gives way to another; whoever is in already stays in."""
    silent.wait()
    mark = site.daemons.vpnd.mark()
    client, other = site.bed.clients[:2]
    with ExitStack() as held:
        for server in (SERVER4, SERVER6):
            for _ in range(PENDING // 2):
                last = held.enter_context(Stranger(client, server=server))
        newcomer = held.enter_context(Stranger(other))
        assert newcomer.ask("POST", "/", body=INIT).status == 200
        assert last.ask("POST", "/", body=INIT).status == 200
        site.daemons.vpnd.wait_for("too many logins at once", since=mark)
    assert users(site) == ["bystander"]
