"""An archived record comes back as it was, or is not archived."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_hexdigest

from buffer.record import decode
from rater.archive_lines import BadLine, LedgerRow, line_of, read_line
from rater.source import Received
from tests.integration.rating import EGRESS, PEAK, REQUESTS, Writer

HOUR = 3600


def row_of(record: Received, **changes: Any) -> LedgerRow:
    headers = record.headers
    key = (bytes.fromhex(headers["writer"].decode()), int(headers["partition"]), int(headers["n"]))
    row = LedgerRow(*key, headers["hash"].decode(), "log-1", "s0", 7, "2026-01-02T03:04:05Z", [*headers], [*headers.values()], record.value)
    return row._replace(**changes)


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
counts = st.lists(
    st.one_of(
        st.tuples(
            st.just(EGRESS),
            st.just("demo"),
            names,
            st.integers(0, 9).map(HOUR.__mul__),
            st.tuples(names),
            st.integers(0, 10**38),
            st.just(1),
        ),
        st.tuples(st.just(REQUESTS), st.just("other"), names, st.just(0), st.tuples(names, names), st.just(0), st.integers(1, 9)),
        st.tuples(st.just(PEAK), st.just("demo"), names, st.just(HOUR), st.just(()), st.integers(0, 10**9), st.just(1)),
    ),
    max_size=6,
)


@given(counts, st.dictionaries(st.sampled_from(["received", "accepted", "too_late"]), st.integers(0, 10**9)))
def test_a_record_comes_back_as_it_was(some: list[Any], tallies: dict[str, int]) -> None:
    for record in Writer(3).flush(some, {"demo": tallies}):
        row = row_of(record)
        made = line_of(row)
        assert made is not None
        line, archived = made
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert read_line(line) == archived
        assert archived == (row.key, row.hash, decode(record.headers, record.value))
        assert archived.last_window_s == max((window for _, _, _, window, *_ in some), default=None)
        told = json.loads(line)
        assert bytes.fromhex(told["writer"]) == row.writer and (told["partition"], told["n"], told["hash"]) == (*row.key[1:], row.hash)
        assert (told["log"], told["stream"], told["next_position"], told["rated_at"]) == ("log-1", "s0", 7, "2026-01-02T03:04:05Z")
        assert [(name, value.encode()) for name, value in told["headers"]] == list(record.headers.items())
        assert record.value in line, "the bytes that the hash is of"


RECORD = Writer(1).flush([(PEAK, "demo", "acme", 0, (), 9, 1)])[0]


@pytest.mark.parametrize(
    "row",
    [
        row_of(RECORD, value=RECORD.value.replace(b'"9"', b'"8"')),
        row_of(RECORD, value=RECORD.value[:-1]),
        row_of(RECORD, value=b"\xff"),
        row_of(RECORD, value=RECORD.value + b"\n"),
        row_of(RECORD, value=b" " + RECORD.value),
        row_of(RECORD, n=2),
        row_of(RECORD, partition=1),
        row_of(RECORD, writer=bytes(16)),
        row_of(RECORD, hash="0" * 32),
        row_of(RECORD, header_names=["x", *RECORD.headers], header_values=[b"\xff", *RECORD.headers.values()]),
        row_of(RECORD, header_names=[*RECORD.headers][:-1], header_values=[*RECORD.headers.values()][:-1]),
        row_of(RECORD, header_names=[*RECORD.headers, "more"]),
    ],
)
def test_what_would_not_come_back_is_not_archived(row: LedgerRow) -> None:
    assert line_of(row) is None


def test_a_record_of_several_lines_is_not_archived() -> None:
    """White space is JSON, and other writers of such records may have it; but a line is one line."""
    for space, archivable in ((b" ", True), (b"\n", False)):
        value = RECORD.value.replace(b",", b"," + space, 1)
        headers = dict(RECORD.headers) | {"hash": xxh3_128_hexdigest(value).encode()}
        made = line_of(row_of(Received("s0", 1, headers, value)))
        assert (made is not None) == archivable, space


def test_a_changed_line_is_refused() -> None:
    made = line_of(row_of(RECORD))
    assert made is not None
    line = made[0]
    for before, after in (
        (b'"v":1', b'"v":1,"more":1'),
        (b'"v":1', b'"v":2'),
        (b'"n":1', b'"n":2'),
        (b'"9"', b'"8"'),
        (b'"stream"', b'"strean"'),
        (b"]", b""),
    ):
        assert before in line
        with pytest.raises(BadLine):
            read_line(line.replace(before, after, 1))
