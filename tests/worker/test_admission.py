"""The limits on connections: every way in has a way out."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.worker.admission import Admission
from vpnd.worker.messages import Start

LIMITS = Start(
    tcp_listeners=1,
    udp_sockets=1,
    certificate="",
    key="",
    client_ca="",
    allow_tls12=False,
    dtls=True,
    port=443,
    connections=5,
    connections_per_address=3,
    handshakes_pending=4,
    login_timeout_s=60,
    log_level="info",
)


def test_each_limit_has_its_own_words() -> None:
    """The operator must see which one to raise."""
    for changes, words in (
        ({"connections": 2}, "too many connections"),
        ({"connections_per_address": 2}, "too many connections from this address"),
        ({"handshakes_pending": 2}, "too many logins at once"),
    ):
        admission = Admission(replace(LIMITS, **changes))
        for _ in range(2):
            assert admission.refusal("192.0.2.1") == ""
            admission.enter("192.0.2.1")
        assert admission.refusal("192.0.2.1") == words


def test_one_address_does_not_use_up_anothers_share() -> None:
    """Whoever floods us floods alone."""
    admission = Admission(LIMITS)
    for _ in range(3):
        admission.enter("192.0.2.1")
    assert admission.refusal("192.0.2.1")
    assert not admission.refusal("192.0.2.2")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc"), st.booleans()), max_size=60))
def test_the_numbers_are_those_of_a_plain_list(steps: list[tuple[bool, str, bool]]) -> None:
    """Connections come and go in any order; afterwards nothing is remembered."""
    admission = Admission(LIMITS)
    inside: list[tuple[str, bool]] = []
    for is_entry, network, opens in steps:
        if is_entry and not admission.refusal(network):
            admission.enter(network)
            admission.pending -= opens
            inside.append((network, not opens))
        elif inside:
            gone, pending = inside.pop(len(steps) % len(inside))
            admission.leave(gone, pending=pending)
        assert admission.total == len(inside) <= LIMITS.connections
        assert admission.pending == sum(pending for _, pending in inside)
    for gone, pending in inside:
        admission.leave(gone, pending=pending)
    assert (admission.total, admission.pending, dict(admission._per_network)) == (0, 0, {})


def test_a_flood_of_refusals_is_a_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """Strangers must not fill the log; each reason is told at once and then counted."""
    admission = Admission(LIMITS)
    with caplog.at_level("INFO"):
        for tick in range(300):
            admission.tell_refusal("192.0.2.1:1", "too many connections", tick / 100)
        admission.tell_refusal("192.0.2.2:1", "too many logins at once", 3.0)
    counts = [line.rpartition("count=")[2] for line in caplog.messages]
    assert counts == ["1", "100", "100", "1"]
