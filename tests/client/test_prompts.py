"""Who answers a login: descriptors first, then a person, and nobody for ever."""

import asyncio
import json
import os
import pty
import socket
import termios
from collections.abc import Mapping, Sequence

import pytest

from vpnd.client import prompts
from vpnd.client.prompts import Answers, Relay, Terminal, read_secrets
from vpnd.errors import ConfigError
from vpnd.worker.messages import FormInput, Prompt, PromptReply

USERNAME = FormInput("username", "text", "Username:")
PASSWORD = FormInput("password", "password", "Password:")
CODE = FormInput("password", "password", "One-time code:")


GROUP = FormInput("group_list", "choice", "GROUP:", {"staff": "Our staff", "guests": "For guests"})


class Typist:
    """A person who types one line after the other, and remembers the labels seen."""

    def __init__(self, *lines: str) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self._lines = list(lines)

    async def ask(self, message: str, fields: Sequence[FormInput]) -> Mapping[str, str] | None:
        self.asked.append((message, [field.label for field in fields]))
        return {field.name: self._lines.pop(0) for field in fields}


class Somebody:
    """A person who answers each field with the same word and remembers being asked."""

    def __init__(self, word: str | None = "typed") -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self._word = word

    async def ask(self, message: str, fields: Sequence[FormInput]) -> Mapping[str, str] | None:
        self.asked.append((message, [field.name for field in fields]))
        return None if self._word is None else dict.fromkeys((f.name for f in fields), self._word)


def answered(answers: Answers, *inputs: FormInput, error: str | None = None) -> PromptReply:
    return asyncio.run(answers.answer(Prompt("Please log in", error, list(inputs))))


def test_what_is_known_is_not_asked() -> None:
    """The profile's user and the descriptor's password: nobody is needed."""
    answers = Answers("alice", None, passwords=["secret"])
    reply = answered(answers, USERNAME, PASSWORD)
    assert reply.values == {"username": "alice", "password": "secret"}
    assert not reply.cancelled
    assert "secret" not in repr(reply)


def test_a_person_is_asked_for_the_rest_only() -> None:
    """And sees what the server says."""
    person = Somebody()
    reply = answered(Answers("alice", person), USERNAME, PASSWORD)
    assert reply.values == {"username": "alice", "password": "typed"}
    assert person.asked == [("Please log in", ["password"])]


def test_a_group_is_the_profiles(caplog: pytest.LogCaptureFixture) -> None:
    """By its value or its label; and no other is taken for it."""
    caplog.set_level("INFO")
    person = Somebody("2")
    for written in ("guests", "For GUESTS"):
        assert answered(Answers("", person, group=written), GROUP).values == {
            "group_list": "guests"
        }
    assert "group chosen: name=guests" in caplog.text
    reply = answered(Answers("", person, group="admins"), GROUP)
    assert reply.cancelled
    assert reply.reason == "the server has no group 'admins'; it offers staff, guests"
    assert person.asked == []


def test_a_person_chooses_the_group_once(caplog: pytest.LogCaptureFixture) -> None:
    """Of what is shown; what is not offered is asked again, and nothing is the first."""
    caplog.set_level("INFO")
    person = Typist("nothing", "For guests")
    answers = Answers("", person)
    for _ in range(2):
        assert answered(answers, GROUP).values == {"group_list": "guests"}
    assert person.asked == [
        ("Please log in", ["GROUP (Our staff, For guests)"]),
        ("Choose one of those that are offered.", ["GROUP (Our staff, For guests)"]),
    ]
    assert caplog.text.count("group chosen") == 1
    assert answered(Answers("", Typist("")), GROUP).values == {"group_list": "staff"}


