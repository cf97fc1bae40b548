"""The admin API of a worker: its flush interval, and a flush at once.

Belongs here: the routes, what they accept and what they answer. Must not know: how a flush works, how many workers there are.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
from aiohttp import web

from ingest.auth import ADMIN, Principal
from ingest.http import Problem, Route, json_response, read_small

LEAST_INTERVAL_MS = 10
MOST_INTERVAL_MS = 3_600_000


class FlushControl(Protocol):
    """What the routes drive: one writer, or all of them."""

    @property
    def flush_interval_ms(self) -> int: ...

    async def set_flush_interval(self, interval_ms: int) -> None:
        """From now on, and after a restart. Raises Unavailable when it is not in force everywhere."""

    async def flush_now(self) -> None:
        """Return when all that was counted before is in the counter log. Raises Unavailable."""


def admin_routes(control: FlushControl) -> dict[tuple[str, str], Route]:
    """To add to `Edge.routes`."""

    async def show(_request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        return json_response(_interval(control))

    async def change(request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        await control.set_flush_interval(read_interval(await read_small(request)))
        return json_response(_interval(control))

    async def now(_request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        await control.flush_now()
        return json_response(b'{"flushed":true}')

    return {
        ("GET", "/v1/admin/flush"): Route(show, ADMIN),
        ("PUT", "/v1/admin/flush"): Route(change, ADMIN),
        ("POST", "/v1/admin/flush/now"): Route(now, ADMIN),
    }


def _interval(control: FlushControl) -> bytes:
    return b'{"interval_ms":%d}' % control.flush_interval_ms


def read_interval(body: bytes) -> int:
    """Raises Problem."""
    try:
        wanted = msgspec.json.decode(body, type=dict[str, object])
    except msgspec.ValidationError:
        raise Problem(400, 'The body is not a JSON object: send {"interval_ms": 1000}.') from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Problem(400, 'The body is not JSON: send {"interval_ms": 1000}.') from None
    if unknown := sorted(set(wanted) - {"interval_ms"}):
        raise Problem(422, f"There is no setting {unknown[0]!r} here; interval_ms is the only one.")
    if "interval_ms" not in wanted:
        raise Problem(422, "interval_ms is missing: send the interval in milliseconds.")
    interval_ms = wanted["interval_ms"]
    if interval_ms.__class__ is not int or not isinstance(interval_ms, int) or not LEAST_INTERVAL_MS <= interval_ms <= MOST_INTERVAL_MS:
        raise Problem(422, f"interval_ms must be a whole number from {LEAST_INTERVAL_MS} to {MOST_INTERVAL_MS} (milliseconds).")
    return interval_ms
