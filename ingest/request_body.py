"""The body of a request: read within bounds, and unpacked within bounds.

Belongs here: sizes, stalls and gzip. Must not know: what a body means, how a refusal is answered.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable

from aiohttp import StreamReader
from aiohttp.web import RequestPayloadError

_GZIP = 31  # window bits: a gzip header and trailer, the largest window
_MOST_MEMBERS = 1000  # of a gzip stream; every one costs time, however small


class Refused(Exception):
    """The body cannot be taken."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def too_large(most: int) -> Refused:
    return Refused(413, f"The body is larger than {most} bytes: send fewer events in one request.")


async def read(content: StreamReader, most: int, most_s: float, on_size: Callable[[int], None] | None = None) -> bytes:
    """The whole body. Raises Refused; what was not read is still to come then.

    `on_size` is told how much has arrived, each time that more has; what it raises ends the reading.
    """
    try:
        if content.is_eof():
            return arrived(content, most)
        async with asyncio.timeout(most_s):
            return await _read_on(content, most, on_size)
    except TimeoutError:
        raise Refused(408, f"The body did not arrive within {most_s:g} s.") from None
    except RequestPayloadError:
        raise Refused(400, "The body is not framed as its headers say.") from None


def arrived(content: StreamReader, most: int) -> bytes:
    """A body of which all is here. Raises Refused."""
    body = content.read_nowait()
    if len(body) > most:
        raise too_large(most)
    return body


async def _read_on(content: StreamReader, most: int, on_size: Callable[[int], None] | None) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := await content.readany():
        size += len(part)
        if size > most:
            raise too_large(most)
        if on_size is not None:
            on_size(size)
        parts.append(part)
    return b"".join(parts)


def unpack(body: bytes, encoding: str, most: int) -> bytes:
    """Undo a Content-Encoding. Raises Refused before it holds more than `most` bytes and a little."""
    match encoding.strip().lower():
        case "" | "identity":
            return body
        case "gzip" | "x-gzip":
            return _gunzip(body, most)
        case _:
            raise Refused(415, "Content-Encoding is not known here: send gzip, or nothing packed.")


def _gunzip(packed: bytes, most: int) -> bytes:
    parts: list[bytes] = []
    room = most
    for _ in range(_MOST_MEMBERS):
        member = zlib.decompressobj(_GZIP)
        try:
            part = member.decompress(packed, room + 1)
        except zlib.error:
            raise Refused(400, "The body is not gzip, as its Content-Encoding says.") from None
        room -= len(part)
        if room < 0:
            raise too_large(most)
        parts.append(part)
        if not member.eof:
            raise Refused(400, "The gzip body ends too early.")
        packed = member.unused_data
        if not packed:
            return b"".join(parts)
    raise Refused(400, f"The gzip body has more than {_MOST_MEMBERS} members.")
