"""Room on the stack: what is read once can be read again from further down.

Belongs here: how the limit on recursion is met, by version of Python. Must not know: what is read.

How deep JSON may be nested depends on how high the stack stands when it is read. A writer reads a request again elsewhere, and what
it could not read there would end it; so each body is read at first as if the stack stood higher than it does then. This is on the way of
every request: counting brackets, or a hundred calls, would take ten times as long and more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

if sys.version_info < (3, 12):
    SHALLOW_BYTES = 850  # a body of so many cannot be nested too deeply: a thousand levels are allowed, less the stack
    _LEVELS = 100  # that it may be read further down

    def leaving_room(read: Callable[[T], U], body: T) -> U:
        """What `read` gives, with fewer levels than there are."""
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit - _LEVELS)
        try:
            return read(body)
        finally:
            sys.setrecursionlimit(limit)

else:  # C functions have a limit of their own, which nobody can set; only calls out of C come nearer to it
    SHALLOW_BYTES = 2_500  # at least 1,500 levels are allowed there, each of two bytes
    _CALLS = 10  # of two levels each, which is more than lie between any two places in the service

    def leaving_room(read: Callable[[T], U], body: T, calls: int = _CALLS) -> U:
        """What `read` gives, with fewer levels than there are."""
        return next(map(leaving_room, (read,), (body,), (calls - 1,))) if calls else read(body)
