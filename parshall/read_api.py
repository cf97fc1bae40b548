"""The routes that read: usage and charges from PostgreSQL, the ledger from the workers and PostgreSQL together.

Belongs here: from a request and its principal to a question, and the sum of what several answer. Must not know: SQL, sockets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from ingest.auth import READ, Principal
from ingest.http import SERVER, Problem, Route, json_response
from ingest.snapshot import TenantLedger, WriterSnapshot
from rater.api import RETRY_AFTER_S, Answer, Api

Routes = dict[tuple[str, str], Route]
Snapshots = Callable[[], Awaitable[Mapping[int, WriterSnapshot | None]]]

_ELSEWHERE = "This node has no PostgreSQL of its own to ask ([postgres]); ask the node that runs `parshall rate`."


def rated_routes(api: Api | None) -> Routes:
    """Usage and charges."""

    async def usage(request: web.BaseRequest, principal: Principal | None) -> web.Response:
        return _response(await _known(api).usage(_tenant(principal), _query(request)))

    async def charges(request: web.BaseRequest, principal: Principal | None) -> web.Response:
        return _response(await _known(api).charges(_tenant(principal), _query(request)))

    return {("GET", "/v1/usage"): Route(usage, READ), ("GET", "/v1/charges"): Route(charges, READ)}


def ledger_routes(api: Api | None, snapshots: Snapshots) -> Routes:
    """A key sees its own tenant only."""

    async def ledger(request: web.BaseRequest, principal: Principal | None) -> web.Response:
        tenant = _tenant(principal)
        if request.query_string:
            raise Problem(400, "The ledger takes no parameters.")
        as_of, rated = await _rated(api, tenant)  # before the workers: what is rated was flushed before, so it can never look like more
        entry = add_up(tenant, await snapshots())
        entry["rated"] = rated
        return json_response(msgspec.json.encode({"as_of": as_of, "tenants": {tenant: entry}}))

    return {("GET", "/v1/ledger"): Route(ledger, READ)}


def rated_ledger_routes(api: Api) -> Routes:
    """The ledger of a node without workers: what is rated, and nothing that only writers know."""

    async def ledger(request: web.BaseRequest, principal: Principal | None) -> web.Response:
        return _response(await api.ledger(_tenant(principal), _query(request)))

    return {("GET", "/v1/ledger"): Route(ledger, READ)}


def add_up(tenant: str, snapshots: Mapping[int, WriterSnapshot | None]) -> dict[str, Any]:
    """The numbers of all workers. One that is unknown makes every sum unknown: null, never 0."""
    silent = sorted(worker for worker, snapshot in snapshots.items() if snapshot is None)
    names = ("received", "accepted", "duplicate", "rejected", "unanswered", "flushed", "buffered")
    if silent:
        return {**dict.fromkeys(names), "unknown_workers": silent}
    sums: dict[str, Any] = dict.fromkeys(names, 0)
    for snapshot in snapshots.values():
        mine = snapshot.tenants.get(tenant, TenantLedger()) if snapshot else TenantLedger()
        for name in names:
            sums[name] += sum(mine.rejected.values()) if name == "rejected" else getattr(mine, name)
    return sums


async def _rated(api: Api | None, tenant: str) -> tuple[str | None, int | None]:
    """`as_of` of what is rated, and how many events are. The numbers of events of a flush come with one of its records, so these may be
    rated a moment before the counters in its other records; up to `as_of` all are."""
    if api is None:
        return None, None
    answer = await api.ledger(tenant, {})
    if answer.status != 200:
        return None, None
    content = msgspec.json.decode(answer.body)
    return content["as_of"], content["tenants"][tenant]["rated"]


def _known(api: Api | None) -> Api:
    if api is None:
        raise Problem(404, _ELSEWHERE)
    return api


def _tenant(principal: Principal | None) -> str:
    assert principal is not None, "these routes have a scope"
    return principal.tenant_name


def _query(request: web.BaseRequest) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name in query:
            raise Problem(400, f"{name} is given twice; allowed: once")
        query[name] = value
    return query


def _response(answer: Answer) -> web.Response:
    headers = {"Content-Type": answer.content_type, "Server": SERVER}
    if answer.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    return web.Response(body=answer.body, status=answer.status, headers=headers)
