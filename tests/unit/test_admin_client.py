"""One command, several nodes: all are asked, and what failed is told."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from parshall import admin_client
from parshall.errors import Stop
from parshall.flush_commands import flush
from parshall.reload_command import reload
from parshall.streams import say

PROJECT = Path(__file__).parents[2]
ANSWERS = {"/v1/admin/reload": b'{"in_force":["keys"],"after_restart":["listen"]}', "/v1/admin/flush/now": b'{"flushed":true}'}


class Node:
    """Answers as a node does, and keeps what it was asked."""

    def __init__(self, host: str, port: int = 0, status: int = 200) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                node.asked.append((self.command, self.path, json.loads(body) if body else None))
                content = b'{"detail":"not now"}' if status != 200 else body or ANSWERS[self.path]
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


# ---- what is no Parshall, and what cannot be asked


class Stranger:
    """Takes one connection after the other, and gives each the same bytes for an answer."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.asked: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._server.accept()
            with connection:
                if not (question := _whole(connection)):
                    return
                self.asked.append(question)
                connection.sendall(self._answer)

    def close(self) -> None:
        with socket.create_connection(self._server.getsockname()) as last:
            last.shutdown(socket.SHUT_WR)
            self._thread.join()
        self._server.close()


def _whole(connection: socket.socket) -> bytes:
    """A request with its body: one that is closed before that is read takes back what is on its way to the client."""
    request = b""
    while more := connection.recv(65_536):
        request += more
        head, end, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\ncontent-length: (\d+)", head)
        if end and len(body) >= int(length[1] if length else 0):
            break
    return request


@contextmanager
def answering(answer: bytes) -> Iterator[Stranger]:
    stranger = Stranger(answer)
    try:
        yield stranger
    finally:
        stranger.close()


def http(body: bytes, status: str = "200 OK", head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status.encode(), len(body), head, body)


COMMANDS = [(flush, "show"), (flush, "set", "--interval", "5s"), (flush, "now"), (reload,)]
NO_HTTP = [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 no\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: " + b"b" * 70_000 + b"\r\n\r\n"]
FOR_A_TERMINAL = b'{"in_force":["\\u001b[2J"],"after_restart":[]}'
OTHER_JSON = [
    http(body) for body in (b"{}", b"[]", b'{"interval_ms":"x","in_force":7}', FOR_A_TERMINAL, b"\xff", b"[" * 100_000, b"9" * 10_000)
]


@pytest.mark.parametrize("answer", [*NO_HTTP, *OTHER_JSON], ids=lambda answer: answer[-20:].decode(errors="replace"))
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_what_answers_is_not_parshall(command: Any, answer: bytes) -> None:
    with answering(answer) as stranger:
        done = run(*command, "--url", stranger.url)
    assert isinstance(done.exception, Stop), done.exception
    assert (done.exception.message, done.exception.code) == (f"What answers at {stranger.url} is not Parshall.", 1)


def test_an_answer_without_an_end() -> None:
    for status in ("200 OK", "503 No"):
        with answering(f"HTTP/1.1 {status}\r\n\r\n".encode() + b" " * ((1 << 20) + 1)) as stranger:
            done = run(flush, "now", "--url", stranger.url)
        assert isinstance(done.exception, Stop) and done.exception.code == (1 if status == "200 OK" else 3)


def test_what_another_says_does_nothing_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("http://host answered 400: \x1b]0;owned\x07\x9b2J\tcafé\nnext")
    assert capsys.readouterr().err == "http://host answered 400: \ufffd]0;owned\ufffd\ufffd2J\tcafé\nnext\n"


def test_an_answer_that_is_cut_short() -> None:
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{") as stranger:
        done = run(flush, "now", "--url", stranger.url)
    assert isinstance(done.exception, Stop) and done.exception.code == 3
    assert done.exception.message.startswith(f"{stranger.url} broke off in the middle of its answer, and may have done what it was asked")
    with answering(b"HTTP/1.1 503 No\r\nContent-Length: 100\r\n\r\n{") as stranger:
        done = run(flush, "now", "--url", stranger.url)
    assert isinstance(done.exception, Stop) and done.exception.message.startswith(f"{stranger.url} cannot do that now (503)")


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Over there"])
def test_the_key_is_not_taken_to_where_an_answer_sends_on(status: str) -> None:
    with answering(http(b'{"interval_ms":1000,"flushed":true,"in_force":[],"after_restart":[]}')) as other:
        with answering(http(b"", status, b"Location: %s/v1\r\n" % other.url.encode())) as stranger:
            said = [run(*command, "--url", stranger.url).exception for command in COMMANDS]
        assert other.asked == []
    for one in said:
        assert isinstance(one, Stop) and one.code == 1
        assert one.message == f"{stranger.url} sends on to {other.url}/v1, and is not Parshall: give the address of Parshall with --url."


def test_proxies_of_the_environment_are_not_asked(nodes: list[Node]) -> None:
    with answering(http(b'{"interval_ms":1,"flushed":true,"in_force":[],"after_restart":[]}')) as proxy:
        there = ["--url", nodes[0].url, "--key", "k"]
        # In a process of its own: urllib looks at the environment once.
        environment = {**os.environ, "http_proxy": proxy.url, "all_proxy": proxy.url, "no_proxy": "", "PYTHONPATH": str(PROJECT)}
        for words in (["flush", "now"], ["reload"]):
            command = [sys.executable, "-m", "parshall", *words, *there]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
            assert (done.returncode, done.stderr) == (0, "")
        assert proxy.asked == []
    assert [path for _, path, _ in nodes[0].asked] == ["/v1/admin/flush/now", "/v1/admin/reload"]


def test_a_key_that_no_header_can_carry() -> None:
    for key in ("k\r", "k\nX: y", "\x01", "k\x7f", "\udcff"):
        for command in COMMANDS:
            done = CliRunner().invoke(command[0], [*command[1:]], env={"PARSHALL_KEY": key})
            assert isinstance(done.exception, Stop) and done.exception.code == 2, (key, done.exception)
            assert (
                done.exception.message == "The API key (--key or PARSHALL_KEY) has a character in it that no key has, such as a line break."
            )


def test_a_key_in_any_script(nodes: list[Node]) -> None:
    with answering(http(b'{"interval_ms":1000}')) as stranger:
        done = CliRunner().invoke(flush, ["show", "--url", stranger.url, "--key", "ключ"])
    assert done.output == "every 1s\n"
    assert "Authorization: Bearer ключ\r\n".encode() in stranger.asked[0]


@pytest.mark.parametrize("url", ["http://u:secret@127.0.0.1:9", "http://secret@127.0.0.1:9", "http://u:sec ret@[::1"])
def test_a_url_with_a_password_is_refused_without_showing_it(url: str) -> None:
    for command in COMMANDS:
        done = run(*command, "--url", url)
        assert isinstance(done.exception, Stop) and done.exception.code == 2
        assert done.exception.message.startswith("The URL has a user or a password in it: leave them out")


@pytest.mark.parametrize("rest", ["127.0.0.1:99999", "[::1", "a b", "127.0.0.1:9/?x=1", "127.0.0.1:9/#x", "a" * 80, "a..b", "x\ny"])
def test_what_is_no_url(rest: str) -> None:
    for command in (*COMMANDS, (flush, "now", "--each-address")):
        done = run(*command, "--url", f"http://{rest}")
        assert done.exit_code == 2 and "is not a URL as in http://127.0.0.1:8080" in done.output, done.output
