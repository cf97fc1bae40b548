"""What `parshall up` says when it serves: where, an event to send, what to try next.

Pure. The curl commands work as they are pasted into bash, as often as one likes: each event has an id of its own and the time of now.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from urllib.parse import quote

from parshall.admin_client import DEFAULT_URL
from parshall.port import Addresses
from parshall.settings import Settings


def welcome(settings: Settings, data: str, addresses: Addresses, command: str, environment: Mapping[str, str], *, demo: bool) -> str:
    """`command` is how this program is called again; `environment` is where it finds what it is not told."""
    url, admin_url = addresses.public.url, (addresses.admin or addresses.public).url
    there, admin_there = (_options(one, environment, demo=demo) for one in (url, admin_url))
    auth = f'-H "Authorization: Bearer {"demo-key" if demo else "$PARSHALL_KEY"}"'
    return f"""
{_who(settings, demo=demo)} Data in {data}{"" if addresses.admin is None else f" Metrics and admin API at {admin_url}"}
{send_one(url, auth) if demo else ""}
What came of it, a second or two later:

  curl -s {auth} "{url}/v1/usage?meter={_meter(settings, demo=demo)}"
  curl -s {auth} "{url}/v1/charges?{"subject=customer-1&" if demo else ""}period=$(date -u +%Y-%m)"
  curl -s {auth} {url}/v1/ledger

Next: {command} send{there} FILE…    {command} flush show{admin_there}    {command} --help
Ctrl-C stops; the next start goes on from there.

Parshall is ready at {url}"""


def _who(settings: Settings, *, demo: bool) -> str:
    if demo:
        return 'Tenant "demo", key "demo-key".'
    return f"{len(settings.tenants)} tenant(s) of the configuration; `export PARSHALL_KEY=…` with the key of one."


def _meter(settings: Settings, *, demo: bool) -> str:
    """One to ask for. Whose usage a configuration counts nobody knows here: that of all subjects together."""
    return "requests&subject=customer-1" if demo else quote(str(settings.meters[0]["name"]), safe="")


def _options(url: str, environment: Mapping[str, str], *, demo: bool) -> str:
    """What a command must be told, to ask this service and no other."""
    given = f" --url {shlex.quote(url)}" if environment.get("PARSHALL_URL", DEFAULT_URL) != url else ""
    return given + (" --key demo-key" if demo and "PARSHALL_KEY" in environment else "")


def send_one(url: str, auth: str) -> str:
    return f"""
Send an event:

  curl -s {auth} -H "Content-Type: application/json" {url}/v1/events -d '[{{
    "specversion": "1.0", "type": "http.request", "source": "curl", "id": "'$(date +%s%N)'",
    "time": "'$(date -u +%Y-%m-%dT%H:%M:%SZ)'", "subject": "customer-1",
    "data": {{"region": "eu", "zone": "eu-1", "bytes": 125000000}}}}]'
"""
