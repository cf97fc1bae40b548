"""The two ways to ask for a reload: `POST /v1/admin/reload` answers with what came of it, a signal leaves that in the log.

Must not know: how the configuration is read again, and by whom.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import structlog
from aiohttp import web

from ingest.auth import ADMIN, Principal
from ingest.http import Problem, Route, json_response
from ingest.sink import Unavailable
from parshall.reload import Refused, Reloaded

log = structlog.get_logger()


def reload_routes(reload: Callable[[], Awaitable[Reloaded]]) -> dict[tuple[str, str], Route]:
    """To add to `Edge.routes`. `reload` may raise Unavailable."""

    async def handle(_request: web.BaseRequest, _principal: Principal | None) -> web.Response:
        try:
            return json_response(msgspec.json.encode(await reload()))
        except Refused as refused:
            raise Problem(422, str(refused)) from None

    return {("POST", "/v1/admin/reload"): Route(handle, ADMIN)}


async def tell_outcome(reload: Callable[[], Awaitable[Reloaded]]) -> None:
    """`reload`, asked for by a signal."""
    try:
        outcome = await reload()
    except Refused as refused:
        log.error("the configuration was read again and is not used", reason=str(refused))
    except Unavailable as error:
        log.error("the configuration could not be read again", reason=error.reason)
    except Exception as error:  # of whatever kind: nothing was asked for that is worth an end
        log.error("the configuration could not be read again", exc_info=error)
    else:
        log.info("the configuration was read again", in_force=outcome.in_force, after_restart=outcome.after_restart)
