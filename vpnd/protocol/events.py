"""What the state machines tell the worker: values, no behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vpnd.wire.tunnel_params import ConnectRequest


@dataclass(frozen=True, slots=True)
class LoginStep:
    """The client sent a step of its login; answer with one of the channel's `login_*`."""

    fields: Mapping[str, str] = field(repr=False)
    group: str | None
    login_cookie: str | None = field(repr=False)
    restart: bool


@dataclass(frozen=True, slots=True)
class TunnelRequested:
    """The client asks for its tunnel; answer with `tunnel_opened` or `tunnel_refused`."""

    connect: ConnectRequest


@dataclass(frozen=True, slots=True)
class LogoutRequested:
    """The client is done with its session; end what the cookie opens, and call `logged_out`."""

    cookie: str | None = field(repr=False)


Event = LoginStep | TunnelRequested | LogoutRequested
