"""Which bytes are a whole request with a head that was seen before: the body and the digits of its length may differ, nothing else."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ingest.known_head import KnownHead

FIRST = b"POST /v1/events HTTP/1.1\r\nHost: x\r\n"
LAST = b"Content-Type: application/json\r\n\r\n"


def request(body: bytes, *, length: str = "Content-Length: %d\r\n", first: bytes = FIRST, last: bytes = LAST) -> bytes:
    return first + (length.replace("%d", str(len(body)))).encode() + last + body


def known(sent: bytes) -> KnownHead:
    head = KnownHead.of(sent)
    assert head is not None
    return head


bodies = st.binary(max_size=300) | st.integers(0, 40).map(lambda times: b"\r\nContent-Length: 5\r\n\r\n" * times)
lengths = st.sampled_from(["Content-Length: %d\r\n", "content-length:%d\r\n", "CONTENT-LENGTH: \t%d \r\n"])


@given(bodies, bodies, lengths, st.booleans())
def test_another_body_under_the_same_head(one: bytes, other: bytes, length: str, length_last: bool) -> None:
    how = {"first": FIRST + LAST[:-2], "last": b"\r\n"} if length_last else {"first": FIRST, "last": LAST}
    assert known(request(one, length=length, **how)).body_of(request(other, length=length, **how)) == other


@given(bodies, bodies, st.data())
def test_a_changed_head_is_another(one: bytes, other: bytes, choose: st.DataObject) -> None:
    sent = request(other)
    digits_at = len(FIRST) + len("Content-Length: ")
    digits = range(digits_at, digits_at + len(str(len(other))))
    at = choose.draw(st.sampled_from([place for place in range(len(sent) - len(other)) if place not in digits]))
    byte = choose.draw(st.integers(0, 255))
    assume(byte != sent[at])
    assert known(request(one)).body_of(sent[:at] + bytes([byte]) + sent[at + 1 :]) is None


@given(bodies, bodies, st.data())
def test_less_or_more_than_one_request_is_none(one: bytes, other: bytes, choose: st.DataObject) -> None:
    sent = request(other)
    head = known(request(one))
    assert head.body_of(sent[: choose.draw(st.integers(0, len(sent) - 1))]) is None
    assert head.body_of(sent + choose.draw(st.binary(min_size=1, max_size=20) | st.just(sent))) is None
    assert KnownHead.of(sent[: choose.draw(st.integers(0, len(sent) - 1))]) is None
    assert KnownHead.of(sent + choose.draw(st.binary(min_size=1, max_size=20) | st.just(sent))) is None


@pytest.mark.parametrize("digits", [b"", b"-5", b"+5", b"5x", b"0x5", b" 5", b"5 ", b"5,5", b"\xb25", b"4", b"6", b"5_0", b"000000005"])
def test_a_length_is_plain_digits_and_right(digits: bytes) -> None:
    head = known(request(b"12345"))
    assert head.body_of(FIRST + b"Content-Length: 5\r\n" + LAST + b"abcde") == b"abcde"
    assert head.body_of(FIRST + b"Content-Length: " + digits + b"\r\n" + LAST + b"abcde") is None


def test_leading_zeros_count_as_a_parser_counts_them() -> None:
    assert known(request(b"12345")).body_of(FIRST + b"Content-Length: 0005\r\n" + LAST + b"abcde") == b"abcde"


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nX-Content-Length: 1\r\n\r\nx",
        b"POST /v1/events HTTP/1.1\r\nX: a\r\n Content-Length: 1\r\n\r\nx",
        request(b"x", first=FIRST + b"X: " + b"y" * 4096 + b"\r\n"),
    ],
    ids=["nothing", "no length", "chunked", "another header", "a folded line", "too large to keep"],
)
def test_heads_that_are_not_kept(sent: bytes) -> None:
    assert KnownHead.of(sent) is None
