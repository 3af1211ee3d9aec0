"""TLS in memory: a pyOpenSSL client at the other end."""

import base64
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL

from tests.protocol.authority import BEFORE, ClientFiles, TestSite
from tests.protocol.psk_client import SSL_LIB
from tests.protocol.tls_client import TlsClient, handshake
from vpnd.errors import ConfigError
from vpnd.pki import keys
from vpnd.pki.reading import not_after
from vpnd.protocol.tls_connection import MAX_NOTE, MAX_RECORD, TlsFailed
from vpnd.protocol.tls_stream import TlsStream, server_context

LABEL = b"EXPORTER-openconnect-psk"


@pytest.fixture
def server(site: TestSite) -> TlsStream:
    return TlsStream(site.context())


def established(server: TlsStream, **options: object) -> TlsClient:
    client = TlsClient(**options)  # type: ignore[arg-type]
    handshake(client, server)
    return client


def test_a_handshake_without_a_certificate_is_fine(server: TlsStream) -> None:
    """Passwords come later, inside."""
    client = established(server)
    assert server.established
    assert server.version == client.connection.get_protocol_version_name() == "TLSv1.3"
    assert server.cipher == "TLS_AES_256_GCM_SHA384"
    assert server.peer_certificate() is None


def test_chacha_comes_first_where_the_processor_has_no_aes(site: TestSite) -> None:
    """In the newer library generation; the older one has no call for it."""
    server = TlsStream(site.context(chacha_first=True))
    established(server)
    if hasattr(SSL.Context, "set_tls13_ciphersuites"):
        assert server.cipher == "TLS_CHACHA20_POLY1305_SHA256"
    assert server.established


def test_tls_1_2_is_refused_unless_it_is_allowed(site: TestSite) -> None:
    """`tls.min_version` says so, and stock clients of old need it."""
    client = TlsClient(newest=SSL.TLS1_2_VERSION)
    with pytest.raises(TlsFailed, match="protocol"):
        TlsStream(site.context()).receive(client.step())
    allowed = TlsStream(site.context(allow_tls12=True))
    established(allowed, newest=SSL.TLS1_2_VERSION)
    assert allowed.version == "TLSv1.2"
    assert allowed.group == ""


def test_a_good_client_certificate_is_handed_on(site: TestSite, server: TlsStream) -> None:
    """What is in it the store judges."""
    files = site.client()
    established(server, files=files)
    assert server.peer_certificate() == files.leaf


def refused(site: TestSite, files: ClientFiles) -> tuple[str, TlsClient, TlsStream]:
    server, client = TlsStream(site.context()), TlsClient(files=files)
    server.receive(client.step())
    with pytest.raises(TlsFailed) as caught:
        server.receive(client.step(server.data_to_send()))
    return str(caught.value), client, server


def test_an_expired_certificate_is_refused_with_subject_and_reason(site: TestSite) -> None:
    """One line in the log must be enough to know which device and why."""
    reason, client, server = refused(site, site.client("bob", "old-phone", now=BEFORE))
    assert reason.startswith("certificate CN=old-phone")
    assert reason.endswith(": certificate has expired")
    with pytest.raises(SSL.Error, match="expired"):  # the client is told by an alert
        client.read(server.data_to_send())


def test_a_foreign_certificate_is_refused_with_subject_and_reason(
    site: TestSite, tmp_path: Path
) -> None:
    """Somebody else's CA, which may well name our users."""
    reason, _, server = refused(site, TestSite(tmp_path).client("alice", "laptop"))
    assert reason.startswith("certificate CN=")
    assert "certificate" in reason.partition(": ")[2]
    assert server.data_to_send()


def test_a_subject_cannot_disturb_the_log(tmp_path: Path, site: TestSite) -> None:
    """Anybody can make a certificate with any subject: one line of bounded length remains."""
    private = keys.generate("p256")
    name = x509.Name(
        [x509.NameAttribute(x509.NameOID.COMMON_NAME, "a\nroot: all is well \u202e" + "x" * 30)]
        + [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "y" * 64)] * 5
    )
    certificate = (
        x509.CertificateBuilder(name, name, private.public_key(), 7)
        .not_valid_before(BEFORE)
        .not_valid_after(not_after(site.client().leaf))
        .sign(private, keys.signature_hash(private))
    )
    files = ClientFiles(tmp_path / "evil.crt", tmp_path / "evil.key")
    files.certificate.write_bytes(certificate.public_bytes(keys.Encoding.PEM))
    files.key.write_bytes(keys.encode_key(private))
    reason, _, _ = refused(site, files)
    assert reason.isprintable()
    assert len(reason) < MAX_NOTE + 100


def test_a_certificate_names_its_user_when_it_is_refused(site: TestSite) -> None:
    """The name of a device alone may be that of many."""
    reason, _, _ = refused(site, site.client("bob", "phone", now=BEFORE))
    assert "pyvpn:user/bob/client/phone" in reason


