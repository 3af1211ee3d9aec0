"""Who may not come in: refused in the protocol's words, one log line, nobody disturbed."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs12

from tests.netns.bystander import Bystander
from tests.netns.daemons import Certificate
from tests.netns.site import Site
from tests.netns.stranger import INIT, PATIENCE_S, HungUpError, Stranger
from tests.protocol.authority import ClientFiles
from vpnd.pki import ca, keys
from vpnd.pki.bundle import encode_bundle
from vpnd.pki.files import write_new
from vpnd.pki.names import identity_uri
from vpnd.pki.reading import load_certificates

pytestmark = pytest.mark.netns

PASSWORD = "correct horse battery staple"
NOT_ACCEPTED = "This certificate is not accepted."
SPENT = datetime.now(UTC) - timedelta(days=200)  # a certificate made then has ended
ADDRESS = "198.51.100.2"  # of the client that misbehaves


@pytest.fixture(scope="module")
def site(make_site: Callable[..., Site]) -> Site:
    site = make_site(clients=2)
    site.daemons.add_user("bob", PASSWORD)
    site.daemons.add_client("laptop", "--user", "alice")
    return site


@pytest.fixture(scope="module")
def bystander(site: Site) -> Iterator[Bystander]:
    bystander = Bystander(site, 1, "bystander")
    yield bystander
    bystander.stop()


@pytest.fixture(autouse=True)
def _undisturbed(bystander: Bystander) -> Iterator[None]:
    """Whatever a test does, another client's transfer goes on."""
    yield
    bystander.check()


class Log:
    """What vpnd logs about the client that misbehaves, from now on."""

    def __init__(self, site: Site) -> None:
        self._vpnd = site.daemons.vpnd
        self._mark = self._vpnd.mark()

    def only_line(self) -> str:
        """Return the one line that names the client's address."""
        self._vpnd.wait_for(ADDRESS, since=self._mark, timeout_s=PATIENCE_S)
        (line,) = [line for line in self._vpnd.text(self._mark).splitlines() if ADDRESS in line]
        assert "Traceback" not in self._vpnd.text()
        return line


@pytest.fixture
def log(site: Site, bystander: Bystander) -> Log:  # noqa: ARG001 - first it has come in
    return Log(site)


def forge(
    folder: Path,
    authority: ca.Authority,
    identity: tuple[str, str],
    *,
    now: datetime | None = None,
) -> ClientFiles:
    """Have an authority sign a certificate that no server has heard of."""
    key, (user, client) = keys.generate("p256"), identity
    when = now or datetime.now(UTC)
    chain = authority.sign_client(keys.request(key), user, client, when, foreign=False)
    files = ClientFiles(folder / "forged.crt", folder / "forged.key")
    files.certificate.write_bytes(chain)
    write_new(files.key, keys.encode_key(key))
    return files


def bundle(files: ClientFiles) -> Certificate:
    """Return the same for stock clients."""
    path = files.key.with_suffix(".p12")
    chain = load_certificates(files.certificate.read_bytes())
    leaf, *above = chain
    path.write_bytes(encode_bundle("forged", keys.load_key(files.key), leaf, above, "secret"))
    return Certificate(path, "secret")


@pytest.fixture(scope="module")
def authority(site: Site) -> ca.Authority:
    """The server's own authority, as whoever stole its keys would have it."""
    return ca.load(site.daemons.folder / "ca")


@pytest.fixture
def foreign_authority(tmp_path: Path) -> ca.Authority:
    (folder := tmp_path / "foreign").mkdir()
    return ca.create(folder, "p256", datetime.now(UTC))


def logged_in(site: Site) -> str:
    """Return the session cookie of a login by password."""
    with Stranger(site.bed.client) as client:
        answer = client.log_in({"username": "bob", "password": PASSWORD})
        assert 'id="success"' in answer.body
        return answer.cookies["webvpn"]


# passwords


