"""The arithmetic from the link to the tunnel."""

from hypothesis import given
from hypothesis import strategies as st

from vpnd.protocol.path_mtu import MIN_MTU, tunnel_mtu
from vpnd.wire.dtls_record import MAX_OVERHEAD, SUITES


def test_ethernet_gives_what_a_stock_server_gives() -> None:
    """1434 over IPv4 and 1414 over IPv6 were seen between stock peers with AES-GCM."""
    assert tunnel_mtu(1500, outer_ipv6=False, wanted=9000) == 1434
    assert tunnel_mtu(1500, outer_ipv6=True, wanted=9000) == 1414
    assert tunnel_mtu(1400, outer_ipv6=False, wanted=9000) == 1334


def test_the_operator_may_want_less_and_nobody_gets_less_than_576() -> None:
    """Below that not even the tunnel's own control traffic would be sure to pass."""
    assert tunnel_mtu(1500, outer_ipv6=False, wanted=1400) == 1400
    assert tunnel_mtu(576, outer_ipv6=True, wanted=1400) == MIN_MTU
    assert tunnel_mtu(0, outer_ipv6=True, wanted=0) == MIN_MTU


@given(st.integers(700, 65535), st.booleans(), st.integers(576, 9000))
def test_a_full_packet_fits_the_path_with_every_suite(
    path: int, outer_ipv6: bool, wanted: int
) -> None:
    """Fragments are never made: DF is set on every datagram."""
    mtu = tunnel_mtu(path, outer_ipv6=outer_ipv6, wanted=wanted)
    assert mtu <= max(MIN_MTU, wanted)
    for suite in SUITES.values():
        assert mtu + 1 + suite.overhead + 8 + (40 if outer_ipv6 else 20) <= path
    assert max(suite.overhead for suite in SUITES.values()) == MAX_OVERHEAD