def test_where_nobody_is_there_the_servers_choice_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not taken without a word."""
    caplog.set_level("INFO")
    assert answered(Answers("", None), GROUP).values == {"group_list": "staff"}
    assert 'group chosen: name=staff reason="the server\'s own choice"' in caplog.text


def test_a_refused_password_is_not_sent_again(caplog: pytest.LogCaptureFixture) -> None:
    """The next line of the descriptor, then nobody: a loop would lock the user out."""
    answers = Answers("alice", None, passwords=["wrong", "right"])
    assert answered(answers, PASSWORD).values == {"password": "wrong"}
    assert not caplog.records
    assert answered(answers, PASSWORD, error="Login failed").values == {"password": "right"}
    assert 'an answer of the login was refused: reason="Login failed"' in caplog.text
    assert answered(answers, PASSWORD, error="Login failed").cancelled


def test_a_new_login_has_the_password_again() -> None:
    """Unattended clients come back after their session is over."""
    answers = Answers("alice", None, passwords=["secret"])
    answered(answers, PASSWORD)
    answers.accepted()
    answers.begin()
    assert answered(answers, PASSWORD).values == {"password": "secret"}


def test_the_second_secret_of_a_login_is_the_code() -> None:
    """ocserv asks for it in another field of the same name; each code is worth one login."""
    answers = Answers("alice", None, passwords=["secret"], codes=["111", "222"])
    answers.begin()
    assert answered(answers, PASSWORD).values == {"password": "secret"}
    assert answered(answers, CODE).values == {"password": "111"}
    answers.accepted()
    answers.begin()
    assert answered(answers, PASSWORD).values == {"password": "secret"}
    assert answered(answers, CODE).values == {"password": "222"}


def test_nobody_to_ask_ends_the_login(caplog: pytest.LogCaptureFixture) -> None:
    """And the log says which option would have helped."""
    assert answered(Answers("alice", None), PASSWORD).cancelled
    assert "--password-fd" in caplog.text


def test_a_person_who_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server has forgotten the login by then."""

    class Asleep:
        async def ask(self, _m: str, _f: Sequence[FormInput]) -> Mapping[str, str] | None:
            await asyncio.Event().wait()
            return None

    monkeypatch.setattr(prompts, "PROMPT_TIMEOUT_S", 0.01)
    assert answered(Answers("alice", Asleep()), PASSWORD).cancelled


def test_a_person_may_give_up() -> None:
    """End of input."""
    assert answered(Answers("", Somebody(None)), USERNAME, PASSWORD).cancelled


def given(data: bytes) -> int:
    read, write = os.pipe()
    os.write(write, data)
    os.close(write)
    return read


def test_a_descriptor_is_read_to_its_end() -> None:
    """Lines, with the end of the last one or without."""
    assert read_secrets(given(b"one\ntwo")) == ["one", "two"]
    assert (
        read_secrets(given("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n\n".encode()))[0] == "grün"
    )


@pytest.mark.parametrize("data", [b"", b"\n", b"\xff\xfe", b"x" * 5000])
def test_a_descriptor_without_a_secret_is_one_sentence(data: bytes) -> None:
    """Found out at the start, not at the login."""
    with pytest.raises(ConfigError, match="descriptor"):
        read_secrets(given(data))


def test_a_closed_descriptor_is_one_sentence() -> None:
    """--password-fd 3 and no 3<FILE."""
    fd = given(b"x")
    os.close(fd)
    with pytest.raises(ConfigError, match="open it"):
        read_secrets(fd)


def test_the_terminal_hides_what_is_typed_and_is_left_as_it_was() -> None:
    """Also a message that would steer it comes out as plain text."""
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)

    async def main() -> Mapping[str, str] | None:
        asking = asyncio.create_task(
            Terminal(theirs).ask("Hello\x1b[2J\nthere", [USERNAME, PASSWORD])
        )
        loop = asyncio.get_running_loop()
        shown = b""
        for label, typed in ((b"Username: ", b"bob\n"), (b"Password: ", b"secret\n")):
            while label not in shown:
                shown += await loop.run_in_executor(None, os.read, ours, 1000)
            os.write(ours, typed)
        answers = await asking
        shown += os.read(ours, 1000)
        assert b"\x1b" not in shown
        assert b"secret" not in shown
        assert b"Hello [2J" in shown
        return answers

    try:
        assert asyncio.run(main()) == {"username": "bob", "password": "secret"}
        assert termios.tcgetattr(theirs) == before
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_relay_asks_whoever_started_us() -> None:
    """One line out, one line in."""
    ours, theirs = socket.socketpair()

    async def main() -> Mapping[str, str] | None:
        relay = Relay(ours)
        asking = asyncio.create_task(relay.ask("Hello", [PASSWORD]))
        loop = asyncio.get_running_loop()
        line = await loop.run_in_executor(None, theirs.recv, 4096)
        said = json.loads(line)
        assert said["prompt"] == "Hello"
        assert said["inputs"] == [{"name": "password", "type": "password", "label": "Password:"}]
        theirs.sendall(b'{"values": {"password": "x"}}\n')
        return await asking

    with ours, theirs:
        assert asyncio.run(main()) == {"password": "x"}


@pytest.mark.parametrize("said", [b"", b"junk\n", b"[]\n", b'{"cancelled": true}\n'])
def test_a_relay_that_breaks_is_no_answer(said: bytes) -> None:
    """It went away, or is no vpnctl: the login ends, vpnd does not."""
    ours, theirs = socket.socketpair()
    theirs.sendall(said)
    theirs.shutdown(socket.SHUT_WR)
    with ours, theirs:
        assert answered(Answers("", Relay(ours)), PASSWORD).cancelled
