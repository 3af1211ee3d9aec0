"""Answers to a login form: from what was given beforehand, then from a person.

Secrets come from file descriptors or the terminal, never from arguments or the environment,
and are forgotten once they are sent: only what a descriptor gave is kept, to log in again.
"""

import asyncio
import json
import os
import re
import socket
import termios
from collections.abc import Mapping, Sequence
from typing import Protocol

from vpnd import log
from vpnd.errors import AuthError, ConfigError
from vpnd.wire.auth_client import GROUP_LIST
from vpnd.worker.messages import FormInput, Prompt, PromptReply

MAX_SECRETS = 4096  # bytes read from a descriptor
MAX_ANSWER = 1024  # bytes of one answer
MAX_INPUTS = 16  # fields of one form that a person is asked for
PROMPT_TIMEOUT_S = 240.0  # for a whole form: servers keep a login open so long
CHOICE = "choice"  # type of a field with options
HIDDEN = "password"  # type of a field that must not be seen
ONE_TIME = re.compile(r"\b(otp|totp|one.?time|code|token|challenge|secondary)", re.IGNORECASE)
TERMINAL = "/dev/tty"


class Person(Protocol):
    """Somebody who can be asked."""

    async def ask(self, message: str, fields: Sequence[FormInput]) -> Mapping[str, str] | None:
        """Return an answer for each field by its name, or None when there is none."""


def read_all(fd: int, at_most: int) -> bytes:
    """Return what a descriptor gives until its end, a little more than `at_most`; close it."""
    data = b""
    try:
        with open(fd, "rb", buffering=0) as file:
            while len(data) <= at_most and (piece := file.read(at_most + 1)):
                data += piece
    except OSError as exc:
        raise ConfigError(
            f"descriptor {fd} cannot be read ({exc.strerror}); open it, as in {fd}<FILE"
        ) from exc
    return data


def read_secrets(fd: int) -> list[str]:
    """Return the lines that a descriptor gives until its end, and close it."""
    data = read_all(fd, MAX_SECRETS)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"descriptor {fd} gives no UTF-8; write the secret as UTF-8") from None
    if not any(lines) or len(data) > MAX_SECRETS:
        raise ConfigError(f"descriptor {fd} gives no secret of 1 to {MAX_SECRETS} bytes")
    return lines


class Answers:
    """Answers the worker's prompts."""

    def __init__(
        self,
        user: str,
        person: Person | None,
        *,
        group: str = "",
        passwords: Sequence[str] = (),
        codes: Sequence[str] = (),
    ) -> None:
        """Take the user's name and what was read from descriptors, in the order of use."""
        self._user = user
        self._person = person
        self._group = group
        self._chosen: dict[str, str] = {}  # by field, for the next form that offers it
        self._passwords = list(passwords)
        self._codes = list(codes)
        self._given: set[str] = set()  # kinds of secret sent in this login
        self._last: set[str] = set()  # those sent in its last step

    def begin(self) -> None:
        """A new login begins: the same password is asked for again."""
        self._given.clear()

    def accepted(self) -> None:
        """The login is over: its one-time code is worth nothing any more."""
        if "code" in self._given and self._codes:
            self._codes.pop(0)
        self._given.clear()
        self._last.clear()

    async def answer(self, prompt: Prompt) -> PromptReply:
        """Return what to send; cancelled when there is nothing (more) to say."""
        if prompt.error:
            log.warning("an answer of the login was refused", reason=prompt.error)
            self._forget_refused()
        self._last.clear()
        values: dict[str, str] = {}
        asked: list[FormInput] = []
        for field in prompt.inputs[:MAX_INPUTS]:
            try:
                known = self._known(field, prompt)
            except AuthError as exc:
                return PromptReply(values={}, cancelled=True, reason=str(exc))
            if known is None:
                asked.append(field)
            else:
                values[field.name] = known
        if asked:
            told = await self._ask_person(prompt, asked)
            if told is None:
                reason = f"login refused: {prompt.error}" if prompt.error else ""
                return PromptReply(values={}, cancelled=True, reason=reason)
            values |= told
        for field in prompt.inputs:
            if field.type == CHOICE:
                self._choose(field, values[field.name])
        return PromptReply(values=values, cancelled=False)

    def _known(self, field: FormInput, prompt: Prompt) -> str | None:
        if field.type == CHOICE:
            return self._known_choice(field)
        if field.type != HIDDEN:
            return self._user or None if field.name == "username" else None
        kind, lines = "password", self._passwords
        text = f"{field.name} {field.label} {prompt.message}"
        if self._codes and ("password" in self._given or ONE_TIME.search(text)):
            kind, lines = "code", self._codes
        if not lines or kind in self._given:
            return None
        self._given.add(kind)
        self._last.add(kind)
        return lines[0]

    def _known_choice(self, field: FormInput) -> str | None:
        """Return what the profile or an earlier answer says, or None: ask the person.

        Where nobody can be asked, the server's own choice.  Raises AuthError when the profile's
        group is not among them.
        """
        if field.name == GROUP_LIST and self._group:
            found = _option(field, self._group)
            if found is None:
                offered = ", ".join(field.options)
                raise AuthError(f"the server has no group {self._group!r}; it offers {offered}")
            return found
        chosen = self._chosen.get(field.name)
        if chosen in field.options:
            return chosen
        return None if self._person is not None else next(iter(field.options))

    def _choose(self, field: FormInput, value: str) -> None:
        """Log what was chosen, once, and keep it for the next form."""
        if self._chosen.get(field.name) != value:
            self._chosen[field.name] = value
            reason = "" if self._group or self._person else "the server's own choice"
            log.event("group chosen", name=value, reason=reason)

    def _forget_refused(self) -> None:
        """What was sent last was wrong: go on to the next lines of the descriptors."""
        for kind, lines in (("password", self._passwords), ("code", self._codes)):
            if kind in self._last and lines:
                lines.pop(0)
        self._given -= self._last

    async def _ask_person(
        self, prompt: Prompt, asked: Sequence[FormInput]
    ) -> Mapping[str, str] | None:
        if self._person is None:
            log.error(
                "login needs an answer and nobody can be asked: use --password-fd or --otp-fd",
                name=" ".join(field.name for field in asked),
                reason=prompt.error,
            )
            return None
        message = "\n".join(filter(None, (prompt.error, prompt.message)))
        try:
            async with asyncio.timeout(PROMPT_TIMEOUT_S):
                return await _ask(self._person, message, asked)
        except TimeoutError:
            log.error("nobody answered the login", count=int(PROMPT_TIMEOUT_S))
        except (OSError, AuthError) as exc:
            log.error("nobody can be asked for the login", error=str(exc))
        return None


