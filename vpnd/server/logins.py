"""The master's answers to the login steps that workers pass on."""

import time

from vpnd import log
from vpnd.auth.certificate import CertificateMethod
from vpnd.auth.contract import AuthMethod
from vpnd.auth.hasher import PasswordHasher
from vpnd.auth.login import LoginBusy, LoginForm, LoginRefused, LoginService
from vpnd.auth.password import PasswordMethod
from vpnd.config.model import AuthOptions
from vpnd.errors import VpnError
from vpnd.server.sessions import Sessions
from vpnd.store.contract import Store
from vpnd.worker.messages import FormInput, LoginQuery, LoginReply


class Logins:
    """Login steps in, replies out; a login that succeeds becomes a session."""

    def __init__(
        self, options: AuthOptions, store: Store, hasher: PasswordHasher, sessions: Sessions
    ) -> None:
        self._known: dict[str, AuthMethod] = {
            "certificate": CertificateMethod(store),
            "password": PasswordMethod(store, hasher),
        }
        self._sessions = sessions
        self._service = LoginService(
            [self._known[name] for name in options.methods],
            login_timeout_s=options.login_timeout_s,
            password_attempts=options.password_attempts,
        )

    def adopt(self, options: AuthOptions) -> None:
        """Go by other options from now on; a method that is switched off accepts nobody more."""
        self._service.adopt(
            [self._known[name] for name in options.methods],
            login_timeout_s=options.login_timeout_s,
            password_attempts=options.password_attempts,
        )

    async def step(self, query: LoginQuery) -> LoginReply:
        """Judge one step and log what a person should know of it."""
        now = time.time()
        result = await self._service.step(
            login_cookie=query.login_cookie,
            fields=query.values,
            group=query.group,
            restart=query.restart,
            certificate=query.certificate,
            address=query.address,
            now=now,
        )
        if isinstance(result, LoginForm):
            if result.reason:
                log.warning(
                    "login failed", user=result.user, address=query.address, reason=result.reason
                )
            inputs = [FormInput(i.name, i.type, i.label) for i in result.inputs]
            return LoginReply("form", result.message, result.error, inputs, result.login_cookie)
        if isinstance(result, LoginBusy):
            log.warning("login put off", address=query.address, reason=result.reason_for_log)
            return LoginReply("busy")
        if isinstance(result, LoginRefused):
            log.warning(
                "login refused",
                user=result.user,
                address=query.address,
                reason=result.reason_for_log,
            )
            return LoginReply("refused", result.message_for_peer)
        try:
            cookie = self._sessions.begin(result, time.time())
        except VpnError as exc:
            log.error("login put off", user=result.user, address=query.address, reason=str(exc))
            return LoginReply("busy")
        log.event(
            "login accepted",
            user=result.user,
            client=result.client,
            address=query.address,
            method=result.method,
        )
        return LoginReply("accepted", cookie=cookie)

    def expire(self, now: float) -> None:
        """Forget half-finished logins past their time."""
        self._service.expire(now)
