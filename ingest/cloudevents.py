"""CloudEvents over HTTP: which form a request has, and a binary one made a structured one.

Pure. Belongs here: media types and `ce-` headers. Must not know: meters, what is in an event, sockets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from functools import lru_cache
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Raw


class Form(Enum):
    STRUCTURED = "structured"  # the body is one event or an array of them
    BINARY = "binary"  # the headers are the event, the body is its data


STRUCTURED_TYPES = ("application/cloudevents+json", "application/cloudevents-batch+json", "application/json")
_ATTRIBUTES = ("specversion", "id", "source", "type", "subject", "time")  # extensions are read by nobody
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)


def form_of(content_type: str | None, headers: Mapping[str, str]) -> Form | None:
    """None: a media type that is not read. Parameters such as a charset are tolerated: JSON is UTF-8 whatever they say."""
    binary, otherwise = _forms(content_type)
    if binary and ("ce-specversion" in headers or "ce-id" in headers):
        return Form.BINARY
    return otherwise


@lru_cache(maxsize=64)  # senders have one or two, and taking it apart costs a microsecond a request
def _forms(content_type: str | None) -> tuple[bool, Form | None]:
    """(whether it is the binary form where there are `ce-` headers, what it is otherwise)."""
    media_type = "" if content_type is None else content_type.partition(";")[0].strip().lower()
    if media_type.startswith("application/cloudevents"):
        return False, Form.STRUCTURED if media_type in STRUCTURED_TYPES else None
    if media_type == "application/json":
        return True, Form.STRUCTURED
    return not media_type or media_type.endswith("+json"), None


def structured(headers: Mapping[str, str], data: bytes) -> bytes:
    """The one event that a binary request holds. `data` is JSON, or empty when there is none."""
    event: dict[str, str | Raw] = {name: decode_header(value) for name in _ATTRIBUTES if (value := headers.get(f"ce-{name}")) is not None}
    if data:
        event["data"] = Raw(data)
    return msgspec.json.encode(event)


def decode_header(value: str) -> str:
    """Quotes removed, then percent-decoding; bytes that were sent raw are UTF-8 or, failing that, Latin-1."""
    if (quoted := _QUOTED.fullmatch(value)) is not None:
        value = re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL)
    sent = unquote_to_bytes(value.encode("utf-8", "surrogateescape"))
    try:
        return sent.decode()
    except UnicodeDecodeError:
        return sent.decode("latin-1")
