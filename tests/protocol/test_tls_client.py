"""Our TLS client: it believes the right server only, and tells it nothing before."""

import base64
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from tests.protocol.authority import BEFORE, TestSite
from vpnd.config.profile_options import SYSTEM, SYSTEM_CA
from vpnd.errors import ConfigError
from vpnd.pki import keys
from vpnd.pki.pins import server_pins
from vpnd.protocol import tls_client
from vpnd.protocol.tls_client import (
    MAX_PINS,
    ServerNotTrusted,
    TlsClientStream,
    client_context,
    parse_pin,
)
from vpnd.protocol.tls_connection import TlsFailed
from vpnd.protocol.tls_stream import TlsStream, server_context

NAME = "vpn.example.org"
OTHER_PIN = "pin-sha256:" + base64.b64encode(bytes(32)).decode()
Connect = Callable[..., TlsClientStream]


def pins(site: TestSite) -> tuple[str, ...]:
    return server_pins(site.certificate, Path("/nonexistent"))


@pytest.fixture
def connect(site: TestSite) -> Connect:
    def connect(
        name: str = NAME, *, pins: tuple[str, ...] = (), ca: str | None = None, **options: bool
    ) -> TlsClientStream:
        files = site.client()
        context = client_context(
            ca_pem=site.client_ca.read_text() if ca is None else ca,
            certificate_pem=files.certificate.read_text(),
            key_pem=files.key.read_text(),
            **options,
        )
        return TlsClientStream(context, server_name=name, pins=pins)

    return connect


def handshake(client: TlsClientStream, server: TlsStream) -> None:
    """Run the handshake to its end; raise what an end raises."""
    for _ in range(4):
        server.receive(client.data_to_send())
        client.receive(server.data_to_send())
        if client.established and server.established:
            return
    raise AssertionError("the handshake does not end")


