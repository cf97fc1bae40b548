"""Unpacking a body within bounds."""

from __future__ import annotations

import gzip

import pytest

from ingest.request_body import Refused, unpack

EMPTY_MEMBER = gzip.compress(b"")


def test_members_are_joined_up_to_the_bound() -> None:
    packed = gzip.compress(b"ab") + EMPTY_MEMBER + gzip.compress(b"c")
    assert unpack(packed, "gzip", 3) == b"abc"
    with pytest.raises(Refused) as caught:
        unpack(packed, "gzip", 2)
    assert (caught.value.status, caught.value.detail) == (413, "The body is larger than 2 bytes: send fewer events in one request.")


def test_members_are_few() -> None:
    assert unpack(EMPTY_MEMBER * 1000, "gzip", 10) == b""
    with pytest.raises(Refused, match="more than 1000 members") as caught:
        unpack(EMPTY_MEMBER * 1001, "gzip", 10)
    assert caught.value.status == 400


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_nothing_packed(encoding: str) -> None:
    assert unpack(b"x", encoding, 1) == b"x"
