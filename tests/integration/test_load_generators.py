"""Locust and the cheap load generator send the same batches and get the same verdicts, from a real service; and Locust ends with 1 where a
server, which only pretends to count, answers something else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from bench import agreement

PROJECT = Path(__file__).resolve().parents[2]
Verdicts = dict[str, int]
Answer = Callable[[int, int], Verdicts | None]  # (good events, how often this body came before) -> None: 503


def test_the_two_load_generators_agree() -> None:
    assert agreement.main() == 0


def counted(good: int, before: int) -> Verdicts | None:
    return {"accepted": 0, "duplicate": good} if before else {"accepted": good, "duplicate": 0}


def refused(_good: int, _before: int) -> Verdicts | None:
    return None


def lost(good: int, before: int) -> Verdicts | None:
    return {"accepted": good - 1, "duplicate": 0}


def counted_twice(good: int, before: int) -> Verdicts | None:
    return {"accepted": good, "duplicate": 0}


def counted_twice_after_a_refusal(good: int, before: int) -> Verdicts | None:
    return None if before == 1 else counted_twice(good, before)


@pytest.mark.parametrize(
    ("answer", "code"), [(counted, 0), (refused, 1), (lost, 1), (counted_twice, 1), (counted_twice_after_a_refusal, 1)]
)
def test_locust_holds_a_server_to_what_was_sent(answer: Answer, code: int) -> None:
    with pretending(answer) as url:
        command = [
            sys.executable,
            "-m",
            "locust",
            "-f",
            "bench/locustfile.py",
            "--host",
            url,
            "--headless",
            "-u",
            "1",
            "-r",
            "1",
            "-t",
            "5s",
        ]
        settings = {"LOAD_BATCHES": "22", "LOAD_EVENTS": "10", "LOAD_SHAPE": "steady"}  # the twentieth is sent twice
        done = subprocess.run(command, cwd=PROJECT, env=os.environ | settings, capture_output=True, timeout=60)
    assert done.returncode == code, done.stdout.decode()[-1500:]


@contextmanager
def pretending(answer: Answer) -> Iterator[str]:
    before: dict[bytes, int] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            sent = json.loads(body)
            bad = sum(event["data"] == {"connections": "many"} for event in sent)
            verdicts = answer(len(sent) - bad, before.get(body, 0))
            before[body] = before.get(body, 0) + 1
            self.send_response(503 if verdicts is None else 207 if bad else 200)
            told = json.dumps({"received": len(sent), "rejected": bad} | (verdicts or {})).encode()
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
