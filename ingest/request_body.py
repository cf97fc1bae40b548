"""The body of a request: read within bounds, and unpacked within bounds.

Belongs here: sizes, stalls, gzip and zstd. Must not know: what a body means, how a refusal is answered.
"""

from __future__ import annotations

import asyncio
import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

from aiohttp import StreamReader
from aiohttp.web import RequestPayloadError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_GZIP_BITS = 31  # window bits: a gzip header and trailer, the largest window
# 8 MiB: what RFC 9659 allows, and all that a frame makes us hold.
_ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
_MOST_PARTS = 1000  # of one body; every one costs time, however small
_PIECE_BYTES = 64 * 1024  # handed on at a time: what stands behind a part is copied when the part ends


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
            return bounded(content.read_nowait(), most)
        async with asyncio.timeout(most_s):
            return await _read_on(content, most, on_size)
    except TimeoutError:
        raise Refused(408, f"The body did not arrive within {most_s:g} s: send the same again.") from None
    except RequestPayloadError:
        raise Refused(400, "The body is not framed as its headers say.") from None


def bounded(body: bytes, most: int) -> bytes:
    """A body of which all is here. Raises Refused."""
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


class _Decompressor(Protocol):
    """Of one gzip member or zstd frame."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: memoryview, max_length: int, /) -> bytes: ...


class _Packing(NamedTuple):
    name: str
    parts: str  # what a body may be several of
    begin: Callable[[], _Decompressor]
    error: type[Exception]
    wrong: str


_GZIP = _Packing(
    "gzip", "members", lambda: zlib.decompressobj(_GZIP_BITS), zlib.error, "The body is not gzip, as its Content-Encoding says."
)
_ZSTD = _Packing(
    "zstd",
    "frames",
    lambda: zstd.ZstdDecompressor(options=_ZSTD_OPTIONS),
    zstd.ZstdError,
    "The body is not zstd with a window of at most 8 MiB: pack it at a level of at most 19, or with gzip.",
)
_PACKINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "zstd": _ZSTD}
ACCEPTED = "gzip, zstd"


def unpack(body: bytes, encoding: str, most: int) -> bytes:
    """Undo a Content-Encoding. Raises Refused before it holds more than `most` bytes and a little."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    packing = _PACKINGS.get(name)
    if packing is None:
        raise Refused(415, f"Content-Encoding is not known here: send {ACCEPTED}, or nothing packed.")
    return _unpack(body, packing, most)


def _unpack(packed: bytes, packing: _Packing, most: int) -> bytes:
    parts: list[bytes] = []
    room = most
    view = memoryview(packed)
    at = 0
    for _ in range(_MOST_PARTS):
        decompressor = packing.begin()
        while not decompressor.eof:
            piece = view[at : at + _PIECE_BYTES]
            if not piece:
                raise Refused(400, f"The {packing.name} body ends too early.")
            try:
                part = decompressor.decompress(piece, room + 1)
            except packing.error:
                raise Refused(400, packing.wrong) from None
            at += len(piece)
            room -= len(part)
            if room < 0:
                raise too_large(most)
            parts.append(part)
        at -= len(decompressor.unused_data)
        if at == len(view):
            return b"".join(parts)
    raise Refused(400, f"The {packing.name} body has more than {_MOST_PARTS} {packing.parts}.")
