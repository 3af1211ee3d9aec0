"""The clocks of a session, driven by hand."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vpnd.protocol.liveness import (
    DEAD_AFTER,
    LOST_AFTER,
    MAX_PATIENCE,
    PROBE_AFTER,
    PROBE_INTERVAL,
    PROBES,
    QUIET_AFTER,
    WAY_AGAIN,
    Action,
    Liveness,
)

T0 = 1000.0
DPD = 30.0


def actions(
    clock: Liveness, start: float, end: float, *, dtls: bool
) -> list[tuple[float, Action]]:
    """Return what was due between two times, asked every half second as the worker does."""
    found, now = [], start
    while now <= end:
        found += [(now, action) for action in clock.expire(now, dtls_active=dtls)]
        now += 0.5
    return found


def test_a_silent_tls_channel_is_asked_and_then_dead() -> None:
    """One DPD interval of silence is a question, three are an answer."""
    clock = Liveness(T0, DPD)
    found = actions(clock, T0, T0 + DEAD_AFTER * DPD, dtls=False)
    assert found[0] == (T0 + DPD, Action.ASK_TLS)
    assert found[-1] == (T0 + DEAD_AFTER * DPD, Action.PEER_DEAD)
    asked = [at for at, action in found if action is Action.ASK_TLS]
    assert all(b - a >= DPD / 2 for a, b in itertools.pairwise(asked))
    assert len(asked) == 4


def test_any_sign_of_life_on_either_channel_starts_over() -> None:
    """A client that uses UDP alone must not lose its session for a quiet TCP connection."""
    for channel in ("heard_tls", "heard_dtls"):
        clock = Liveness(T0, DPD)
        for step in range(1, 20):
            assert clock.expire(T0 + step * (DPD - 1), dtls_active=False) == []
            getattr(clock, channel)(T0 + step * (DPD - 1))


def test_dpd_of_zero_never_asks_and_never_buries() -> None:
    """An operator's 0 means off."""
    assert actions(Liveness(T0, 0), T0, T0 + 500, dtls=False) == []


def test_dtls_without_answers_is_probed_and_then_suspended() -> None:
    """A firewall in mid-transfer: seconds, not minutes, until packets take the other way."""
    clock = Liveness(T0, DPD)
    clock.sent_dtls(T0)
    found = actions(clock, T0, T0 + 10, dtls=True)
    assert [action for _, action in found] == [Action.ASK_DTLS] * PROBES + [Action.SUSPEND_DTLS]
    assert found[0][0] == T0 + PROBE_AFTER
    assert found[-1][0] <= T0 + PROBE_AFTER + PROBES * PROBE_INTERVAL


def test_an_answer_between_the_probes_keeps_dtls() -> None:
    """One is enough, and the next wait is counted from its own start."""
    clock = Liveness(T0, DPD)
    clock.sent_dtls(T0)
    assert actions(clock, T0, T0 + PROBE_AFTER + 1, dtls=True)
    clock.answered_dtls()
    assert actions(clock, T0 + 3.5, T0 + 20, dtls=True) == []
    clock.sent_dtls(T0 + 20)
    assert actions(clock, T0 + 20, T0 + 20 + PROBE_AFTER - 0.5, dtls=True) == []
    assert actions(clock, T0 + 22, T0 + 22, dtls=True) == [(T0 + 22, Action.ASK_DTLS)]


def test_records_of_the_client_are_no_answer() -> None:
    """A firewall that lets UDP pass in one direction alone: the client is heard all the time."""
    clock, now = Liveness(T0, DPD), T0
    found: list[Action] = []
    while Action.SUSPEND_DTLS not in found:
        clock.sent_dtls(now)
        clock.heard_dtls(now)
        found += clock.expire(now, dtls_active=True)
        now += 0.5
    assert now <= T0 + PROBE_AFTER + PROBES * PROBE_INTERVAL + 0.5


def test_dtls_that_was_given_up_is_asked_at_a_bounded_rate() -> None:
    """The client may send thousands of records a second."""
    clock = Liveness(T0, DPD)
    asked = [clock.may_ask_dtls(T0 + n / 100) for n in range(100)]
    assert asked.count(True) == 1 / PROBE_INTERVAL


def test_an_idle_dtls_channel_is_left_alone() -> None:
    """Nothing sent means nothing to wait for: stock clients may be silent for long."""
    clock = Liveness(T0, 0)
    assert actions(clock, T0, T0 + 100, dtls=True) == []


def test_sending_all_the_time_does_not_put_the_question_off() -> None:
    """The wait counts from the first packet since the last answer."""
    clock, now = Liveness(T0, DPD), T0
    while now < T0 + PROBE_AFTER:
        clock.sent_dtls(now)
        assert clock.expire(now, dtls_active=True) == []
        now += 0.1
    assert clock.expire(T0 + PROBE_AFTER, dtls_active=True) == [Action.ASK_DTLS]


def test_a_packet_over_tls_is_a_reason_to_ask_at_once_but_no_proof() -> None:
    """Stock clients send over TLS whenever their UDP socket is full for a moment."""
    clock = Liveness(T0, DPD)
    clock.doubt_dtls(T0 + 5)
    assert clock.expire(T0 + 5, dtls_active=True) == [Action.ASK_DTLS]
    for step in range(1, 8):  # hints all the time do not start the count again
        clock.doubt_dtls(T0 + 5 + step * PROBE_INTERVAL)
        found = clock.expire(T0 + 5 + step * PROBE_INTERVAL, dtls_active=True)
        if found == [Action.SUSPEND_DTLS]:
            break
    assert step == PROBES
    clock = Liveness(T0, DPD)
    clock.heard_dtls(T0 + 5)
    clock.doubt_dtls(T0 + 5.1)
    assert clock.expire(T0 + 5.2, dtls_active=True) == []


