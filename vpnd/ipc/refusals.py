"""How a method of org.pyvpn.Daemon refuses: typed errors, each one sentence for the operator."""
# An error declares its fields in a nested class.
# ruff: noqa: D106

from asyncvarlink import TypedVarlinkErrorReply

INTERFACE = "org.pyvpn.Daemon"


class NotFound(TypedVarlinkErrorReply, interface=INTERFACE):
    """There is no such user, client or session."""

    class Parameters:
        kind: str
        name: str

    def __str__(self) -> str:
        if self.p_kind == "session":
            return f"there is no session {self.p_name!r} now; `vpnctl status` shows all"
        return f"there is no {self.p_kind} {self.p_name!r}; `vpnctl {self.p_kind} list` shows all"


class AlreadyExists(TypedVarlinkErrorReply, interface=INTERFACE):
    """A user or client of this name is there already."""

    class Parameters:
        kind: str
        name: str

    def __str__(self) -> str:
        return f"the {self.p_kind} {self.p_name!r} exists already; choose another name"


class InvalidValue(TypedVarlinkErrorReply, interface=INTERFACE):
    """A parameter has a value that is refused; `reason` says what is accepted."""

    class Parameters:
        parameter: str
        reason: str

    def __str__(self) -> str:
        return f"{self.p_parameter}: {self.p_reason}"


class Ambiguous(TypedVarlinkErrorReply, interface=INTERFACE):
    """Several users have a client of this name: say whose."""

    class Parameters:
        name: str
        users: list[str]

    def __str__(self) -> str:
        users = ", ".join(self.p_users)
        return f"several users have a client {self.p_name!r}: say which with --user ({users})"


class Failed(TypedVarlinkErrorReply, interface=INTERFACE):
    """The daemon could not do it; `reason` is one sentence for the operator."""

    class Parameters:
        reason: str

    def __str__(self) -> str:
        return str(self.p_reason)
