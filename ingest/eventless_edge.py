"""Edges that take no events: that of a node which only rates, and the admin address of one that takes them elsewhere.

Belongs here: what such an edge answers to events, whose keys it goes by, what moves to an admin address. Must not know: which routes there
are, what is behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from aiohttp import web

from ingest.auth import Keys, Principal
from ingest.http import Admitted, Edge, HttpLimits, Known, Problem, Route

_ADMIN_CONNECTIONS = 64  # people, and what scrapes metrics


class EventlessEdge(Edge):
    def __init__(
        self, keys: Keys, limits: HttpLimits, *, elsewhere: str, clock_us: Callable[[], int], not_ready: Callable[[], Sequence[str]]
    ) -> None:
        """`elsewhere`: one sentence that says where events go."""
        super().__init__(_NoSink(), None, keys, limits, clock_us=clock_us, not_ready=not_ready)  # type: ignore[arg-type]
        self.where_events_go = elsewhere

    def admit(self, headers: Mapping[str, str], connection: Known) -> Admitted:
        raise Problem(404, self.where_events_go, close=True)


class AdminEdge(EventlessEdge):
    """The admin address. It goes by the keys of the public one, also once those are read again."""

    def __init__(self, public: Edge) -> None:
        elsewhere = "This is the admin address (admin_listen) of the node; events go to the other one (listen)."
        limits = HttpLimits(connections=_ADMIN_CONNECTIONS)
        super().__init__(public.keys, limits, elsewhere=elsewhere, clock_us=public._clock_us, not_ready=public._not_ready)
        self._public = public

    def authorized(self, request: web.BaseRequest, scope: str) -> Principal:
        return self._public.authorized(request, scope)


def add_admin_routes(public: Edge, routes: Mapping[tuple[str, str], Route], *, apart: bool) -> AdminEdge | None:
    """What is for operators: among the public routes, or at an edge of its own, which is returned."""
    if not apart:
        public.routes.update(routes)
        return None
    public.routes.update(dict.fromkeys(routes, Route(_refuse, None)))
    admin = AdminEdge(public)
    admin.routes.update(routes)
    return admin


async def _refuse(_request: web.BaseRequest, _principal: Principal | None) -> web.StreamResponse:
    raise Problem(404, "This is at the admin address of the node alone (admin_listen in its configuration).")


class _NoSink:
    def check(self, tenant: int) -> None:
        raise AssertionError("this edge decodes no events")

    async def submit(self, batch: object, deadline_s: float) -> object:
        raise AssertionError("this edge decodes no events")