def test_dtls_that_is_not_in_use_is_not_asked() -> None:
    """After the fall-back the client's own record brings it back."""
    clock = Liveness(T0, DPD)
    clock.sent_dtls(T0)
    assert actions(clock, T0, T0 + 20, dtls=False) == []


def test_idle_time_counts_packets_and_not_probes() -> None:
    """A DPD answer is life, but nobody is using the tunnel."""
    clock = Liveness(T0, DPD, idle_timeout_s=60)
    clock.data(T0 + 10)
    clock.heard_tls(T0 + 60)
    clock.heard_dtls(T0 + 60)
    assert clock.expire(T0 + 69.9, dtls_active=False) == []
    assert clock.expire(T0 + 70, dtls_active=False) == [Action.IDLE_TIMEOUT]


def test_a_session_ends_when_its_time_is_over_whatever_it_does() -> None:
    """Neither packets nor signs of life prolong it; nothing else is done in that moment."""
    clock = Liveness(T0, DPD, session_ends_at=T0 + 40)
    clock.data(T0 + 39)
    clock.heard_tls(T0 + 39)
    assert clock.expire(T0 + 39.9, dtls_active=True) == []
    assert clock.expire(T0 + 40, dtls_active=True) == [Action.SESSION_TIMEOUT]


@given(
    st.lists(
        st.tuples(
            st.floats(0, 40),
            st.sampled_from(["heard_tls", "heard_dtls", "data", "sent_dtls", "doubt_dtls", ""]),
            st.booleans(),
        ),
        max_size=60,
    )
)
def test_a_peer_that_was_heard_within_three_intervals_is_never_dead(
    steps: list[tuple[float, str, bool]],
) -> None:
    """Whatever the order of events, and no more than two questions in one look."""
    clock, now, heard = Liveness(T0, DPD), T0, T0
    for wait, call, dtls in steps:
        now += wait
        if call:
            getattr(clock, call)(now)
        if call.startswith("heard"):
            heard = now
        found = clock.expire(now, dtls_active=dtls)
        assert (Action.PEER_DEAD in found) == (now - heard >= DEAD_AFTER * DPD)
        assert len(found) <= 2
        if Action.PEER_DEAD in found:
            return


ANSWER_S = 0.04


def measured(at: float) -> Liveness:
    """Return clocks of a way whose answers take 40 ms."""
    clock = Liveness(at, DPD)
    clock.asked(at - ANSWER_S)
    clock.heard_tls(at)
    clock.answered(at)
    return clock


def test_when_nothing_comes_back_another_way_is_looked_for() -> None:
    """A NAT that got another address tells nobody; both channels are asked before."""
    clock = measured(T0)
    clock.sent(T0)
    found = actions(clock, T0, T0 + 20, dtls=False)
    asked = [at for at, action in found if action is Action.ASK_TLS]
    lost = [at for at, action in found if action is Action.WAY_LOST]
    assert QUIET_AFTER <= asked[0] - T0 < QUIET_AFTER + 0.5
    assert sum(at < lost[0] for at in asked) == 1
    assert LOST_AFTER + 2 * ANSWER_S <= lost[0] - asked[0] < LOST_AFTER + 2 * ANSWER_S + 0.5
    assert all(b - a == WAY_AGAIN for a, b in itertools.pairwise(lost))  # until it is found
    assert clock.is_way_lost(T0 + 20)


def test_whatever_comes_back_says_that_the_way_is_there() -> None:
    """However late, and on either channel; one that sends nothing waits for nothing."""
    for channel in ("heard_tls", "heard_dtls"):
        clock = measured(T0)
        assert actions(clock, T0, T0 + 5, dtls=True) == []
        clock.sent(T0 + 5)
        assert actions(clock, T0 + 5, T0 + 6.5, dtls=False)
        getattr(clock, channel)(T0 + 6.6)
        assert not clock.is_way_lost(T0 + 9)
        assert actions(clock, T0 + 7, T0 + 9, dtls=False) == []


def test_a_way_that_was_never_measured_or_is_slow_gets_its_time() -> None:
    """Or a client behind a satellite would make tunnel after tunnel; others make none."""
    never = Liveness(T0, DPD)
    never.sent(T0)
    assert actions(never, T0, T0 + DPD - 1, dtls=False) == []
    slow = Liveness(T0, DPD)
    slow.asked(T0 - 2.0)
    slow.heard_tls(T0)
    slow.answered(T0)
    slow.sent(T0)
    assert not [a for _, a in actions(slow, T0, T0 + 5, dtls=False) if a is Action.WAY_LOST]
    assert [a for _, a in actions(slow, T0 + 5, T0 + 9, dtls=False) if a is Action.WAY_LOST]


def test_no_stall_makes_us_wait_for_ever() -> None:
    """One answer that took a minute is no measure, and is forgotten with those that follow."""
    clock = Liveness(T0, DPD)
    clock.asked(T0 - 60)
    clock.answered(T0)
    clock.sent(T0)
    found = actions(clock, T0, T0 + QUIET_AFTER + MAX_PATIENCE + 1, dtls=False)
    assert Action.WAY_LOST in [action for _, action in found]
    for _ in range(20):
        clock.asked(T0)
        clock.answered(T0 + ANSWER_S)
    assert clock.answer_s < 2 * ANSWER_S
    later = Liveness(T0, DPD)
    later.go_on_from(clock)
    assert later.answer_s == clock.answer_s
