"""A head that was parsed before: a sender's next request mostly differs from its last one in its body and in the length of that alone.

Pure. Belongs here: whether some bytes are one whole request with such a head. What a parser makes of it is known then. Must not know:
aiohttp, sockets, what a head means.
"""

from __future__ import annotations

import re

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,8})[ \t]*\r\n", re.IGNORECASE)
_MOST_DIGITS = 8
_END = b"\r\n\r\n"
_MOST_BYTES = 4096  # every connection may keep one; far from any limit that a few more digits could go beyond


class KnownHead:
    """All of a head but the digits of Content-Length."""

    __slots__ = ("_after", "_before")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after

    @staticmethod
    def of(request: bytes) -> KnownHead | None:
        """The head of these bytes, the first of which a request was parsed from. None if they are not that request and nothing else, or
        its head is too large to keep."""
        end = request.find(_END, 0, _MOST_BYTES)
        length = _LENGTH.search(request, 0, end + len(_END)) if end >= 0 else None
        if length is None:
            return None
        head = KnownHead(request[: length.start(1)], request[length.end(1) : end + len(_END)])
        return None if head.body_of(request) is None else head

    def body_of(self, request: bytes) -> bytes | None:
        """The body, if these bytes are one whole request with this head."""
        before, after = self._before, self._after
        if not request.startswith(before):
            return None
        digits_at = len(before)
        digits_end = request.find(after, digits_at, digits_at + _MOST_DIGITS + len(after))
        digits = request[digits_at:digits_end] if digits_end >= 0 else b""
        body_at = digits_end + len(after)
        if not digits.isdigit() or int(digits) != len(request) - body_at:
            return None
        return request[body_at:]
