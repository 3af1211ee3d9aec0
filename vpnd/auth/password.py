"""Login by user name and password, asked for in one form; peers may answer them one by one.

An unknown user, one without a password, a disabled one and a wrong password look alike:
the same words, the same number of tries, the same time.
"""

from vpnd.auth.contract import Accepted, Challenge, Outcome, Rejected, Request
from vpnd.auth.hasher import PasswordHasher
from vpnd.auth.password_hash import parse_hash
from vpnd.auth.standing import shown, user_refusal
from vpnd.errors import AuthError
from vpnd.store.contract import NAME, Store
from vpnd.wire.auth_messages import Input

REFUSAL = "Login failed."
USERNAME = Input("username", "text", "Username:")
PASSWORD = Input("password", "password", "Password:")
ASK_BOTH = Challenge("Please enter your username and password.", (USERNAME, PASSWORD))
ASK_USERNAME = "Please enter your username."
ASK_PASSWORD = "Please enter your password."  # noqa: S105 - what the peer reads
MAX_USERNAME = 256  # characters; longer ones are nobody's


class PasswordMethod:
    """The user's name and password, checked against the store."""

    name = "password"

    def __init__(self, store: Store, hasher: PasswordHasher) -> None:
        self._store = store
        self._hasher = hasher

    async def start(self, request: Request) -> Outcome | None:  # noqa: ARG002 - asks everybody
        """Ask for both."""
        return ASK_BOTH

    async def answer(self, state: str | None, request: Request) -> Outcome:
        """Judge the password; `state` is the user name of an earlier step."""
        username = request.fields.get("username", "") or state or ""
        password = request.fields.get("password")
        if not username:
            return ASK_BOTH
        if password is None:
            return Challenge(ASK_PASSWORD, (PASSWORD,), username[:MAX_USERNAME])
        return await self._judge(username, password, request)

    async def _judge(self, username: str, password: str, request: Request) -> Outcome:
        user = self._store.users.get(username) if NAME.fullmatch(username) else None
        encoded = None if user is None else user.password_hash
        reason = user_refusal(user, request.now)
        if reason is None and encoded is None:
            reason = "user has no password"
        try:
            expected = None if encoded is None else parse_hash(encoded)
        except AuthError as exc:
            expected, reason = None, str(exc)
        is_right = await self._hasher.verify(password, expected, address=request.address)
        if reason is None and not is_right:
            reason = "wrong password"
        if reason is not None:
            return Rejected(reason, REFUSAL, shown(username), retry=ASK_BOTH)
        return Accepted(username)
