"""One command, several nodes: all are asked, and what failed is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from click.testing import CliRunner, Result

from parshall import admin_client
from parshall.errors import Stop
from parshall.flush_commands import flush
from parshall.reload_command import reload


class Node:
    """Answers as a node does, and keeps what it was asked."""

    def __init__(self, host: str, port: int = 0, status: int = 200) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                node.asked.append((self.command, self.path, json.loads(body) if body else None))
                content = b'{"detail":"not now"}' if status != 200 else body or b'{"in_force":["keys"],"after_restart":["listen"]}'
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def do_POST(self) -> None:
                self.do_PUT()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer((host, port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    first = Node("127.0.0.1")
    made = [first, Node("127.0.0.2", first.port), Node("127.0.0.3", status=503)]
    yield made
    for node in made:
        node.close()


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--key", "k"])


def test_each_url_is_asked(nodes: list[Node]) -> None:
    first, second, _ = nodes
    done = run(flush, "set", "--interval", "5s", "--url", first.url, "--url", f"{second.url}/")
    assert done.exit_code == 0, done.output
    assert done.output == "".join(f"{node.url}: every 5s from now on, also after a restart\n" for node in (first, second))
    assert first.asked == second.asked == [("PUT", "/v1/admin/flush", {"interval_ms": 5000})]


def test_one_alone_is_not_named(nodes: list[Node]) -> None:
    done = run(reload, "--url", nodes[0].url)
    assert done.output == "in force now: keys\nafter a restart: listen\n"


def test_who_stands_behind_one_that_fails_is_asked_too(nodes: list[Node]) -> None:
    first, second, broken = nodes
    done = run(reload, "--url", first.url, "--url", broken.url, "--url", second.url)
    assert isinstance(done.exception, Stop) and done.exception.code == 3
    assert f"{broken.url} cannot do that now (503): not now" in done.output
    assert [node.asked for node in (first, second)] == [[("POST", "/v1/admin/reload", None)]] * 2
    assert f"{second.url}: in force now: keys\n{second.url}: after a restart: listen\n" in done.output


def test_a_name_with_several_addresses(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, _ = nodes
    found = [(2, 1, 6, "", (host, first.port)) for host in ("127.0.0.2", "127.0.0.1", "127.0.0.1")]
    found.append((10, 1, 6, "", ("::1", first.port)))  # the same nodes by another family
    monkeypatch.setattr(admin_client, "getaddrinfo", lambda host, port, **_: found if (host, port) == ("pods", first.port) else [])
    done = run(flush, "now", "--each-address", "--url", f"http://pods:{first.port}")
    assert done.output == f"{first.url}: flushed\n{second.url}: flushed\n"
    assert len(first.asked) == len(second.asked) == 1


@pytest.mark.parametrize(("url", "why"), [("https://pods", "a certificate names no address"), ("http://nowhere.invalid", "has no address")])
def test_a_name_that_cannot_be_used(url: str, why: str) -> None:
    done = run(flush, "now", "--each-address", "--url", url)
    assert isinstance(done.exception, Stop) and why in done.exception.message


def test_one_that_took_the_question_and_is_silent_is_not_taken_for_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_client, "PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = run(flush, "now", "--url", url)
    assert isinstance(done.exception, Stop) and done.exception.code == 3
    why = f"{url} has not answered within 0.2 seconds, and may still do what it was asked: look in its log, or ask once more."
    assert done.exception.message == why
    done = run(flush, "now", "--url", url)
    assert isinstance(done.exception, Stop) and done.exception.message.startswith(f"Nothing answers at {url} (")
