"""Is the peer still there, and by which channel?  Decisions about one session over time.

The worker tells what it received and sent; `expire` answers with what to do now.  All
times are seconds of one monotonic clock, handed in by the caller.

- A TLS channel that has been silent for one DPD interval is asked; after three it is dead.
- A DTLS channel we send on is asked after `PROBE_AFTER`, then every `PROBE_INTERVAL`; after
  `PROBES` unanswered questions packets go over TLS until one is answered.  Only an answer counts:
  what the client sends by UDP says nothing of what reaches it.
- A packet that the client sends over TLS although DTLS is up is a hint, not proof: ask at once.
- Where a new tunnel beside the old one is cheap (a client of ours with our server), nothing at
  all coming back while we send is enough to make one: a NAT that got another address tells nobody.
"""

from dataclasses import dataclass, field
from enum import Enum

PROBE_AFTER = 2.0  # seconds since the last answer on DTLS while we send
PROBE_INTERVAL = 0.5  # seconds between two questions
PROBES = 4  # unanswered questions that mean: UDP does not pass
QUIET_AFTER = 0.75  # seconds that we send and hear nothing before we ask over both channels
LOST_AFTER = 0.75  # seconds without an answer to that, beside twice what the last one took
WAY_AGAIN = 3.0  # seconds between two attempts to find another way, while nothing comes back
MAX_PATIENCE = 8.0  # seconds; a stall once in a while is no measure of the way
DEAD_AFTER = 3  # DPD intervals without a sign of life on TLS


class Action(Enum):
    """What the worker is to do for this session now."""

    ASK_TLS = "send a DPD request over TLS"
    ASK_DTLS = "send a DPD request over DTLS"
    SUSPEND_DTLS = "UDP does not pass: send over TLS"
    WAY_LOST = "nothing comes back: look for another way"
    PEER_DEAD = "the peer is silent"
    IDLE_TIMEOUT = "idle timeout"
    SESSION_TIMEOUT = "session timeout"


@dataclass(slots=True)
class Liveness:
    """The clocks of one session.  A time-out of 0 means: none."""

    now: float
    dpd_s: float
    idle_timeout_s: float = 0
    session_ends_at: float = 0
    _heard: float = field(init=False)
    heard_dtls_at: float = field(init=False)
    """When the last authentic record came in."""
    data_at: float = field(init=False)
    """When the last packet crossed the tunnel."""
    _asked_at: float = 0
    _waiting_since: float = 0
    """When we first sent on DTLS after the last answer; 0 = not waiting."""
    _probes: int = 0
    _probed_at: float = 0
    answer_s: float = 0
    """What the last answer took; 0 = not known, and then no way is lost so soon."""
    _question_at: float = 0
    _unheard_since: float = 0
    """When we first sent after the last sign of life; 0 = nothing sent since."""
    _quiet_asked_at: float = 0
    _way_sought_at: float = -WAY_AGAIN

    def __post_init__(self) -> None:
        self._heard = self.heard_dtls_at = self.data_at = self.now

    def heard_tls(self, now: float) -> None:
        self._heard = now
        self._unheard_since = self._quiet_asked_at = 0

    def heard_dtls(self, now: float) -> None:
        """An authentic record came in over DTLS."""
        self._heard = self.heard_dtls_at = now
        self._unheard_since = self._quiet_asked_at = 0

    def answered_dtls(self) -> None:
        """The client answered a question, or the handshake: what we send by UDP reaches it."""
        self._waiting_since = 0
        self._probes = 0

    def data(self, now: float) -> None:
        """A packet crossed the tunnel, in either direction."""
        self.data_at = now

    def sent(self, now: float) -> None:
        """A packet of the tunnel left for the peer."""
        self.data_at = now
        if not self._unheard_since:
            self._unheard_since = now

    def asked(self, now: float) -> None:
        """A question that measures the way has left, over either channel."""
        self._question_at = now
        if not self._unheard_since:
            self._unheard_since = now

    def answered(self, now: float) -> None:
        """The answer has come."""
        if self._question_at:
            self.answer_s = max(now - self._question_at, self.answer_s / 2, 0.001)
            self._question_at = 0

    def is_way_lost(self, now: float) -> bool:
        """Return whether nothing comes back although we ask."""
        patience = min(LOST_AFTER + 2 * self.answer_s, MAX_PATIENCE)
        return bool(self._quiet_asked_at) and now - self._quiet_asked_at >= patience

    def go_on_from(self, earlier: "Liveness") -> None:
        """Take the place of another tunnel's clocks: a session stays as idle as it was."""
        self.data_at = earlier.data_at
        self.answer_s = earlier.answer_s

    def sent_dtls(self, now: float) -> None:
        if not self._waiting_since:
            self._waiting_since = now

    def may_ask_dtls(self, now: float) -> bool:
        """Return whether DTLS that was given up may be asked again, which counts as asked."""
        if now - self._probed_at < PROBE_INTERVAL:
            return False
        self._probed_at = now
        return True

    def doubt_dtls(self, now: float) -> None:
        """The client used TLS although DTLS is up: start asking now."""
        if now - self.heard_dtls_at > PROBE_INTERVAL and not self._probes:
            self._waiting_since = now - PROBE_AFTER

    def expire(self, now: float, *, dtls_active: bool) -> list[Action]:
        """Return what is due; call it about twice a second."""
        if self.session_ends_at and now >= self.session_ends_at:
            return [Action.SESSION_TIMEOUT]
        if self.idle_timeout_s and now - self.data_at >= self.idle_timeout_s:
            return [Action.IDLE_TIMEOUT]
        actions = self._expire_dtls(now) if dtls_active else []
        actions += self._expire_quiet(now)
        if self.dpd_s:
            silent = now - self._heard
            if silent >= DEAD_AFTER * self.dpd_s:
                return [Action.PEER_DEAD]
            if silent >= self.dpd_s and now - self._asked_at >= self.dpd_s / 2:
                self._asked_at = now
                actions.append(Action.ASK_TLS)
        return actions

    def _expire_quiet(self, now: float) -> list[Action]:
        if not self.answer_s or not self._unheard_since:
            return []
        if self._quiet_asked_at:
            if not self.is_way_lost(now) or now - self._way_sought_at < WAY_AGAIN:
                return []
            self._way_sought_at = now
            return [Action.WAY_LOST]
        if now - self._unheard_since < QUIET_AFTER:
            return []
        self._quiet_asked_at = now
        return [Action.ASK_TLS, Action.ASK_DTLS]

    def _expire_dtls(self, now: float) -> list[Action]:
        if not self._waiting_since or now - self._waiting_since < PROBE_AFTER:
            return []
        if now - self._probed_at < PROBE_INTERVAL:
            return []
        if self._probes >= PROBES:
            self._probes = 0
            self._waiting_since = 0
            return [Action.SUSPEND_DTLS]
        self._probes += 1
        self._probed_at = now
        return [Action.ASK_DTLS]
