"""Asks a running service over its HTTP API: shared by the small commands. Standard library only, so that they start at once.

Belongs here: address and key options, one request, and the sentence for each way it can fail. Must not know: what is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from http.client import HTTPException, IncompleteRead, InvalidURL
from socket import SOCK_STREAM, getaddrinfo
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

import click

from parshall.errors import FAILED, UNAVAILABLE, USAGE, Stop
from parshall.streams import say

DEFAULT_URL = "http://127.0.0.1:8080"
PATIENCE_S = 60  # longer than the service takes to say what keeps it (parshall/peers.py)
DEMO_KEY = "demo-key"  # `parshall up` without a configuration accepts it, on the loopback only

_MOST_BYTES = 1 << 20  # of an answer

F = TypeVar("F", bound=Callable[..., Any])


def url_option(command: F) -> F:
    text = "Where Parshall listens."
    return click.option("--url", default=DEFAULT_URL, envvar="PARSHALL_URL", show_envvar=True, show_default=True, callback=_url, help=text)(
        command
    )


def nodes_options(command: F) -> F:
    """For what is to be done by several nodes alike: `urls` and `each_address`, for `ask_each`."""
    urls = "Where Parshall listens, or its admin address where it has one (admin_listen); once for each node."
    each = "Ask every address that the name in --url has, as a headless service of Kubernetes has one for each pod."
    command = click.option("--each-address", is_flag=True, help=each)(command)
    return click.option(
        "--url",
        "urls",
        multiple=True,
        default=[DEFAULT_URL],
        envvar="PARSHALL_URL",
        show_envvar=True,
        show_default=True,
        callback=lambda context, parameter, given: tuple(_url(context, parameter, url) for url in given),
        help=urls,
    )(command)


def ask_each(urls: Sequence[str], each_address: bool, ask_one: Callable[[str], str]) -> None:
    """Prints what came of each. All are asked, also behind one that fails, whose exit code is the command's."""
    nodes = [node for url in urls for node in (_addresses(url) if each_address else [url])]
    failed: Stop | None = None
    for node in nodes:
        try:
            said = ask_one(node)
        except Stop as stop:
            if len(nodes) == 1:
                raise
            failed = stop
            say(stop.message)
        else:
            click.echo(said if len(nodes) == 1 else "\n".join(f"{node}: {line}" for line in said.splitlines()))
    if failed is not None:
        raise Stop("Not all of them could do it: see above.", failed.code)


def _addresses(url: str) -> list[str]:
    parts = urlsplit(url)
    if parts.scheme != "http":
        raise Stop(f"--each-address is for http, as a certificate names no address: name each node with --url instead of {url}.", USAGE)
    try:
        found = getaddrinfo(parts.hostname, parts.port or 80, type=SOCK_STREAM)
    except OSError as error:
        raise Stop(f"{parts.hostname} has no address ({error.strerror}): --url says where to look.", UNAVAILABLE) from error
    # Of one family: a node may have one of each, and is to be asked once.
    hosts = sorted({str(address[0]) for family, *_, address in found if family == found[0][0]})
    return [f"http://{f'[{host}]' if ':' in host else host}:{parts.port or 80}{parts.path}" for host in hosts]


def key_option(command: F) -> F:
    text = "API key. [default: demo-key, at a loopback address]"
    return click.option("--key", envvar="PARSHALL_KEY", show_envvar=True, callback=_key, help=text)(command)


def _key(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """A header has no room for lines; and the key itself is shown to nobody."""
    if value is not None and any(character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff" for character in value):
        raise Stop("The API key (--key or PARSHALL_KEY) has a character in it that no key has, such as a line break.", USAGE)
    return value


def _url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    parts = _split(value)
    if "@" in (value if parts is None else parts.netloc):  # told first, as what is no URL is shown
        raise Stop("The URL has a user or a password in it: leave them out, Parshall is given a key with --key or in PARSHALL_KEY.", USAGE)
    if parts is None or parts.query or parts.fragment:
        raise click.BadParameter(f"{value!r} is not a URL as in {DEFAULT_URL}")
    return value.rstrip("/")


def _split(url: str) -> SplitResult | None:
    """None where it is none that can be asked."""
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and host and url.isprintable() and " " not in url else None


def key_or_demo(url: str, key: str | None) -> str:
    if key:
        return key
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.startswith("127.") or host == "::1":
        return DEMO_KEY
    raise Stop(f"{url} needs an API key: give it with --key or in PARSHALL_KEY.", USAGE)


class _NoRedirects(HTTPRedirectHandler):
    """Wherever it leads to, that is not to be given the key."""

    def redirect_request(self, *_: object) -> None:
        return None


# Nor is a proxy that the environment names, as for `parshall send`: nodes are asked themselves, and none lies before the loopback.
_opener = build_opener(ProxyHandler({}), _NoRedirects)


def ask(method: str, url: str, path: str, key: str, body: dict[str, object] | None = None) -> dict[str, Any]:
    request = Request(url + path, method=method, data=None if body is None else json.dumps(body).encode())
    request.add_header("Authorization", f"Bearer {key}".encode().decode("latin-1"))  # a header is sent as latin-1
    if body is not None:
        request.add_header("Content-Type", "application/json")
    content = _read(url, request)
    try:
        decoded = json.loads(content or b"{}")
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise not_parshall(url)
    return decoded


def _read(url: str, request: Request) -> bytes:
    try:
        with _opener.open(request, timeout=PATIENCE_S) as answer:
            named = answer.length is not None and answer.length <= _MOST_BYTES  # only then is it told of one that is cut short
            content: bytes = answer.read(None if named else _MOST_BYTES + 1)
            if len(content) > _MOST_BYTES:
                raise not_parshall(url)
            return content
    except HTTPError as error:
        with error:
            raise _refusal(url, error) from error
    except TimeoutError as error:  # of the answer; that of the connection comes as a URLError
        said = f"{url} has not answered within {PATIENCE_S} seconds, and may still do what it was asked: look in its log, or ask once more."
        raise Stop(said, UNAVAILABLE) from error
    except IncompleteRead as error:
        said = f"{url} broke off in the middle of its answer, and may have done what it was asked: ask once more."
        raise Stop(said, UNAVAILABLE) from error
    except (URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise Stop(f"Nothing answers at {url} ({reason}). Is Parshall running there? --url says where to look.", UNAVAILABLE) from error
    except (InvalidURL, UnicodeError) as error:
        raise Stop(f"{url} is not a URL as in {DEFAULT_URL}.", USAGE) from error
    except HTTPException as error:
        raise not_parshall(url) from error


def not_parshall(url: str) -> Stop:
    return Stop(f"What answers at {url} is not Parshall.", FAILED)


def _refusal(url: str, error: HTTPError) -> Stop:
    try:
        said = str(json.loads(error.read(_MOST_BYTES)).get("detail", ""))
    except (ValueError, AttributeError, OSError, HTTPException, RecursionError):
        said = ""
    match error.code:
        case 301 | 302 | 303 | 307 | 308:
            where = error.headers.get("Location") or "another address"
            return Stop(f"{url} sends on to {where}, and is not Parshall: give the address of Parshall with --url.", FAILED)
        case 401:
            return Stop(f"{url} does not know this key: give the right one with --key or PARSHALL_KEY.", FAILED)
        case 403:
            return Stop(f"This key may not do that at {url}: {said or 'it lacks the scope'}", FAILED)
        case 429 | 502 | 503 | 504:
            return Stop(f"{url} cannot do that now ({error.code}): {said}", UNAVAILABLE)
        case _:
            return Stop(f"{url} answered {error.code}: {said or error.reason}", FAILED)