async def _ask(
    person: Person, message: str, fields: Sequence[FormInput]
) -> Mapping[str, str] | None:
    """Ask for each field, and again for a choice that was not offered."""
    answers: dict[str, str] = {}
    while fields:
        told = await person.ask(message, [_as_question(field) for field in fields])
        if told is None:
            return None
        answers |= told
        wrong = []
        for field in fields:
            if field.type == CHOICE:
                chosen = _option(field, answers.get(field.name, ""))
                answers[field.name] = chosen or ""
                wrong += [] if chosen else [field]
        fields, message = wrong, "Choose one of those that are offered."
    return answers


def _as_question(field: FormInput) -> FormInput:
    """Return a choice as a line of text that names what there is."""
    if field.type != CHOICE:
        return field
    label = field.label.rstrip(": ")
    offered = ", ".join(dict.fromkeys(field.options.values()))
    return FormInput(field.name, "text", f"{label} ({offered})")


def _option(field: FormInput, written: str) -> str | None:
    """Return the value of the option with that value or label; of the first for nothing."""
    wanted = written.strip().casefold()
    for value, label in field.options.items():
        if wanted in ("", value.casefold(), label.casefold()):
            return value
    return None


def printable(text: str) -> str:
    """Return a server's text with nothing in it that could steer a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)


class Terminal:
    """The person at the terminal that this process was started from."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def open(cls) -> "Terminal | None":
        """Return the controlling terminal, or None where there is none."""
        try:
            return cls(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return None

    async def ask(self, message: str, fields: Sequence[FormInput]) -> Mapping[str, str] | None:
        """Show the message and ask field by field; an empty line answers with nothing."""
        for line in message.splitlines():
            self._write(f"{printable(line)}\n")
        answers = {}
        for field in fields:
            label = printable(field.label or field.name).rstrip(": ")
            answer = await self._line(f"{label}: ", hidden=field.type == HIDDEN)
            if answer is None:
                return None
            answers[field.name] = answer
        return answers

    def _write(self, text: str) -> None:
        os.write(self._fd, text.encode())

    async def _line(self, label: str, *, hidden: bool) -> str | None:
        """Return one line without its end, None at the end of input."""
        before = termios.tcgetattr(self._fd)
        if hidden:
            silent = termios.tcgetattr(self._fd)
            silent[3] &= ~termios.ECHO
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, silent)
        try:
            self._write(label)
            line = await self._read()
        finally:
            if hidden:
                termios.tcsetattr(self._fd, termios.TCSAFLUSH, before)
                self._write("\n")
        return None if not line else line.decode(errors="replace").rstrip("\r\n")

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._fd, readable.set)
        try:
            await readable.wait()  # a terminal gives whole lines
            return os.read(self._fd, MAX_ANSWER)
        finally:
            loop.remove_reader(self._fd)


class Relay:
    """The person behind the program that started us: JSON lines over a socket.

    We say {"prompt": MESSAGE, "inputs": [{"name", "type", "label"}]} and get {"values": {...}}
    or {"cancelled": true}; {"state": ..., "reason": ...} and {"ended": REASON} tell how it goes.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._held = b""
        self._gone = False

    @classmethod
    def of(cls, fd: int) -> "Relay":
        try:
            return cls(socket.socket(fileno=fd))
        except OSError as exc:
            raise ConfigError(f"descriptor {fd} is no socket ({exc.strerror})") from exc

    def tell(self, **facts: object) -> None:
        """Say something that has no answer; lost when nobody listens any more."""
        if not self._gone:
            try:
                self._socket.send(json.dumps(facts).encode() + b"\n")
            except OSError:
                self._gone = True

    async def ask(self, message: str, fields: Sequence[FormInput]) -> Mapping[str, str] | None:
        inputs = [{"name": f.name, "type": f.type, "label": f.label} for f in fields]
        self.tell(prompt=message, inputs=inputs)
        if self._gone:
            raise AuthError("whoever started vpnd went away; give the password by descriptor")
        line = await self._line()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        values = answer.get("values") if isinstance(answer, dict) else None
        if not isinstance(values, dict):
            return None
        return {str(name): str(value) for name, value in values.items()}

    async def _line(self) -> bytes:
        loop = asyncio.get_running_loop()
        while b"\n" not in self._held:
            data = await loop.sock_recv(self._socket, MAX_ANSWER * MAX_INPUTS)
            if not data or len(self._held) > MAX_ANSWER * MAX_INPUTS:
                self._gone = True
                raise AuthError("whoever started vpnd went away")
            self._held += data
        line, _, self._held = self._held.partition(b"\n")
        return line

    def close(self) -> None:
        self._gone = True
        self._socket.close()
