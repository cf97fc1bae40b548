"""What `parshall up` says when it serves: where, an event to send, what to try next.

Pure. The curl commands work as they are pasted into bash, as often as one likes: each event has an id of its own and the time of now.
"""

from __future__ import annotations

from parshall.settings import Address, Settings


def welcome(settings: Settings, data: str, address: Address, command: str, *, demo: bool) -> str:
    """`command` is how this program is called again."""
    url = address.url
    key = "demo-key" if demo else "$PARSHALL_KEY"
    tenant = (
        'Tenant "demo", key "demo-key".'
        if demo
        else f"{len(settings.tenants)} tenant(s) of the configuration; put a key into PARSHALL_KEY."
    )
    auth = f'-H "Authorization: Bearer {key}"'
    first = send_one(url, auth) if demo else ""
    return f"""
{tenant} Data in {data}
{first}
What came of it, a second or two later:

  curl -s {auth} "{url}/v1/usage?meter=requests&subject=customer-1"
  curl -s {auth} "{url}/v1/charges?subject=customer-1&period=$(date -u +%Y-%m)"
  curl -s {auth} {url}/v1/ledger

Next: {command} send FILE…    {command} flush show    {command} --help
Ctrl-C stops; the next start goes on from there.

Parshall is ready at {url}"""


def send_one(url: str, auth: str) -> str:
    return f"""
Send an event:

  curl -s {auth} -H "Content-Type: application/json" {url}/v1/events -d '[{{
    "specversion": "1.0", "type": "http.request", "source": "curl", "id": "'$(date +%s%N)'",
    "time": "'$(date -u +%Y-%m-%dT%H:%M:%SZ)'", "subject": "customer-1",
    "data": {{"region": "eu", "zone": "eu-1", "bytes": 125000000}}}}]'
"""
