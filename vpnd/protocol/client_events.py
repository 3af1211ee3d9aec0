"""What the client's channel tells the worker: values, no behaviour."""

from dataclasses import dataclass, field

from vpnd.wire.auth_client import AskedInput, Choice
from vpnd.wire.params_client import ServerParams


@dataclass(frozen=True, slots=True)
class FormAsked:
    """The server asks for `inputs` and `choices`: `ClientChannel.answer` them all.

    Texts may be shown as they are; a choice has more than one option.  `error` is what was wrong
    with the last answer, empty the first time.
    """

    message: str
    error: str
    inputs: tuple[AskedInput, ...]
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The login is complete: this cookie opens tunnels."""

    cookie: str = field(repr=False)
    banner: str = ""


@dataclass(frozen=True, slots=True)
class LoginRefused:
    """This login is over.  When `final`, the same answers will be refused again."""

    reason: str
    final: bool


@dataclass(frozen=True, slots=True)
class Redirected:
    """The server sends us elsewhere, by https: connect there and `start` with this path."""

    host: str
    port: int
    path: str


@dataclass(frozen=True, slots=True)
class NewConnectionNeeded:
    """The next request waits for another connection: make one and let its channel `resume`."""


@dataclass(frozen=True, slots=True)
class TunnelOpened:
    """Packets from here on; `packets` are the (type, payload) that came with the answer."""

    params: ServerParams
    packets: tuple[tuple[int, memoryview], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class TunnelRefused:
    """No tunnel.  `cookie_refused`: log in again; else another attempt may work."""

    status: int
    reason: str
    cookie_refused: bool


LoginEvent = FormAsked | LoggedIn | LoginRefused | Redirected
ClientEvent = LoginEvent | NewConnectionNeeded | TunnelOpened | TunnelRefused