def test_a_wrong_password_and_an_unknown_user_are_told_the_same(site: Site) -> None:
    """Who guesses does not learn which names exist; the operator's log tells."""
    answers = []
    for user, reason in (("bob", "wrong password"), ("nobody", "unknown user")):
        log = Log(site)
        with Stranger(site.bed.client) as client:
            answers.append(client.log_in({"username": user, "password": "wrong"}))
        line = log.only_line()
        assert f"user={user} address={ADDRESS}" in line
        assert reason in line
    one, other = answers
    assert one.status == other.status == 200
    assert "Login failed." in one.body
    assert one.body == other.body
    assert one.headers.keys() == other.headers.keys()


def test_the_last_wrong_password_closes_the_login(site: Site, log: Log) -> None:
    """Its cookie is worth nothing then: another try begins with another login."""
    with Stranger(site.bed.client) as client:
        wrong = {"username": "bob", "password": "wrong"}
        context = client.log_in(wrong).cookies["webvpncontext"]
        assert "<form" in client.log_in(wrong, context=context).body
        last = client.log_in(wrong, context=context)
        assert last.status == 200
        assert "<error>Login failed.</error>" in last.body
        assert "<form" not in last.body
        assert client.rest() == b""
    with pytest.raises(ValueError, match="too many values"):
        log.only_line()  # three tries, three lines


def test_a_name_that_is_no_name_cannot_forge_a_log_line(site: Site, log: Log) -> None:
    """What a stranger types stands quoted in one line."""
    with Stranger(site.bed.client) as client:
        name = "x user=root address=1.2.3.4 é"
        assert client.log_in({"username": name, "password": "wrong"}).status == 200
    assert "user=\"'x user=root address=1.2.3.4 \\xe9'\"" in log.only_line()


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "bob/../bob", "BOB", "bob\u200b", "b" * 257]
)
def test_a_name_is_nobodys_unless_it_is_exactly_his(site: Site, name: str) -> None:
    """Names become no paths, and look-alikes no users; what is too long is no field."""
    with Stranger(site.bed.client) as client:
        answer = client.log_in({"username": name, "password": PASSWORD})
    assert answer.status == (400 if len(name) > 256 else 200)
    assert "webvpn" not in answer.cookies


# certificates


def test_a_certificate_that_the_store_does_not_know_is_refused(
    site: Site, authority: ca.Authority, tmp_path: Path, log: Log
) -> None:
    """Whoever steals the authority's key still has to get into the store."""
    files = forge(tmp_path, authority, ("mallory", "phone"))
    with Stranger(site.bed.client, files) as client:
        answer = client.ask("POST", "/", body=INIT)
    assert answer.status == 200
    assert f"<error>{NOT_ACCEPTED}</error>" in answer.body
    assert "<form" not in answer.body
    line = log.only_line()
    assert f"user=mallory address={ADDRESS}" in line
    assert "unknown client" in line


def test_a_second_certificate_for_a_known_client_is_refused(
    site: Site, authority: ca.Authority, tmp_path: Path, log: Log
) -> None:
    """Only the serial number that the store has is the client's."""
    files = forge(tmp_path, authority, ("alice", "laptop"))
    with Stranger(site.bed.client, files) as client:
        assert NOT_ACCEPTED in client.ask("POST", "/", body=INIT).body
    assert f"user=alice address={ADDRESS}" in log.only_line()


def test_a_refused_certificate_cannot_turn_to_a_password(
    site: Site, authority: ca.Authority, tmp_path: Path, log: Log
) -> None:
    """Methods must not be combined into one that neither alone would allow."""
    files = forge(tmp_path, authority, ("mallory", "phone"))
    with Stranger(site.bed.client, files) as client:
        answer = client.log_in({"username": "bob", "password": PASSWORD})
    assert NOT_ACCEPTED in answer.body
    assert "webvpn" not in answer.cookies
    assert "unknown client" in log.only_line()


