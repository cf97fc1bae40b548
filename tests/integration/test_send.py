"""`parshall send` as a user runs it, against a real HTTP server that misbehaves."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp import web

ROOT = Path(__file__).parents[2]


class Service:
    """Counts as Parshall does: an id once. `mischief` is done to requests, in order, before they are served properly."""

    def __init__(self) -> None:
        self.counted: set[str] = set()
        self.bodies: list[bytes] = []
        self.mischief: list[Callable[[web.BaseRequest, bytes], Awaitable[web.StreamResponse | None]]] = []
        self.url = ""
        self.most_events = 10_000
        self.hold: asyncio.Event | None = None
        self.hold_after = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        self.bodies.append(body)
        if request.headers["Authorization"] != "Bearer demo-key":
            return problem(401, "unknown key")
        if self.hold is not None and len(self.bodies) > self.hold_after:
            await self.hold.wait()
        if self.mischief and (answer := await self.mischief.pop(0)(request, body)) is not None:
            return answer
        return self.serve(body)

    def serve(self, body: bytes) -> web.Response:
        events = json.loads(body)
        if len(events) > self.most_events:
            return problem(413, "too many events")
        errors = [
            {"index": i, "id": e["id"], "code": "too_late", "detail": "too old"} for i, e in enumerate(events) if e["id"].startswith("bad")
        ]
        good = [e["id"] for e in events if not e["id"].startswith("bad")]
        new = set(good) - self.counted
        self.counted |= new
        answer = {
            "received": len(events),
            "accepted": len(new),
            "duplicate": len(good) - len(new),
            "rejected": len(errors),
            "durability": "journaled",
            "errors": errors,
        }
        return web.json_response(answer, status=200 if not errors else 422 if not good else 207)


def problem(status: int, detail: str, **headers: str) -> web.Response:
    return web.json_response({"title": "x", "detail": detail}, status=status, headers=headers, content_type="application/problem+json")


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    runner = web.ServerRunner(web.Server(service.handle), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    service.url = f"http://{host}:{port}"
    yield service
    await runner.cleanup()


async def start(*arguments: str, stdin: int | None = asyncio.subprocess.DEVNULL, cwd: Path = ROOT) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "parshall", "send", *arguments, stdin=stdin, stdout=pipe, stderr=pipe, cwd=cwd, env=environment
    )


async def send(*arguments: str, stdin: bytes | None = None) -> tuple[int | None, str, str]:
    process = await start(*arguments, stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE)
    out, err = await process.communicate(stdin)
    return process.returncode, out.decode(), err.decode()


def write(path: Path, ids: list[str]) -> str:
    path.write_text("".join(json.dumps({"id": id_, "type": "http.request"}) + "\n" for id_ in ids))
    return str(path)


def ids(number: int) -> list[str]:
    return [f"e{n}" for n in range(number)]


async def test_all_lines_arrive_in_batches(service: Service, tmp_path: Path) -> None:
    code, out, err = await send(write(tmp_path / "e.ndjson", ids(250)), "--url", service.url, "--batch", "100")
    assert (code, err) == (0, "")
    assert service.counted == set(ids(250))
    assert sorted(len(json.loads(body)) for body in service.bodies) == [50, 100, 100]
    assert "counted" in out


async def test_a_second_time_everything_was_already_counted(service: Service, tmp_path: Path) -> None:
    file = write(tmp_path / "e.ndjson", ids(30))
    await send(file, "--url", service.url)
    code, out, _ = await send(file, "--url", service.url, "--json")
    assert code == 0
    assert (json.loads(out)["accepted"], json.loads(out)["duplicate"], json.loads(out)["counted"]) == (0, 30, 30)


async def test_the_same_bytes_again_until_they_are_answered(service: Service, tmp_path: Path) -> None:
    async def drop_before(request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
        assert request.transport is not None
        request.transport.abort()
        return None

    async def drop_after(request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
        service.serve(body)
        assert request.transport is not None
        request.transport.abort()
        return None

    async def unavailable(request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
        return problem(503, "the claims are not ready", **{"Retry-After": "1"})

    async def overloaded(request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
        return problem(429, "too many events are waiting")

    service.mischief = [drop_before, drop_after, unavailable, overloaded]
    code, out, err = await send(write(tmp_path / "e.ndjson", ids(10)), "--url", service.url, "--json", "--parallel", "1")
    assert code == 0
    assert len(set(service.bodies)) == 1
    assert len(service.bodies) == 5
    assert json.loads(out)["retries"] == 4
    assert json.loads(out)["counted"] == 10
    assert "the claims are not ready" in err


async def test_rejected_events_are_written_with_their_reasons(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "e.ndjson"
    write(file, ["a", "bad1", "b", "bad2"])
    file.write_text(file.read_text() + "not json\n")
    code, out, _ = await send(str(file), "--url", service.url, "--batch", "3")
    assert code == 1
    rejected = [json.loads(line) for line in (tmp_path / "e.ndjson.rejected.ndjson").read_text().splitlines()]
    assert {(r["line"], r["code"]) for r in rejected} == {(2, "too_late"), (4, "too_late"), (5, "not_json")}
    assert next(r for r in rejected if r["line"] == 2)["event"]["id"] == "bad1"
    assert "see" in out
    write(file, ["a", "b"])
    code, _, _ = await send(str(file), "--url", service.url)
    assert code == 0
    assert not (tmp_path / "e.ndjson.rejected.ndjson").exists()


async def test_rejects_of_several_files_may_go_to_one(service: Service, tmp_path: Path) -> None:
    files = [write(tmp_path / "1", ["bad1"]), write(tmp_path / "2", ["bad2", "ok"])]
    code, _, _ = await send(*files, "--url", service.url, "--rejects", str(tmp_path / "all"))
    assert code == 1
    assert {json.loads(line)["file"] for line in (tmp_path / "all").read_text().splitlines()} == set(files)


async def test_a_request_that_is_too_large_is_cut_in_half(service: Service, tmp_path: Path) -> None:
    service.most_events = 3
    code, _, _ = await send(write(tmp_path / "e.ndjson", ids(10)), "--url", service.url)
    assert code == 0
    assert service.counted == set(ids(10))


async def test_standard_input(service: Service) -> None:
    code, out, _ = await send("-", "--url", service.url, "--json", stdin=b'{"id":"a"}\n{"id":"b"}\n')
    assert code == 0
    assert json.loads(out)["accepted"] == 2


async def test_what_comes_before_a_damaged_place_is_sent_and_counted(service: Service, tmp_path: Path) -> None:
    """Also the requests that wait or are under way when it is met."""

    async def slowly(request: web.BaseRequest, body: bytes) -> None:
        await asyncio.sleep(0.1)

    service.mischief = [slowly] * 4
    packed = bytearray(gzip.compress("".join(json.dumps({"id": id_}) + "\n" for id_ in ids(3_050)).encode()))
    packed[-8] ^= 1  # of the sum at the end
    (tmp_path / "e.ndjson.gz").write_bytes(packed)
    code, out, err = await send(str(tmp_path / "e.ndjson.gz"), "--url", service.url, "--batch", "100", "--json")
    assert code == 2 and "is damaged (CRC check failed" in err and "the lines that could be read before it showed were sent" in err
    assert service.counted == set(ids(3_050))
    assert (json.loads(out)["counted"], json.loads(out)["complete"]) == (3_050, False)


async def test_rejects_of_an_earlier_pipe_are_kept(service: Service, tmp_path: Path) -> None:
    """What comes by the next one is something else."""
    rejects = tmp_path / "stdin.rejected.ndjson"
    for text, code in ((b'{"id":"bad"}\n', 1), (b'{"id":"good"}\n', 0)):
        process = await start("-", "--url", service.url, stdin=asyncio.subprocess.PIPE, cwd=tmp_path)
        await process.communicate(text)
        assert process.returncode == code and json.loads(rejects.read_text())["event"]["id"] == "bad"


async def test_interrupted_and_started_again_the_totals_are_the_same(service: Service, tmp_path: Path) -> None:
    file = write(tmp_path / "e.ndjson", [*ids(50), "bad"])
    service.hold, service.hold_after = asyncio.Event(), 3
    process = await start(file, "--url", service.url, "--batch", "10", "--parallel", "2", "--json")
    while len(service.bodies) < 4:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    service.hold.set()
    assert process.returncode == 130
    assert b"again to go on" in err
    assert b"Traceback" not in err
    assert json.loads(out)["complete"] is False
    code, text, _ = await send(file, "--url", service.url, "--batch", "10", "--json")
    summary = json.loads(text)
    assert code == 1
    assert (summary["counted"], summary["rejected"]) == (50, 1)
    assert summary["duplicate"] >= 30
    assert service.counted == set(ids(50))


async def test_an_interrupt_while_standard_input_is_silent(service: Service) -> None:
    process = await start("-", "--url", service.url, "--batch", "1", stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b'{"id":"a"}\n')
    while not service.counted:
        await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    await process.wait()
    process.stdin.close()
    assert process.returncode == 130


@pytest.mark.parametrize("packed", [False, True])
async def test_lines_of_a_slow_pipe_are_sent_while_it_is_silent(service: Service, packed: bool) -> None:
    service.hold, service.hold_after = asyncio.Event(), 2
    process = await start("-", "--url", service.url, "--parallel", "1", stdin=asyncio.subprocess.PIPE)
    assert process.stdin is not None
    packer = zlib.compressobj(wbits=31)
    for number, id_ in enumerate("abc", 1):
        line = json.dumps({"id": id_}).encode() + b"\n"
        process.stdin.write(packer.compress(line) + packer.flush(zlib.Z_SYNC_FLUSH) if packed else line)
        while len(service.bodies) < number:
            await asyncio.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    said = (await process.stderr.read()).decode()
    assert "whether up to 1 of the last lines count" in said, said  # the one that is held; nothing else that was read is missing
    assert await process.wait() == 130
    assert service.counted == set("ab")
    process.stdin.close()


async def test_what_was_read_of_a_pipe_and_is_not_answered_is_told(service: Service) -> None:
    service.hold = asyncio.Event()
    service.hold_after = 1
    for signalled, more in ((True, []), (False, ["--patience", "0"])):
        service.bodies, service.mischief = [], []
        process = await start("-", "--url", service.url, "--batch", "2", "--parallel", "1", *more, stdin=asyncio.subprocess.PIPE)
        assert process.stdin is not None and process.stderr is not None
        if not signalled:

            async def fails(request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
                return web.Response(status=503) if len(service.bodies) > 1 else None

            service.hold, service.mischief = None, [fails, fails]
        process.stdin.write(b"".join(b'{"id":"%d"}\n' % n for n in range(9)) + b'{"id"')
        while len(service.bodies) < 2:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # for what it reads ahead
        if signalled:
            process.send_signal(signal.SIGINT)
        said = (await process.stderr.read()).decode()
        assert await process.wait() == (130 if signalled else 3)
        told = "Of what was read from standard input it is not known whether up to 7 of the last lines count: send them again"
        assert f"{told} from where they came, nothing is counted twice.\n" in said and "same command again" not in said, said
        process.stdin.close()


@pytest.mark.parametrize(
    ("arguments", "sentence", "code"),
    [
        (["--key", "wrong"], "does not know this key", 2),
        (["--url", "http://127.0.0.1:9", "--patience", "0"], "Gave up after 0 s at http://127.0.0.1:9", 3),
        (["--url", "nonsense"], "is not a URL", 2),
        (["--url", "http://user:secret@127.0.0.1:9"], "The URL has a user or a password in it", 2),
        (["--key", "k\r"], "has a character in it that no key has", 2),
        (["--key", "k\udcff"], "has a character in it that no key has", 2),
    ],
)
async def test_what_cannot_work_is_told_in_a_sentence(
    service: Service, tmp_path: Path, arguments: list[str], sentence: str, code: int
) -> None:
    file = write(tmp_path / "e.ndjson", ["a"])
    found, _, err = await send(file, "--url", service.url, *arguments)
    assert found == code
    assert sentence in err
    assert not any(word in err for word in ("Traceback", "defect", "secret"))


async def test_what_answers_is_not_parshall(service: Service, tmp_path: Path) -> None:
    file = write(tmp_path / "e.ndjson", ["a"])
    no_text = b'{"received":1,"accepted":0,"duplicate":0,"rejected":1,"errors":[{"index":0,"code":"\xff"}]}'
    for answer in (b"<html>welcome</html>", no_text, b'{"x":' + b"[" * 100_000):

        async def page(request: web.BaseRequest, body: bytes, answer: bytes = answer) -> web.StreamResponse | None:
            return web.Response(body=answer)

        service.mischief = [page]
        code, _, err = await send(file, "--url", service.url)
        assert code == 2
        assert "does not answer as Parshall does" in err


async def test_an_answer_without_an_end(service: Service, tmp_path: Path) -> None:
    async def endless(request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
        answer = web.StreamResponse(status=503)
        answer.enable_compression(web.ContentCoding.gzip)
        await answer.prepare(request)
        while True:
            await answer.write(b" " * (1 << 20))

    service.mischief = [endless]
    code, _, err = await send(write(tmp_path / "e.ndjson", ["a"]), "--url", service.url)
    assert (code, err) == (2, f"{service.url}/v1/events does not answer as Parshall does: the answer does not end.\n")


async def test_the_key_is_not_taken_to_where_an_answer_sends_on(service: Service, tmp_path: Path) -> None:
    async def elsewhere(request: web.BaseRequest, body: bytes) -> web.StreamResponse | None:
        return web.Response(status=307, headers={"Location": f"{service.url}/elsewhere"})

    service.mischief = [elsewhere]
    code, _, err = await send(write(tmp_path / "e.ndjson", ["a"]), "--url", service.url)
    assert (code, len(service.bodies)) == (2, 1)
    assert err == f"{service.url} sends on to another address, and is not Parshall: give the address of Parshall with --url.\n"


@pytest.mark.parametrize("number", [1, 10_000])  # it shows at the end, or on the way
async def test_a_full_disk_for_what_is_rejected(service: Service, tmp_path: Path, number: int) -> None:
    service.most_events = 10_000
    file = write(tmp_path / "e.ndjson", [f"bad-{n}" for n in range(number)])
    code, out, err = await send(file, "--url", service.url, "--rejects", "/dev/full")
    assert code == 1 and out.startswith("events")
    assert err == "Cannot write rejected events to /dev/full: No space left on device; choose another place with --rejects.\n"


async def test_a_file_that_is_not_there(service: Service, tmp_path: Path) -> None:
    code, _, err = await send(str(tmp_path / "nothing"), "--url", service.url)
    assert code == 2
    assert "No such file" in err