@pytest.mark.parametrize(
    ("part", "damage"),
    [
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020105")),  # version 6
        (b"pyvpn:user/", b"pyvpn:\xff\xff\xff\xff/"),  # a URI that is no text
        (
            bytes.fromhex("06035504030c"),
            bytes.fromhex("060355040314"),
        ),  # a name in an old alphabet
    ],
)
def test_a_certificate_that_cannot_be_read_is_refused_like_any_other(
    site: TestSite, part: bytes, damage: bytes
) -> None:
    """OpenSSL hands over what the parser behind it does not take: no error of ours may result."""
    files = site.client()
    der = files.leaf.public_bytes(keys.Encoding.DER)
    assert part in der
    damaged = base64.encodebytes(der.replace(part, damage)).decode()
    files.certificate.write_text(
        f"-----BEGIN CERTIFICATE-----\n{damaged}-----END CERTIFICATE-----\n"
    )
    reason, _, _ = refused(site, files)
    assert reason.startswith("certificate ")


def test_nothing_can_be_resumed(site: TestSite) -> None:
    """A resumed session would skip the look at the certificate."""
    context = site.context(allow_tls12=True)
    for newest in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
        first, second = TlsStream(context), TlsStream(context)
        client = established(first, newest=newest)
        assert client.read(first.data_to_send()) == []
        returning = established(second, session_of=client)
        assert not SSL_LIB.SSL_session_reused(returning.connection._ssl)


def test_both_ends_export_the_same_key(site: TestSite) -> None:
    """No context value, which on TLS 1.2 is not the same as an empty one."""
    for newest in (SSL.TLS1_2_VERSION, SSL.TLS1_3_VERSION):
        server = TlsStream(site.context(allow_tls12=True))
        client = established(server, newest=newest)
        psk = server.export_psk()
        assert psk == client.connection.export_keying_material(LABEL, 32)
        assert len(psk) == 32


def test_the_group_is_named_on_both_library_generations(server: TlsStream) -> None:
    """Debian 13's library does not tell; where the newer one does, it agrees."""
    assert server.group == ""
    client = established(server)
    assert server.group
    ask = getattr(client.connection, "get_group_name", None)
    if ask is not None:
        assert server.group.lower() == ask().lower()


def test_one_record_comes_out_as_one_item(server: TlsStream) -> None:
    """The tunnel protocol puts one packet into each."""
    client = established(server)
    payloads = [b"a", b"bc" * 700, bytes(MAX_RECORD)]
    assert server.receive(client.send(*payloads)) == payloads
    server.send_records([memoryview(p) for p in payloads])
    assert client.read(server.data_to_send()) == payloads


def test_many_records_at_once_and_a_large_send(server: TlsStream) -> None:
    """More than one memory buffer's worth: nothing is lost or cut."""
    client = established(server)
    payloads = [bytes([n % 256]) * 1400 for n in range(500)]
    assert server.receive(client.send(*payloads)) == payloads
    server.send(bytes(100_000))
    assert sum(map(len, client.read(server.data_to_send()))) == 100_000


@settings(
    deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4), st.integers(1, 7))
def test_byte_at_a_time_equals_all_at_once(
    site: TestSite, payloads: list[bytes], step: int
) -> None:
    """TCP cuts where it likes, in the handshake too."""
    server, client = TlsStream(site.context()), TlsClient()

    def trickle(data: bytes) -> list[bytes]:
        return [
            r for at in range(0, len(data), step) for r in server.receive(data[at : at + step])
        ]

    assert trickle(client.step()) == []
    assert trickle(client.step(server.data_to_send())) == []
    assert server.established
    assert trickle(client.send(*payloads)) == payloads


def test_a_close_of_the_peer_is_seen_after_its_last_record(server: TlsStream) -> None:
    """What came before the end still counts."""
    client = established(server)
    data = client.send(b"last words")
    client.connection.shutdown()
    assert server.receive(data + client.output()) == [b"last words"]
    assert server.closed
    assert server.receive(b"more") == []


def test_our_close_reaches_the_peer(server: TlsStream) -> None:
    """A raw end of the connection would look like an attack."""
    client = established(server)
    server.shutdown()
    with pytest.raises(SSL.ZeroReturnError):
        client.read(server.data_to_send())


def test_closing_in_mid_handshake_is_quiet(server: TlsStream) -> None:
    """Time-outs happen there most."""
    server.receive(TlsClient().step())
    server.shutdown()
    server.data_to_send()


def test_an_altered_record_ends_the_connection(server: TlsStream) -> None:
    """The alert that says so may still be sent."""
    client = established(server)
    data = bytearray(client.send(b"payload"))
    data[-1] ^= 1
    with pytest.raises(TlsFailed, match="mac"):
        server.receive(bytes(data))
    assert server.data_to_send()


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=200), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_tls_failed(
    site: TestSite, data: bytes, after_hello: bool
) -> None:
    """Scanners speak everything."""
    server = TlsStream(site.context())
    if after_hello:
        server.receive(TlsClient().step())
    with suppress(TlsFailed):
        assert server.receive(data) == []
    assert not server.established


def test_files_that_cannot_be_used_are_named(site: TestSite, tmp_path: Path) -> None:
    """Which file and what to do, for each of them."""
    empty, other = tmp_path / "empty", tmp_path / "other.key"
    empty.write_text("")
    other.write_bytes(keys.encode_key(keys.generate("p256")))
    good = {
        "certificate": str(site.certificate),
        "key": str(site.key),
        "client_ca": str(site.client_ca),
    }
    for name in good:
        for bad in (str(empty), str(tmp_path / "missing")):
            with pytest.raises(ConfigError, match=f"^{bad}: .*pki init"):
                server_context(**(good | {name: bad}))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not belong to"):
        server_context(**(good | {"key": str(other)}))  # type: ignore[arg-type]