@pytest.mark.parametrize("kind", ["expired", "foreign", "foreign look-alike"])
def test_a_certificate_that_does_not_verify_ends_in_the_handshake(
    site: Site,
    authority: ca.Authority,
    foreign_authority: ca.Authority,
    tmp_path: Path,
    log: Log,
    kind: str,
) -> None:
    """TLS refuses it with an alert; the log says whose it claims to be and what is wrong."""
    if kind == "expired":
        files = forge(tmp_path, authority, ("alice", "laptop"), now=SPENT)
    else:
        files = forge(tmp_path, foreign_authority, ("alice", "laptop"))
    if kind == "foreign look-alike":  # sends our issuing certificate as if it had signed
        leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        ours = authority.issuer.certificate
        files.certificate.write_bytes(b"".join(c.public_bytes(Encoding.PEM) for c in (leaf, ours)))
    # TLS 1.3: the client is done before it is judged, the alert comes in place of an answer
    with pytest.raises(HungUpError), Stranger(site.bed.client, files) as client:
        client.ask("POST", "/", body=INIT)
    line = log.only_line()
    claim = "CN=pyvpn issuing CA" if kind == "foreign" else identity_uri("alice", "laptop")
    assert claim in line
    assert ("expired" if kind == "expired" else "unable to get") in line


def test_the_servers_own_certificate_is_no_clients(site: Site, log: Log) -> None:
    """A key that leaks from the server opens no tunnel."""
    state = site.daemons.folder / "state"
    files = ClientFiles(state / "server.crt", state / "server.key")
    with pytest.raises(HungUpError), Stranger(site.bed.client, files) as client:
        client.ask("POST", "/", body=INIT)
    assert "certificate purpose" in log.only_line()


@pytest.mark.parametrize("kind", ["unknown", "expired", "foreign"])
def test_stock_openconnect_gives_up_at_once(
    site: Site,
    authority: ca.Authority,
    foreign_authority: ca.Authority,
    tmp_path: Path,
    log: Log,
    kind: str,
) -> None:
    """It shows our words where TLS let us speak, and does not try again and again."""
    identity, now = ("alice", "laptop"), None
    if kind == "unknown":
        identity = ("mallory", "phone")
    elif kind == "expired":
        now = SPENT
    signer = foreign_authority if kind == "foreign" else authority
    files = forge(tmp_path, signer, identity, now=now)
    client = site.connect(certificate=bundle(files))
    assert client.process.wait(30) == 1
    if kind == "unknown":
        assert NOT_ACCEPTED in client.process.text()
    assert (identity[0] if kind != "foreign" else "CN=pyvpn issuing CA") in log.only_line()


# cookies


def refused_as_unknown(site: Site, cookie: str, files: ClientFiles | None = None) -> None:
    with Stranger(site.bed.client, files) as client:
        answer = client.connect(cookie)
        assert (answer.status, answer.reason) == (401, "Cookie is not acceptable")
        assert client.rest() == b""


def test_a_made_up_cookie_opens_nothing(site: Site, log: Log) -> None:
    """401 makes stock clients log in again (exit status 2), and nothing else does."""
    refused_as_unknown(site, "A" * 43)
    assert "unknown cookie" in log.only_line()


def test_stock_openconnect_takes_the_refusal_of_a_cookie_for_what_it_is(
    site: Site, log: Log
) -> None:
    """It says so and ends with 2, which scripts know as "log in again"."""
    client = site.connect(options=["--cookie=webvpn=made-up"])
    assert client.process.wait(30) == 2
    assert "Cookie was rejected" in client.process.text()
    assert "unknown cookie" in log.only_line()


@pytest.mark.parametrize("cookie", ["", "x" * 1000, "a b", "webvpn=é"])
def test_a_connect_without_a_usable_cookie_is_refused_likewise(site: Site, cookie: str) -> None:
    """Over-long cookies have overflown buffers elsewhere; here they are no cookies."""
    headers = [("Cookie", f"webvpn={cookie}")] if cookie else []
    with Stranger(site.bed.client) as client:
        assert client.ask("CONNECT", "/CSCOSSLC/tunnel", headers=headers).status == 401
        assert client.rest() == b""


