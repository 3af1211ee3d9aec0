"""When the connection is told to look, without a kernel; with one: tests/netns/test_watch.py."""

import asyncio
import struct

from hypothesis import given
from hypothesis import strategies as st

from vpnd.host import rtnetlink
from vpnd.host.watch import NetworkWatch, suspended_s


@given(st.binary(max_size=200), st.sampled_from([16, 17, 20, 21, 24, 25, 32, 33, 99]))
def test_no_message_is_too_strange(body: bytes, kind: int) -> None:
    """A later kernel may send what this one does not."""
    head = rtnetlink.NLMSGHDR.pack(rtnetlink.NLMSGHDR.size + len(body), kind, 0, 0, 0)
    list(rtnetlink.parse(head + body + bytes(-len(body) % 4) + body))
    list(rtnetlink.parse(body))


def test_a_name_is_read_from_between_other_attributes() -> None:
    """Each is aligned to four bytes, its length is not."""
    attributes = b"".join(
        struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
        for kind, value in ((1, b"\x02\x00"), (3, b"eth0\0"), (4, bytes(4)))
    )
    body = rtnetlink.IFINFOMSG.pack(0, 1, 7, 0x10043, 0) + attributes
    message = rtnetlink.NLMSGHDR.pack(16 + len(body), rtnetlink.NEWLINK, 0, 0, 0) + body
    expected = rtnetlink.Link(7, "eth0", is_up=True, is_loopback=False)
    assert list(rtnetlink.parse(message * 2)) == [expected] * 2


def test_a_host_that_slept_is_told_of_once() -> None:
    """A session may have ended meanwhile; waiting for the next keep-alive takes too long."""

    async def scenario() -> None:
        slept_s = 100.0
        told: asyncio.Queue[str] = asyncio.Queue()
        timing = {"settle_s": 0.0, "poll_s": 0.01}
        watch = NetworkWatch("pyvpn10", told.put_nowait, suspended=lambda: slept_s, **timing)
        slept_s += 0.5  # no more than a hiccup
        await asyncio.sleep(0.05)
        slept_s += 3600.0
        assert await asyncio.wait_for(told.get(), 5) == "the host was suspended for 3600 s"
        await asyncio.sleep(0.05)
        assert told.empty()
        watch.close()
        watch.close()
        slept_s += 3600.0
        await asyncio.sleep(0.05)
        assert told.empty()

    asyncio.run(scenario())


def test_the_time_asleep_is_known_to_everybody() -> None:
    """Neither clock needs a privilege, nor does the socket."""
    assert -0.1 < suspended_s() < 1e9  # the two are not read at the same moment
