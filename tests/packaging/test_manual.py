"""The manual pages say what the programs take, all of it and nothing else."""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import vpnctl.main
import vpnd.main
from helper import __main__ as pyvpn_helper
from helper import policy
from tests.packaging.shells import PEERS
from vpnd.ipc.arguments import NAME_RULE

pytestmark = pytest.mark.once
ROOT = Path(__file__).parent.parent.parent
MAN = ROOT / "packaging/man"
PAGES = sorted(MAN.glob("*.[1-8]"))
MACROS = {".TH", ".SH", ".SS", ".PP", ".TP", ".br", ".ad", ".nh", ".B", ".I", ".BR", ".IR", ".EX",
          ".EE", ".RS", ".RE"}  # fmt: skip
NO_DATE = 'missing date, using ""'  # a page has the date of its package
PARSERS: dict[str, argparse.ArgumentParser] = {
    "vpnctl": vpnctl.main.parser(),
    "vpnd": vpnd.main.parser(),
    "pyvpn-helper": pyvpn_helper.OPTIONS,
}
REFERENCE = re.compile(r"^\.BR (pyvpn\S*|vpn\S*) \((\d)\)", re.MULTILINE)
EXAMPLE = re.compile(r"^\.EX\n(.*?)\n\.EE$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (.*)$", re.MULTILINE)
EXPLAINED = (*sorted(MAN.glob("*.in")), ROOT / "README.md")


def text_of(page: Path) -> str:
    """Return a page without the macros' quoting, on one line."""
    text = re.sub(r"\\f[BRI]|\\&", "", page.read_text())
    for shown, meant in ((r"\-", "-"), (r"\(dq", '"'), (r"\(aq", "'"), (r"\(ha", "^")):
        text = text.replace(shown, meant)
    return " ".join(text.split())