def test_a_login_cookie_opens_no_tunnel(site: Site, log: Log) -> None:
    """Half a login is none: the tables are apart."""
    with Stranger(site.bed.client) as client:
        answer = client.ask("POST", "/", body=INIT)
    assert "<form" in answer.body
    refused_as_unknown(site, answer.cookies["webvpncontext"])
    assert "unknown cookie" in log.only_line()


def test_a_session_cookie_ends_with_its_time(site: Site) -> None:
    """Who stole an old cookie has nothing; the time is moved in the store, not waited for."""
    cookie = logged_in(site)
    database = site.daemons.folder / "state/pyvpn.sqlite"
    with closing(sqlite3.connect(database, timeout=10)) as db, db:
        db.execute("UPDATE sessions SET disconnected_at = disconnected_at - 301 WHERE user='bob'")
    log = Log(site)
    refused_as_unknown(site, cookie)
    line = log.only_line()
    assert "cookie has expired" in line or "unknown cookie" in line  # or already cleared away


def test_a_revoked_clients_certificate_and_cookie_are_dead(site: Site) -> None:
    """Both at once: a cookie that outlived the certificate would let the thief back in."""
    certificate = site.daemons.add_client("stolen", "--user", "carol")
    files = unbundle(certificate)
    with Stranger(site.bed.client, files) as client:
        answer = client.ask("POST", "/", body=INIT)
        assert 'id="success"' in answer.body
    cookie = answer.cookies["webvpn"]
    site.daemons.vpnctl("client", "revoke", "stolen")

    log = Log(site)
    with Stranger(site.bed.client, files) as client:
        assert NOT_ACCEPTED in client.ask("POST", "/", body=INIT).body
    line = log.only_line()
    assert f"user=carol address={ADDRESS}" in line
    assert "client is revoked" in line

    log = Log(site)
    refused_as_unknown(site, cookie, files)
    assert f"user=carol address={ADDRESS}" in log.only_line()


def unbundle(certificate: Certificate) -> ClientFiles:
    """Return a stock client's certificate as two PEM files."""
    content = pkcs12.load_pkcs12(certificate.p12.read_bytes(), certificate.password.encode())
    assert content.cert is not None
    chain = [content.cert, *content.additional_certs]
    files = ClientFiles(certificate.p12.with_suffix(".crt"), certificate.p12.with_suffix(".key"))
    pem = [entry.certificate.public_bytes(Encoding.PEM) for entry in chain]
    files.certificate.write_bytes(b"".join(pem))
    files.key.write_bytes(keys.encode_key(content.key))  # type: ignore[arg-type]
    return files


def test_a_cookie_of_one_session_serves_one_client_at_a_time(site: Site) -> None:
    """A second CONNECT with it takes the tunnel over; the first is told, not left hanging."""
    cookie = logged_in(site)
    with Stranger(site.bed.client) as first, Stranger(site.bed.client) as second:
        assert first.connect(cookie).status == 200
        assert second.connect(cookie).status == 200
        assert first.rest().startswith(b"STF\x01")


# the store


def test_a_store_that_is_locked_delays_logins_and_nothing_else(site: Site) -> None:
    """An administrator's backup or a slow disk: 503 makes clients try again, 401 would not."""
    cookie = logged_in(site)
    log = Log(site)
    with closing(sqlite3.connect(site.daemons.folder / "state/pyvpn.sqlite", timeout=10)) as db:
        db.execute("BEGIN IMMEDIATE")
        with Stranger(site.bed.client) as client:
            answer = client.log_in({"username": "bob", "password": PASSWORD})
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert "is locked by another program" in log.only_line()
        with Stranger(site.bed.client) as client:
            assert client.connect(cookie).status == 503
        revoking = site.daemons.vpnctl("client", "revoke", "laptop", check=False)
        assert revoking.returncode == 1
        assert "is locked by another program" in revoking.stderr
        assert len(revoking.stderr.splitlines()) == 1
    with Stranger(site.bed.client) as client:
        assert client.connect(cookie).status == 200