def test_a_server_with_the_right_name_of_the_right_ca_is_believed(
    site: TestSite, connect: Connect
) -> None:
    """Both ends export one key, and packets pass both ways, one to a record."""
    server, client = TlsStream(site.context()), connect()
    handshake(client, server)
    assert (client.version, client.cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    assert server.peer_certificate() is not None
    assert client.export_psk() == server.export_psk()
    client.send_records([b"a", bytes(1400)])
    assert server.receive(client.data_to_send()) == [b"a", bytes(1400)]
    server.send(b"b")
    assert client.receive(server.data_to_send()) == [b"b"]


def test_the_group_is_heard_from_the_server(site: TestSite, connect: Connect) -> None:
    """However TCP cuts its flight; the server, that made it, agrees."""
    server, client = TlsStream(site.context()), connect()
    server.receive(client.data_to_send())
    assert client.group == ""
    for byte in server.data_to_send():
        client.receive(bytes([byte]))
    assert client.group == server.group != ""


def test_tls_1_2_only_where_it_is_allowed(site: TestSite, connect: Connect) -> None:
    """Debian's stock ocserv speaks nothing newer."""
    for allowed in (True, False):
        context = site.context(allow_tls12=True)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        server, client = TlsStream(context), connect(allow_tls12=allowed)
        if allowed:
            handshake(client, server)
            assert (client.version, client.group) == ("TLSv1.2", "")
            assert client.export_psk() == server.export_psk()
        else:
            with suppress(TlsFailed):
                server.receive(client.data_to_send())
            with pytest.raises(TlsFailed, match=r'min_version = "1\.2".*--allow-tls12'):
                client.receive(server.data_to_send())


def test_a_server_older_than_that_is_not_to_be_helped(connect: Connect) -> None:
    """No option allows it, so none is named."""
    alert = bytes.fromhex("15030100020246")  # fatal, protocol_version: RFC 8446 section 6
    with pytest.raises(TlsFailed, match=r"neither TLS 1\.3 nor TLS 1\.2"):
        connect(allow_tls12=True).receive(alert)


def refused(client: TlsClientStream, server: TlsStream) -> str:
    """Run a handshake that the client must break off before it says who it is."""
    server.receive(client.data_to_send())
    with pytest.raises(ServerNotTrusted) as caught:
        client.receive(server.data_to_send())
    assert not client.established
    assert client.certificate_refused
    with suppress(TlsFailed):
        server.receive(client.data_to_send())
    assert not server.established
    assert server.peer_certificate() is None
    return str(caught.value)


@pytest.mark.parametrize("name", ["other.example.org", "example.org", "192.0.2.1", "::1"])
def test_a_server_of_another_name_is_refused(site: TestSite, connect: Connect, name: str) -> None:
    """A certificate of the same CA for another host."""
    assert "mismatch" in refused(connect(name), TlsStream(site.context()))


def test_a_server_of_another_ca_is_refused(
    site: TestSite, connect: Connect, tmp_path: Path
) -> None:
    """The right name, from somebody else; the system's CAs do not know ours either."""
    other = TestSite(tmp_path)
    assert "certificate CN=" in refused(connect(), TlsStream(other.context()))
    assert "issuer" in refused(connect(ca=""), TlsStream(site.context()))


def test_the_certificates_of_the_system_are_those_that_it_trusts(
    site: TestSite, connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Not ours, unless ours is among them; OpenSSL reads them, and says when it cannot."""
    refused(connect(ca=SYSTEM), TlsStream(site.context()))
    bundle = tmp_path / "bundle.crt"
    bundle.write_bytes(SYSTEM_CA.read_bytes() + site.client_ca.read_bytes())
    monkeypatch.setattr(tls_client, "SYSTEM_CA", bundle)
    client = connect(ca=SYSTEM)
    handshake(client, TlsStream(site.context()))
    assert client.established
    bundle.write_text("no certificate")
    with pytest.raises(ConfigError, match="ca-certificates"):
        connect(ca=SYSTEM)


def test_without_a_ca_nobody_is_believed(site: TestSite, connect: Connect) -> None:
    """A profile that only has pins must not trust the whole world where one is missing."""
    refused(connect(ca=""), TlsStream(site.context()))


def test_a_client_certificate_makes_no_server(site: TestSite, connect: Connect) -> None:
    """Any client of ours could play the server otherwise."""
    files = site.client()
    context = server_context(
        certificate=str(files.certificate), key=str(files.key), client_ca=str(site.client_ca)
    )
    refused(connect(), TlsStream(context))


def test_an_expired_server_is_refused_by_name_and_taken_by_pin(
    site: TestSite, connect: Connect, tmp_path: Path
) -> None:
    """A pin says more than a date: the key is the one that was meant."""
    private = keys.generate("p256")
    chain = site.authority.sign_server(keys.request(private), [NAME], BEFORE)
    certificate, key = tmp_path / "old.crt", tmp_path / "old.key"
    certificate.write_bytes(chain)
    key.write_bytes(keys.encode_key(private))
    context = server_context(
        certificate=str(certificate), key=str(key), client_ca=str(site.client_ca)
    )
    assert "expired" in refused(connect(), TlsStream(context))
    pin = server_pins(certificate, Path("/nonexistent"))
    handshake(connect(pins=pin), TlsStream(context))


def test_a_pin_replaces_ca_and_name(site: TestSite, connect: Connect) -> None:
    """Any of several, whatever the server is called, without any CA."""
    for name in (NAME, "192.0.2.1", ""):
        client = connect(name, ca="", pins=(OTHER_PIN, *pins(site)))
        handshake(client, TlsStream(site.context()))


def test_a_wrong_pin_refuses_what_the_ca_would_take(site: TestSite, connect: Connect) -> None:
    """Always enforced: a CA that was talked into a certificate gains nothing."""
    reason = refused(connect(pins=(OTHER_PIN,)), TlsStream(site.context()))
    (pin,) = pins(site)
    assert pin in reason
    assert "pinned" in reason


def test_the_pin_of_a_ca_does_not_make_its_servers_right(site: TestSite, connect: Connect) -> None:
    """The key of the leaf counts, which comes alone."""
    issuing = site.client_ca.parent / "issuing.crt"
    pin = server_pins(issuing, Path("/nonexistent"))
    refused(connect(pins=pin), TlsStream(site.context()))


@pytest.mark.parametrize(
    "pin",
    [
        "",
        "pin-sha256:",
        OTHER_PIN[:-1],
        OTHER_PIN[:15],
        OTHER_PIN.replace("A", "!", 1),
        OTHER_PIN + "A",
        "sha256:" + "00" * 32,
        "pin-sha256:" + base64.b64encode(bytes(31)).decode(),
        OTHER_PIN.removeprefix("pin-sha256:"),
    ],
)
def test_only_a_whole_pin_is_one(pin: str) -> None:
    """Four characters of one would let anybody in who tries a million keys."""
    with pytest.raises(ConfigError, match="pin"):
        parse_pin(pin)


def test_there_is_no_connection_to_just_anybody(connect: Connect) -> None:
    """Neither name nor pin, a name that is none, or too many pins."""
    for name in ("", "a\0b", ".", "a b\n"):
        with pytest.raises(ConfigError):
            connect(name)
    with pytest.raises(ConfigError, match="more than"):
        connect(pins=(OTHER_PIN,) * (MAX_PINS + 1))


def test_the_server_says_that_it_does_not_take_our_certificate(
    site: TestSite, tmp_path: Path
) -> None:
    """In TLS 1.3 that comes after the handshake, as far as a client can see."""
    files = TestSite(tmp_path).client()
    context = client_context(
        ca_pem=site.client_ca.read_text(),
        certificate_pem=files.certificate.read_text(),
        key_pem=files.key.read_text(),
    )
    client, server = TlsClientStream(context, server_name=NAME), TlsStream(site.context())
    server.receive(client.data_to_send())
    client.receive(server.data_to_send())
    with pytest.raises(TlsFailed):
        server.receive(client.data_to_send())
    with pytest.raises(TlsFailed, match="does not accept our certificate"):
        client.receive(server.data_to_send())
    assert client.certificate_rejected
    assert not client.certificate_refused


def test_the_last_words_before_a_break_are_heard(site: TestSite, connect: Connect) -> None:
    """ocserv sends its 401 and an alert in one segment."""
    server, client = TlsStream(site.context()), connect()
    handshake(client, server)
    server.send(b"HTTP/1.1 401 No\r\n\r\n")
    alert = bytearray(server.data_to_send())
    server.send(b"x")
    broken = bytearray(server.data_to_send())
    broken[-1] ^= 1
    assert client.receive(bytes(alert + broken)) == [b"HTTP/1.1 401 No\r\n\r\n"]
    assert client.closed


def test_material_that_cannot_be_used_is_named(site: TestSite) -> None:
    """As the profile names it, without what stood there."""
    files = site.client()
    certificate, key = files.certificate.read_text(), files.key.read_text()
    for name, options in (
        ("tls.ca", {"ca_pem": "SECRET"}),
        ("tls.certificate", {"certificate_pem": "SECRET", "key_pem": key}),
        ("tls.certificate", {"key_pem": key}),
        ("tls.key", {"certificate_pem": certificate, "key_pem": "SECRET"}),
        ("tls.key", {"certificate_pem": certificate}),
        ("tls.key", {"certificate_pem": certificate, "key_pem": site.key.read_text()}),
    ):
        with pytest.raises(ConfigError, match=name) as caught:
            client_context(**options)
        assert "SECRET" not in str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_tls_failed(
    site: TestSite, data: bytes, behind_a_hello: bool
) -> None:
    """Anybody may answer on that port."""
    client = TlsClientStream(client_context(), server_name=NAME)
    server = TlsStream(site.context())
    server.receive(client.data_to_send())
    with suppress(TlsFailed):
        if behind_a_hello:
            client.receive(server.data_to_send()[:1000])
        client.receive(data)
    assert not client.established
