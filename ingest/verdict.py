"""From the outcome of a request to its answer.

Pure. Must not know: aiohttp, the writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from ingest.batch import Rejection
from ingest.calls import Outcome

ALL_COUNTED = 200
SOME_REJECTED = 207
ALL_REJECTED = 422

_to_json = msgspec.json.Encoder().encode
_MOST_ID_CHARACTERS = 256  # an id that is too long is named by its beginning


def answer(outcome: Outcome) -> tuple[int, bytes]:
    """(status, JSON body)."""
    rejected = len(outcome.rejections)
    status = ALL_COUNTED if not rejected else ALL_REJECTED if rejected == outcome.received else SOME_REJECTED
    body = (
        b'{"received":%d,"accepted":%d,"duplicate":%d,"rejected":%d,"durability":"journaled","errors":%b}'
        % (outcome.received, outcome.accepted, outcome.duplicate, rejected, _errors(outcome.rejections) if rejected else b"[]")
    )  # fmt: skip
    return status, body


def _errors(rejections: Sequence[Rejection]) -> bytes:
    return _to_json(
        [
            {"index": rejection.index, "id": rejection.id[:_MOST_ID_CHARACTERS], "code": rejection.code, "detail": rejection.detail}
            for rejection in rejections
        ]
    )


def problem(status: int, detail: str) -> bytes:
    """RFC 9457: the body of every other answer."""
    return _to_json({"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail})
