"""Logins as conversations: forms out, answers in, over any number of connections.

No transport here: the caller finds the login cookie in the request and puts the one it is
given into the answer.  Each configured method suffices alone.  One answer of a login is
judged at a time, so that the number of tries holds for peers that send many at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vpnd.auth.contract import (
    Accepted,
    AuthMethod,
    CertificateFacts,
    Challenge,
    Outcome,
    Rejected,
    Request,
)
from vpnd.auth.pending import PendingLogin, PendingLogins
from vpnd.errors import AuthError, StoreError
from vpnd.wire.auth_messages import Input

LOGIN_TIMEOUT_S = 240
PASSWORD_ATTEMPTS = 3
NOTHING_OFFERED = "A client certificate is required."


@dataclass(frozen=True, slots=True)
class LoginForm:
    """Ask the peer; `error` is what it did wrong last time, `reason` the same for the log."""

    message: str
    error: str | None
    inputs: tuple[Input, ...]
    login_cookie: str = field(repr=False)
    reason: str | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True)
class LoginAccepted:
    """The peer may have a session."""

    user: str
    client: str | None
    method: str
    serial: str | None


@dataclass(frozen=True, slots=True)
class LoginRefused:
    """The login is over; `user` is the name that was claimed, fit for a log."""

    reason_for_log: str
    message_for_peer: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class LoginBusy:
    """Nothing was decided: answer 503."""

    reason_for_log: str


LoginResult = LoginForm | LoginAccepted | LoginRefused | LoginBusy


class LoginService:
    """All logins of a server."""

    def __init__(
        self,
        methods: Sequence[AuthMethod],
        *,
        login_timeout_s: float = LOGIN_TIMEOUT_S,
        password_attempts: int = PASSWORD_ATTEMPTS,
    ) -> None:
        self._methods = tuple(methods)
        self._attempts = password_attempts
        self._pending = PendingLogins(login_timeout_s)

    def adopt(
        self, methods: Sequence[AuthMethod], *, login_timeout_s: float, password_attempts: int
    ) -> None:
        """Go by other rules from now on; a login at a method that is gone begins anew."""
        self._methods = tuple(methods)
        self._attempts = password_attempts
        self._pending.timeout_s = login_timeout_s

    async def step(
        self,
        *,
        login_cookie: str | None,
        fields: Mapping[str, str],
        group: str | None,
        restart: bool,
        certificate: CertificateFacts | None,
        address: str,
        now: float,
    ) -> LoginResult:
        """Take one request of a login and return what to answer.  Raises nothing expected.

        `restart` (an `init`) asks the first question again, but failures stay counted.
        """
        request = Request({} if restart else fields, certificate, group, address, now)
        cookie, login = self._find(login_cookie, address, now)
        if login.is_being_judged:
            return LoginBusy("another answer of this login is being judged")
        if restart:
            login.challenge = None
        login.is_being_judged = True
        try:
            outcome = await self._ask(login, request)
        except (AuthError, StoreError) as exc:
            if cookie != login_cookie:  # the peer never learned it
                self._pending.drop(cookie)
            return LoginBusy(str(exc))
        finally:
            login.is_being_judged = False
        return self._conclude(cookie, login, outcome)

    def _find(self, cookie: str | None, address: str, now: float) -> tuple[str, PendingLogin]:
        if cookie is not None:
            login = self._pending.find(cookie, now)
            if login is not None:
                return cookie, login
        return self._pending.add(address, now)

    async def _ask(self, login: PendingLogin, request: Request) -> Outcome:
        challenge = login.challenge if login.method in self._methods else None
        if challenge is None:
            outcome = await self._start(login, request)
            if not isinstance(outcome, Challenge) or not request.fields:
                return outcome
            challenge = outcome  # answered unasked
        assert login.method is not None, "a method has asked"
        return await login.method.answer(challenge.state, request)

    async def _start(self, login: PendingLogin, request: Request) -> Outcome:
        """Start all methods: one that decides without a question goes before all that ask.

        So a certificate that is not accepted stays refused whatever else the peer brings,
        in whatever order the methods are configured.
        """
        question: Challenge | None = None
        for method in self._methods:
            outcome = await method.start(request)
            if isinstance(outcome, Accepted | Rejected):
                login.method = method
                return outcome
            if outcome is not None and question is None:
                question, login.method = outcome, method
        return question or Rejected("no method fits this peer", NOTHING_OFFERED, None)

    def _conclude(self, cookie: str, login: PendingLogin, outcome: Outcome) -> LoginResult:
        if isinstance(outcome, Challenge):
            login.challenge = outcome
            return LoginForm(outcome.message, None, outcome.inputs, cookie)
        if isinstance(outcome, Accepted):
            self._pending.drop(cookie)
            assert login.method is not None, "a method has accepted"
            return LoginAccepted(outcome.user, outcome.client, login.method.name, outcome.serial)
        login.failures += 1
        login.challenge = outcome.retry
        if outcome.retry is None or login.failures >= self._attempts:
            self._pending.drop(cookie)
            return LoginRefused(outcome.reason, outcome.message, outcome.user)
        return LoginForm(
            outcome.retry.message,
            outcome.message,
            outcome.retry.inputs,
            cookie,
            outcome.reason,
            outcome.user,
        )

    def expire(self, now: float) -> None:
        """Forget half-finished logins past their time; calling it now and then is enough."""
        self._pending.expire(now)