def test_nothing_is_stale() -> None:
    """Who changes an option or a key runs the generator, or learns here that it is missing."""
    done = subprocess.run(
        [sys.executable, "packaging/manual.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("program", PARSERS)
def test_every_command_and_option_has_a_text(program: str) -> None:
    """An option without a word is one that nobody can use."""
    from generate import commands

    for command in commands.read(PARSERS[program]).everything():
        assert command.text, f"{command.name}: no help and no description"
        for option in (*command.options, *command.arguments):
            assert option.text, f"{command.name}: {option.flags or option.value}: no help"


def test_every_key_has_a_text() -> None:
    """Whoever adds a key writes below its field what it is for."""
    from generate import pages

    for file, tables in pages.tables().items():
        for table in tables:
            assert table.keys, f"{file}: {table.heading}: empty"
            for key in table.keys:
                assert key.text, f"{file}: {table.heading} {key.name}: no text"


def test_every_key_of_the_policy_is_there() -> None:
    """helper.toml has no model: its sample is where the texts stand."""
    from generate import pages

    (table,) = pages.tables()["helper.toml"]
    assert {key.name for key in table.keys} == set(policy.KEYS)


def test_defaults_are_those_of_the_sample() -> None:
    """The page is read beside the file that is installed."""
    from generate import pages

    for file, sample in (("server.toml", "server.toml"), ("client.toml", "client.toml")):
        lines = (ROOT / "etc/pyvpn" / sample).read_text().splitlines()
        for table in pages.tables()[file]:
            for key in table.keys:
                shown = f"{key.name} = {key.default}"
                known = key.default is None or shown in lines
                assert known or (table.heading, key.name) in IN_SAMPLE_BY_HAND, shown


IN_SAMPLE_BY_HAND = {
    ("[tls]", "ca")
}  # the sample is for a server with a certificate of a known CA


def made(parser: argparse.ArgumentParser) -> str:
    """Return the subsections of all commands of a parser."""
    from generate import commands, roff

    top = commands.read(parser)
    return "\n".join(line for each in top.leaves() for line in roff.command(each, ()))


SYNOPSIS = (
    r"\fBtool plant oak\-tree\fR [\fB\-\-deep\fR | \fB\-\-depth\fR \fIDEPTH\fR] "
    r"\fB\-\-name\fR \fINAME\fR... \fBred\fR | \fBwhite\fR"
)


def test_a_command_to_come_needs_no_word_in_the_generator() -> None:
    """Nested ones, rivals, repetitions, choices, defaults, and what looks like a request."""
    parser = argparse.ArgumentParser(prog="tool", description="A tool.")
    actions = parser.add_subparsers().add_parser("plant", help="plant trees").add_subparsers()
    oak = actions.add_parser("oak-tree", help=".5 metres at least")
    which = oak.add_mutually_exclusive_group()
    which.add_argument("--deep", action="store_true", help="below the frost")
    which.add_argument("--depth", type=int, default=7, help="in cm, see --deep")
    oak.add_argument("-n", "--name", action="append", required=True, help="a \\name")
    oak.add_argument("kind", choices=("red", "white"), help="its kind")
    oak.add_argument("--secret", help=argparse.SUPPRESS)
    assert made(parser).splitlines() == [
        '.SS "tool plant oak\\-tree"',
        SYNOPSIS,
        ".PP",
        r"\&.5 metres at least.",
        ".TP",
        r"\fIKIND\fR",
        "Its kind.",
        r"One of \fBred\fR, \fBwhite\fR.",
        ".TP",
        r"\fB\-\-deep\fR",
        "Below the frost.",
        ".TP",
        r"\fB\-\-depth\fR \fIDEPTH\fR",
        r"In cm, see \fB\-\-deep\fR (default: 7).",
        ".TP",
        r"\fB\-n\fR \fINAME\fR, \fB\-\-name\fR \fINAME\fR",
        r"A \ename.",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_well_formed(page: Path) -> None:
    """What needs no program to be seen: only known macros, a name line, examples that end."""
    lines = page.read_text().splitlines()
    assert re.fullmatch(r'\.TH [A-Z.-]+ [1-8] "" "pyvpn [0-9.]+" "pyvpn"', lines[1])
    assert {line.split()[0] for line in lines[1:] if line.startswith(".")} <= MACROS
    assert not [line for line in lines if line.startswith(("'", "@")) or "@VERSION@" in line]
    assert lines.count(".EX") == lines.count(".EE")
    name = page.name.rpartition(".")[0].replace("-", r"\-")
    assert lines[lines.index(".SH NAME") + 1].startswith(f"{name} \\- ")
    assert all(line.isascii() and not line.endswith(" ") for line in lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_refers_to_is_there(page: Path) -> None:
    """Of our own pages; those of others are not ours to move."""
    for name, section in re.findall(
        r"^\.BR (pyvpn\S*|vpn\S*) \((\d)\)", page.read_text(), re.MULTILINE
    ):
        assert (MAN / f"{name}.{section}".replace(r"\-", "-")).exists()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.name)
def test_units_that_are_named_exist(page: Path) -> None:
    """Somebody types them."""
    text = page.read_text().replace(r"\-", "-")
    units = set(re.findall(r"(pyvpn-[a-z]+@?)[A-Z]*(\.(?:service|socket|timer|path))\b", text))
    there = {(path.stem, path.suffix) for path in (ROOT / "systemd").glob("pyvpn-*.*")}
    assert units <= there
    assert units == there or page.name != "pyvpn.7"  # which names them all


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.parametrize(
    "lint",
    [
        ["mandoc", "-T", "lint", "-W", "warning"],
        ["groff", "-man", "-Tutf8", "-ww", "-z"],
    ],
    ids=lambda lint: lint[0],
)
def test_the_formatters_have_nothing_to_say(page: Path, lint: list[str]) -> None:
    """As the checker of Debian packages asks them."""
    program = shutil.which(lint[0]) or shutil.which(lint[0], path=PEERS / "bin")
    if program is None:
        pytest.skip(f"{lint[0]} is not there (./run.sh test as root fetches mandoc)")
    done = subprocess.run(
        [program, *lint[1:], page], capture_output=True, text=True, check=False, timeout=60
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if NO_DATE not in line]
    assert said == []


def examples(path: Path) -> Iterator[str]:
    """Yield what is typed in the examples of a page's template, or of a text in Markdown."""
    text = path.read_text().replace(r"\-", "-").replace(r"\(aq", "'")
    for block in re.findall(INDENTED if path.suffix == ".md" else EXAMPLE, text):
        for line in block.splitlines():
            if typed := re.search(r"^(?:.*[|] )?(?:\./run\.sh |sudo )*(vpnctl( [^|&─]*)?)", line):
                yield typed[1]


@pytest.mark.parametrize(
    "example", sorted({line for path in EXPLAINED for line in examples(path)})
)
def test_an_example_can_be_typed(example: str) -> None:
    """A command that was renamed must not live on in a text."""
    words = shlex.split(example, comments=True)
    try:
        vpnctl.main._parse(words[1:])
    except SystemExit:
        pytest.fail(f"{example}: refused")


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("vpnctl.1", ["--json", "vpnctl client add", "--foreign", "vpnctl user passwd"]),
        ("vpnd.8", ["vpnd server", "--state-dir DIR", "vpnd client", "--prompt-fd"]),
        ("pyvpn-helper.8", ["--undo", "/run/pyvpn-helper.sock"]),
        ("pyvpn-server.toml.5", ["port = 55555", "A whole number from 1 to 65535.",
                                 "Takes effect at a restart.", 'routes = ["default"]']),
        ("pyvpn-client.toml.5", ["[[remotes]]", "pins", "block_ipv6 = true"]),
        ("pyvpn-helper.toml.5", ["kill_switch", "[user.pyvpn-client]"]),
    ],
)  # fmt: skip
def test_the_pages_hold_what_they_are_for(page: str, words: list[str]) -> None:
    """A sample of each kind, in case the generator finds nothing and is content."""
    text = text_of(MAN / page)
    assert [word for word in words if word not in text] == []


def test_the_events_that_are_explained_exist() -> None:
    """Somebody searches the page for what the log says, word for word."""
    page = (MAN / "vpnd.8").read_text()
    section = page.partition(".SS Events")[2].partition(".SH")[0]
    heads = re.findall(r"^\.TP\n\.(BR?) (.*)$", section, re.MULTILINE)
    told = [
        word for macro, line in heads for word in (shlex.split(line) if macro == "BR" else [line])
    ]
    source = "".join(path.read_text() for path in (ROOT / "vpnd").rglob("*.py"))
    events = [event for event in told if event.strip(", ")]
    assert len(events) > 5
    assert [event for event in events if f'"{event}"' not in source] == []


def test_the_messages_that_the_readme_explains_exist() -> None:
    """Somebody searches it for what the log says, word for word."""
    table = (ROOT / "README.md").read_text().partition("| the line says |")[2].partition("\n\n")[0]
    told = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    source = "".join(
        path.read_text()
        for top in ("vpnd", "vpnctl", "helper")
        for path in (ROOT / top).rglob("*.py")
    )
    assert len(told) > 4
    assert [message for message in told if message not in source] == []


@pytest.mark.parametrize(
    ("package", "page"), [("vpnd", "vpnd.8"), ("helper", "pyvpn-helper.8"), ("vpnctl", "vpnctl.1")]
)
def test_what_is_read_from_the_environment_is_told(package: str, page: str) -> None:
    """It changes what a program does, and no --help shows it."""
    source = "".join(path.read_text() for path in (ROOT / package).rglob("*.py"))
    read = set(
        re.findall(
            r'(?:os\.environ|environment\.get|environ\.get|environ\.pop)[([]"([A-Z_]+)"', source
        )
    )
    read |= set(re.findall(r'"([A-Z_]+)" in os\.environ', source))
    section = text_of(MAN / page).partition(".SH ENVIRONMENT")[2].partition(".SH")[0]
    assert {name for name in read if name not in section} == set()


def test_the_rule_for_names_is_told() -> None:
    """As the daemon tells it to whoever breaks it."""
    characters = NAME_RULE.removeprefix("use 1 to 64 of the characters ")
    assert characters.split(",")[0] in text_of(MAN / "vpnctl.1")


def test_help_of_every_command_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """A stray percent sign in a help text is a traceback for who asks for help."""
    from generate import commands

    mains: dict[str, Callable[[list[str]], object]] = {
        "vpnctl": vpnctl.main.main,
        "vpnd": vpnd.main.main,
    }
    for program, run in mains.items():
        for command in commands.read(PARSERS[program]).everything():
            with pytest.raises(SystemExit, match="0"):
                run([*command.words[1:], "--help"])
            assert f"usage: {command.name}" in capsys.readouterr().out
