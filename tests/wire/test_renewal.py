"""Requests and certificates in header fields: bounded, and base64 or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vpnd.errors import Malformed
from vpnd.wire import renewal
from vpnd.wire.renewal import MAX_CERTIFICATE, MAX_CERTIFICATES, MAX_REQUEST


@given(st.binary(min_size=1, max_size=MAX_REQUEST))
def test_a_request_comes_out_as_it_went_in(data: bytes) -> None:
    """Whatever its bytes are."""
    assert renewal.parse_request(renewal.encode(data)) == data


@given(st.text(max_size=50) | st.binary(max_size=50).map(lambda b: b.decode("latin-1")))
def test_arbitrary_text_is_base64_or_malformed(text: str) -> None:
    """It comes from strangers, in both directions."""
    for parse in (renewal.parse_request, lambda value: renewal.parse_certificates([value])):
        try:
            assert parse(text)
        except Malformed:
            continue


def test_a_connect_without_a_request_has_none() -> None:
    """All stock clients, and ours most of the time."""
    assert renewal.parse_request(None) == b""
    assert renewal.parse_certificates([]) == ()


@pytest.mark.parametrize("size", [MAX_REQUEST + 3, 100_000])
def test_a_long_request_is_refused(size: int) -> None:
    """What it may hold is known."""
    with pytest.raises(Malformed, match="of more than"):
        renewal.parse_request(renewal.encode(bytes(size)))


def test_certificates_are_few_and_short() -> None:
    """A server may be hostile too."""
    fine = renewal.encode(bytes(MAX_CERTIFICATE))
    assert renewal.parse_certificates([fine] * MAX_CERTIFICATES) == (
        bytes(MAX_CERTIFICATE),
    ) * MAX_CERTIFICATES  # fmt: skip
    with pytest.raises(Malformed, match="more than 4 certificates"):
        renewal.parse_certificates([fine] * (MAX_CERTIFICATES + 1))
    with pytest.raises(Malformed, match="of more than"):
        renewal.parse_certificates([renewal.encode(bytes(MAX_CERTIFICATE + 3))])
