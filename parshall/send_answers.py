"""What an answer means to a sender, how long to wait before the next try, and the summary of all verdicts.

Pure. Must not know: sockets, files, the terminal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any, NamedTuple

import msgspec

from parshall.send_lines import Batch, Line

LONGEST_PAUSE_S = 60
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what an answer that is not ours may be
NOT_JSON = "not_json"  # the code of lines that were not sent


class Meaning(Enum):
    VERDICTS = "verdicts"  # every event was counted or rejected, the body says which
    AGAIN = "again"  # not now, or nobody knows: send the same bytes again
    TOO_LARGE = "too large"  # nothing was counted: send smaller requests
    STOP = "stop"  # no retry will change it


def meaning(status: int) -> Meaning:
    if status in (200, 207, 422):
        return Meaning.VERDICTS
    if status in (408, 425, 429) or status >= 500:
        return Meaning.AGAIN  # the same identities are never counted twice, so even a 500 is safe to repeat
    if status == 413:
        return Meaning.TOO_LARGE
    return Meaning.STOP


def pause_ms(attempt: int, retry_after: str | None, now: datetime, jitter: int) -> int:
    """Doubles from a quarter second; never shorter than Retry-After says; `jitter` (0 to 255) spreads many senders."""
    backoff_ms = min(250 << min(attempt, 7), 15_000)
    asked_ms = min(_retry_after_s(retry_after, now), LONGEST_PAUSE_S) * 1000
    return max(backoff_ms, asked_ms) + backoff_ms * jitter // 1024


def _retry_after_s(text: str | None, now: datetime) -> int:
    if text is None:
        return 0
    try:
        if text.strip().isdecimal():
            return int(text)
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # also of thousands of digits
        return 0
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    wait = moment - now
    return max(0, wait.days * 86_400 + wait.seconds + 1)


class EventError(msgspec.Struct):
    index: int
    code: str
    id: str | None = None
    detail: str = ""


class Verdicts(msgspec.Struct):
    """The body of 200, 207 and 422."""

    received: int
    accepted: int
    duplicate: int
    rejected: int
    errors: list[EventError] = []


class NotParshall(Exception):
    """The answer has the right status and the wrong body: whatever answers there is not Parshall."""


def read_verdicts(batch: Batch, body: bytes) -> Verdicts:
    try:
        verdicts = msgspec.json.decode(body, type=Verdicts)
    except _UNREADABLE as error:
        raise NotParshall(f"the body of the answer is not a list of verdicts ({error})") from error
    sent = len(batch.lines)
    if verdicts.received != sent or verdicts.accepted + verdicts.duplicate + verdicts.rejected != sent:
        raise NotParshall(f"{sent} events were sent, and the answer speaks of {verdicts.received}")
    if len(verdicts.errors) != verdicts.rejected or not all(0 <= error.index < sent for error in verdicts.errors):
        raise NotParshall(f"{verdicts.rejected} events were rejected, and the answer does not name each of them")
    if not all(error.code.isprintable() for error in verdicts.errors):
        raise NotParshall("there are codes in it that cannot be shown")
    return verdicts


def problem_text(body: bytes) -> str:
    """What an answer of application/problem+json says, or the beginning of whatever it is."""
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
        return str(problem.get("detail") or problem.get("title") or problem)
    except _UNREADABLE:
        return body[:200].decode(errors="replace").strip()


class Reject(NamedTuple):
    """One line that was not counted, with its reason."""

    file: str
    line: Line
    code: str
    detail: str
    id: str | None

    def encode(self) -> bytes:
        """One line of the file of rejected events; what was sent stands in it as it was, under `event`, or as `text` if it is no JSON."""
        about = {"file": self.file, "line": self.line.number, "code": self.code, "detail": self.detail, "id": self.id}
        head = msgspec.json.encode(about)[:-1]
        if self.code == NOT_JSON:
            return head + b',"text":' + msgspec.json.encode(self.line.text[:65_536].decode(errors="replace")) + b"}\n"
        return head + b',"event":' + self.line.text + b"}\n"


class Summary:
    """What became of all lines so far."""

    def __init__(self) -> None:
        self.accepted = 0
        self.duplicate = 0
        self.by_code: Counter[str] = Counter()
        self.requests = 0
        self.retries = 0

    @property
    def rejected(self) -> int:
        return sum(self.by_code.values())

    @property
    def counted(self) -> int:
        return self.accepted + self.duplicate

    @property
    def events(self) -> int:
        return self.counted + self.rejected

    def add(self, verdicts: Verdicts) -> None:
        self.accepted += verdicts.accepted
        self.duplicate += verdicts.duplicate
        self.by_code.update(error.code for error in verdicts.errors)

    def as_json(self, rejects: str | None, complete: bool) -> dict[str, Any]:
        return {
            "complete": complete,
            "events": self.events,
            "counted": self.counted,
            "accepted": self.accepted,
            "duplicate": self.duplicate,
            "rejected": self.rejected,
            "rejected_by_code": dict(sorted(self.by_code.items())),
            "rejected_file": rejects,
            "requests": self.requests,
            "retries": self.retries,
        }

    def as_table(self, rejects: Sequence[str]) -> str:
        rows = [("events", self.events, ""), ("counted", self.counted, self._how_counted())]
        rows.append(("rejected", self.rejected, f"see {', '.join(rejects)}" if rejects else ""))
        rows += [(f"  {code}", number, "") for code, number in sorted(self.by_code.items(), key=lambda item: (-item[1], item[0]))]
        rows.append(("requests", self.requests, f"and {self.retries:,} sent again" if self.retries else ""))
        names = max(len(name) for name, _, _ in rows)
        numbers = max(len(f"{number:,}") for _, number, _ in rows)
        return "\n".join(f"{name:<{names}}  {number:>{numbers},}  {remark}".rstrip() for name, number, remark in rows)

    def _how_counted(self) -> str:
        if not self.duplicate:
            return "all new" if self.accepted else ""
        return f"{self.accepted:,} new, {self.duplicate:,} were already counted before"
