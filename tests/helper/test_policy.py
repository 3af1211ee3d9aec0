"""helper.toml: who may have what, and what an administrator is told."""

import os
import tomllib
from pathlib import Path

import pytest

from helper import policy
from helper.messages import Hello, OpenSockets, OpenTun, Refused, Request, SetFirewall, SetLink

SAMPLE = Path(__file__).parent.parent.parent / "etc/pyvpn/helper.toml"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of root's")
TEXT = """\
[user.pyvpn]
# interfaces = ["pyvpn9"]
interfaces = ["pyvpn0-2", "pyvpn7"]
networks = ["10.0.0.0/8"]

[user.other]
ports = [443, "1000-2000"]
"""


def link(*addresses: str, routes: tuple[str, ...] = ()) -> SetLink:
    return SetLink(1400, addresses, routes, forwarding=False)


def full(*, block_ipv6: bool) -> SetLink:
    addresses, routes = ("10.8.0.2/32",), ("10.0.0.0/8",)
    excluded = {"exclude": ("198.51.100.0/24",), "keep_outside": True}
    return SetLink(1400, addresses, routes, False, **excluded, block_ipv6=block_ipv6)


def listen(port: int) -> OpenSockets:
    return OpenSockets((("::", port),), 1, 4096)


def rules(*networks: str) -> SetFirewall:
    return SetFirewall(networks, masquerade=True, clamp_mss=True, client_to_client=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "helper.toml"
    found.write_text(TEXT)
    return found


def refusal(rights: policy.Rights, request: Request) -> str:
    with pytest.raises(Refused) as info:
        rights.check(request)
    return str(info.value)


def test_the_built_in_policy_is_the_sample(tmp_path: Path) -> None:
    """What is documented is what holds."""
    assert tomllib.loads(SAMPLE.read_text())["user"] == {
        user: {**dict.fromkeys(policy.SWITCHES, False), **table}
        for user, table in policy.BUILT_IN.items()
    }
    assert policy.load(tmp_path / "absent").keys() == {"pyvpn", "pyvpn-client"}


@pytest.mark.parametrize(
    "request_",
    [
        Hello("pyvpn9"),
        OpenTun(1, 500),
        listen(1),
        listen(65535),
        link("10.8.0.1/24", "fd12::1/64", routes=("192.168.0.0/16",)),
        rules("172.16.5.0/24", "100.64.0.0/24"),
        full(block_ipv6=False),  # what is excluded needs no right: it stays as it was
    ],
    ids=str,
)
def test_a_server_gets_what_a_server_needs(tmp_path: Path, request_: Request) -> None:
    """Without any policy file the documented set-up works."""
    policy.load(tmp_path / "absent")["pyvpn"].check(request_)


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (Hello("pyvpn10"), "interfaces"),
        (link("198.51.100.1/24"), "networks"),
        (link("2001:db8::1/64"), "networks"),
        (link("10.8.0.1/24", routes=("::/0",)), "default_route"),
        (link("10.8.0.1/24", routes=("0.0.0.0/1",)), "networks"),
        (rules("192.0.0.0/8"), "networks"),
        (full(block_ipv6=True), "default_route"),
    ],
    ids=str,
)
def test_a_server_gets_no_more(tmp_path: Path, request_: Request, key: str) -> None:
    """A taken-over vpnd must not get at the host's own networks or all of its traffic."""
    rights = policy.load(tmp_path / "absent")["pyvpn"]
    says = refusal(rights, request_)
    assert says.endswith(f"to change it set {key} of [user.pyvpn] in {tmp_path / 'absent'}")


@needs_root
def test_a_refusal_names_the_line_to_change(path: Path) -> None:
    """Not the commented line above it, and not another user's."""
    rights = policy.load(path)
    says = refusal(rights["pyvpn"], Hello("pyvpn3"))
    assert says == (
        "user pyvpn may not have interface pyvpn3; "
        f"change interfaces in {path}, line 3, [user.pyvpn]"
    )
    assert f"add ports in {path}, line 1, [user.pyvpn]" in refusal(rights["pyvpn"], listen(443))
    assert f"change ports in {path}, line 7" in refusal(rights["other"], listen(999))
    rights["other"].check(listen(443))
    rights["other"].check(listen(2000))
    rights["pyvpn"].check(Hello("pyvpn7"))


@needs_root
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[user.a]\nports = 443", "line 2: user.a.ports: unknown key, or a value of the wrong"),
        ("[user.a]\n\nport = [443]", "line 3: user.a.port: unknown key"),
        ("[user.a]\nresolver = 1", "line 2: user.a.resolver"),
        ("[user.a]\nresolver = []", "line 2: user.a.resolver"),
        ("[user.a]\ninterfaces = ['eth0']", "'eth0' is neither one like pyvpn7 nor a range"),
        ("[user.a]\nnetworks = ['10.0.0.1/8']", "has host bits set"),
        ("[user.a]\nports = [true]", "True is neither"),
        ("user = 5", "only tables"),
        ("[user]\na = 5", "only tables"),
        ("[users.a]\nports = []", "only tables"),
        ("[user.a\n", "line 1"),
        ("\udcff", "decode"),
    ],
)
def test_a_bad_policy_is_explained(path: Path, text: str, says: str) -> None:
    """A policy that is not understood allows nothing."""
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Refused) as info:
        policy.load(path)
    assert says in str(info.value)
    assert str(info.value).startswith(str(path))


@needs_root
def test_a_policy_that_others_can_write_is_no_policy(path: Path) -> None:
    """Who writes it decides what root does."""
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with pytest.raises(Refused, match="chown root:root"):
            policy.load(path)
    path.chmod(0o644)
    os.chown(path, 1, 0)
    with pytest.raises(Refused, match="chown root:root"):
        policy.load(path)


@needs_root
def test_a_user_without_a_table_or_a_name_has_no_rights(path: Path) -> None:
    """Root is no exception: who is root needs no helper."""
    with pytest.raises(Refused, match=r"add a table \[user.root\]"):
        policy.rights_of(path, 0)
    with pytest.raises(Refused, match=r"add a table \[user.4000000\]"):
        policy.rights_of(path, 4_000_000)
