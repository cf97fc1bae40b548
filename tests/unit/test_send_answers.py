"""What answers mean to a sender, and the summary."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from parshall.send_answers import NOT_JSON, Meaning, NotParshall, Reject, Summary, meaning, pause_ms, problem_text, read_verdicts
from parshall.send_lines import Line, make_batch

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
BATCH = make_batch("f", (Line(1, b'{"a":1}'), Line(4, b'{"b":2}')))


def body(**changes: object) -> bytes:
    errors: list[object] = [{"index": 1, "id": "x", "code": "too_late", "detail": "old"}]
    return json.dumps(
        {"received": 2, "accepted": 1, "duplicate": 0, "rejected": 1, "durability": "journaled", "errors": errors} | changes
    ).encode()


@pytest.mark.parametrize(
    ("statuses", "wanted"),
    [
        ((200, 207, 422), Meaning.VERDICTS),
        ((408, 429, 500, 502, 503, 504), Meaning.AGAIN),
        ((413,), Meaning.TOO_LARGE),
        ((201, 204, 301, 400, 401, 403, 404, 415), Meaning.STOP),
    ],
)
def test_meaning_of_each_status(statuses: tuple[int, ...], wanted: Meaning) -> None:
    assert {meaning(status) for status in statuses} == {wanted}


def test_pauses_grow_and_end_growing() -> None:
    pauses = [pause_ms(attempt, None, NOW, 0) for attempt in range(12)]
    assert pauses[:4] == [250, 500, 1000, 2000]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 15_000


@pytest.mark.parametrize(
    ("retry_after", "wanted_ms"),
    [
        ("7", 7000),
        ("3600", 60_000),
        ("soon", 250),
        ("-1", 250),
        ("Thu, 01 Jan 2026 12:00:09 GMT", 10_000),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 250),
    ],
)
def test_retry_after_is_honoured_in_both_forms(retry_after: str, wanted_ms: int) -> None:
    assert pause_ms(0, retry_after, NOW, 0) == wanted_ms


def test_jitter_only_adds() -> None:
    assert pause_ms(0, "7", NOW, 255) > 7000


@pytest.mark.parametrize("said", ["9" * 5000, f"Mon, {'9' * 30} Jan 2026 00:00:00 GMT", f"Mon, 01 Jan 2026 00:00:00 +{'9' * 20}"])
def test_a_retry_after_that_no_number_holds_is_none(said: str) -> None:
    assert pause_ms(0, said, NOW, 0) == 250


def test_verdicts_of_a_good_answer() -> None:
    verdicts = read_verdicts(BATCH, body())
    assert (verdicts.accepted, verdicts.rejected, verdicts.errors[0].code) == (1, 1, "too_late")


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b"[]",
        b"{}",
        body(received=3),
        body(accepted=2),
        body(rejected=0, accepted=2),
        body(errors=[]),
        body(errors=[{"index": 2, "code": "x"}]),
        body(errors=[{"index": 1, "code": "\x1b[2J"}]),
    ],
)
def test_an_answer_that_does_not_add_up_is_no_answer(answer: bytes) -> None:
    with pytest.raises(NotParshall):
        read_verdicts(BATCH, answer)


def test_a_rejected_event_keeps_its_bytes_and_its_line() -> None:
    line = Reject("f", Line(4, b'{"n": 1.10}'), "too_late", 'older "than" a day', "x").encode()
    assert b'"event":{"n": 1.10}}\n' in line
    assert json.loads(line)["line"] == 4
    assert json.loads(Reject("f", Line(5, b'\xff"'), NOT_JSON, "no", None).encode())["text"] == '\ufffd"'


def test_the_summary_adds_up_and_says_what_was_counted_before() -> None:
    summary = Summary()
    summary.add(read_verdicts(BATCH, body()))
    summary.add(read_verdicts(BATCH, body(accepted=0, duplicate=2, rejected=0, errors=[])))
    assert (summary.events, summary.counted, summary.rejected) == (4, 3, 1)
    table = summary.as_table(["f.rejected.ndjson"])
    assert "1 new, 2 were already counted before" in table
    assert "see f.rejected.ndjson" in table
    assert "too_late" in table
    assert summary.as_json(None, True)["counted"] == 3


def test_the_text_of_a_problem() -> None:
    assert problem_text(b'{"title":"Bad Request","detail":"no JSON"}') == "no JSON"
    assert problem_text(b"plain words") == "plain words"
