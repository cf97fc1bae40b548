"""The configuration is read again while the service runs: a customer, a meter and a price come without a restart and without a refusal."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from buffer.counter_log import Registry
from buffer.counters import MeterDefinition
from buffer.kafka_cluster import KafkaCluster
from buffer.kafka_log import KafkaLog
from ingest.auth import hash_key
from tests import services
from tests.acceptance.edge import PROJECT, Api, Role, free_port, make_key, tree, wait_rated, write_config
from tests.acceptance.fleet import services_sections
from tests.acceptance.up import Up, run

CONNECTIONS = 40  # the kernel spreads them over the workers: all of them on one of two happens once in 2 ** 39
LOGINS = '\n[[meters]]\nname = "logins"\nevent_type = "user.login"\naggregation = "count"\n'
VIEWS = '\n[[meters]]\nname = "views"\nevent_type = "page.view"\naggregation = "count"\n'
BETA = '\n[[tenants]]\nname = "beta"\nnumber = 88\n'


class Service:
    """Two workers and a rater of one configuration, which a test changes."""

    def __init__(self, folder: Path, more: str) -> None:
        self.file = folder / "parshall.toml"
        self.keys = write_config(folder, now=datetime.now(UTC), deadline_ms=5000, more=more)
        self.admin = {name: f"http://127.0.0.1:{free_port()}" for name in ("ingest", "rate")}
        self.ingest = Role("ingest", ["ingest", "--config", str(self.file), "--workers", "2", *self._admin_listen("ingest")], folder)
        self.rate = Role("rate", ["rate", "--config", str(self.file), *self._admin_listen("rate")], folder)

    def _admin_listen(self, role: str) -> list[str]:
        return ["--admin-listen", self.admin[role].removeprefix("http://")]

    def change(self, old: str, new: str) -> None:
        text = self.file.read_text()
        assert old in text
        self.file.write_text(text.replace(old, new))

    def add(self, more: str) -> None:
        self.file.write_text(self.file.read_text() + more)

    def reload(self, role: Role) -> tuple[int, str]:
        """What `parshall reload` ends with, and says."""
        command = [sys.executable, "-m", "parshall", "reload", "--url", self.admin[role.name], "--key", self.keys["demo"]]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False, timeout=60)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    def workers(self) -> list[int]:
        children = [pid for pid in tree(self.ingest.pid) if pid != self.ingest.pid]
        assert len(children) == 2
        return children


def event(type_: str, id_: str, **data: object) -> dict[str, Any]:
    time_ = datetime.now(UTC).isoformat()
    return {"specversion": "1.0", "type": type_, "source": "reload", "id": id_, "time": time_, "subject": "s", "data": data}


async def send(url: str, key: str, *events: dict[str, Any]) -> tuple[int, Any]:
    """Over a connection of its own. Status 0: no answer."""
    try:
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{url}/v1/events", json=events, headers={"Authorization": f"Bearer {key}"}) as answer,
        ):
            return answer.status, await answer.json(content_type=None)
    except aiohttp.ClientError as error:
        return 0, str(error)


async def send_over_many(service: Service, key: str, name: str) -> Counter[int]:
    """A login over each of many connections; how often which status came."""
    answers = [await send(service.ingest.url, key, event("user.login", f"{name}-{n}")) for n in range(CONNECTIONS)]
    return Counter(status for status, _ in answers)


async def keep_sending(service: Service, statuses: Counter[int], stop: asyncio.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        sample = event("db.sample", f"steady-{number}", connections=number)
        status, _ = await send(service.ingest.url, service.keys["demo"], sample)
        statuses[status] += 1


async def registry_with(address: str, *meters: MeterDefinition) -> Registry:
    """The registry of writers, once somebody else counts these."""
    log = KafkaLog(KafkaCluster(address, accept_unsafe=True))
    await log.open()
    try:
        await log.define(meters)
        return await log.registry()
    finally:
        await log.close()


async def all_serve(service: Service, patience_s: float = 60) -> None:
    """The port alone does not tell: while one worker is away the other answers every connection."""
    until = time.monotonic() + patience_s
    for socket in (service.file.parent / "data" / "run" / f"worker-{number}.sock" for number in range(2)):
        while await _says_ready(socket) != 200:
            assert time.monotonic() < until, service.ingest.log_end()
            await asyncio.sleep(0.05)


async def _says_ready(socket: Path) -> int:
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(socket))) as session,
            session.get("http://worker/readyz") as answer,
        ):
            return answer.status
    except (aiohttp.ClientError, OSError):
        return 0


async def until_all_refuse(service: Service, key: str, patience_s: float = 30) -> None:
    until = time.monotonic() + patience_s
    while (statuses := await send_over_many(service, key, "late")) != {401: CONNECTIONS}:
        assert time.monotonic() < until, f"{statuses}\n{service.ingest.log_end()}"


@pytest.fixture
def service(tmp_path: Path, own_kafka: services.Kafka, redis: services.Redis, database: str) -> Iterator[Service]:
    made = Service(tmp_path, services_sections(redis=redis.url, kafka=own_kafka.address, postgres=database))
    try:
        made.rate.start()
        made.ingest.start()
        yield made
    finally:
        for role in (made.ingest, made.rate):
            role.kill()


async def test_a_customer_comes_while_others_send(service: Service, own_kafka: services.Kafka) -> None:
    await service.ingest.wait_ready()
    beta, section = make_key("beta")
    steady: Counter[int] = Counter()
    stop = asyncio.Event()
    sending = asyncio.create_task(keep_sending(service, steady, stop))

    assert await send_over_many(service, beta, "early") == {401: CONNECTIONS}
    service.add(BETA + section + LOGINS)
    service.change("deadline_ms = 5000", "deadline_ms = 6000")
    code, said = await asyncio.to_thread(service.reload, service.ingest)
    assert (code, said) == (0, "in force now: tenants, keys, meters\nafter a restart: ingest.deadline_ms\n")
    assert await send_over_many(service, beta, "first") == {200: CONNECTIONS}, "in all workers from the answer on"
    assert (await send(service.ingest.url, service.keys["demo"], event("user.login", "of demo")))[0] == 200

    registry = await registry_with(own_kafka.address, MeterDefinition("views", "", "sum", 0, 3600, ()))
    assert registry.meters["logins"].aggregation == "count"

    good = service.file.read_text()
    tokens = 'name = "tokens"\nevent_type = "llm.completion"\naggregation = '
    for bad, why in (
        (good + "\n[[meters]]\n", r"parshall\.toml:\d+: meters\[8\]\.name: it is missing"),
        (good.replace(f'{tokens}"sum"', f'{tokens}"max"'), "'tokens' has aggregation 'max' in the catalogue and 'sum' in this journal"),
        (good + VIEWS, "'views' has aggregation 'count' in the catalogue and 'sum' for other writers"),
        (good.replace(BETA, BETA.replace("88", "89")), "'beta' has the number 88, which never changes"),
    ):
        service.file.write_text(bad)
        code, said = await asyncio.to_thread(service.reload, service.ingest)
        assert code == 1 and re.search(why, said), said
        assert await send_over_many(service, beta, f"after {why}") == {200: CONNECTIONS}
    stop.set()
    await sending
    assert steady.keys() == {200} and steady[200] > 50, steady

    for worker in service.workers():  # the file is a bad one by now: who starts again starts with what is in force
        os.kill(worker, signal.SIGKILL)
    await all_serve(service)
    assert await send_over_many(service, beta, "again") == {200: CONNECTIONS}

    service.file.write_text(good)
    code, said = await asyncio.to_thread(service.reload, service.rate)
    assert code == 0, said
    async with aiohttp.ClientSession() as session:
        await Api(session, service.admin["ingest"], service.keys["demo"]).flush_now()
        for role, series in ((service.ingest, "parshall_writer_info"), (service.rate, "parshall_rater_ready")):
            async with session.get(f"{service.admin[role.name]}/metrics") as told, session.get(f"{role.url}/metrics") as refused:
                assert series in await told.text() and refused.status == 404
        api = Api(session, service.rate.url, beta)
        await wait_rated({"beta": api}, {"beta": CONNECTIONS * 6})
        rows = (await api.get("/v1/usage", meter="logins", window="month"))["data"]
    assert [row["value"] for row in rows] == [str(CONNECTIONS * 6)]

    service.change(LOGINS, LOGINS + 'window = "15m"\n')  # by which its prices and their time zone would be judged
    why = "the meter 'logins' has window_s 900 in the catalogue and 3600 in the counters of that name"
    code, said = await asyncio.to_thread(service.reload, service.rate)
    assert code == 1 and why in said, said
    not_started = run("rate", "--config", str(service.file), "--listen", "127.0.0.1:0")
    assert not_started.returncode == 4 and why in not_started.stderr, not_started.stderr
    service.file.write_text(good)

    service.change(section, "")
    os.kill(service.ingest.pid, signal.SIGHUP)
    await until_all_refuse(service, beta)


# ---- `parshall up`


def up_config(folder: Path) -> Path:
    file = folder / "parshall.toml"
    key = f'\n[[keys]]\ntenant = "demo"\nhash = "{hash_key("demo-key")}"\nscopes = ["ingest", "read", "admin"]\n'
    file.write_text((PROJECT / "parshall" / "demo.toml").read_text() + key)
    return file


def send_gigabytes(up: Up, id_: str, gigabytes: int) -> None:
    sent = event("http.request", id_, region="eu", zone="a", bytes=gigabytes * 10**9)
    assert up.ask("/v1/events", json.dumps(sent).encode())["accepted"] == 1


def until_charged(up: Up, wanted: str) -> None:
    until = time.monotonic() + 60
    while (line := egress_line(up)) != wanted:
        assert time.monotonic() < until, f"{line}\n{up.log.read_text()}"
        time.sleep(0.1)


def egress_line(up: Up) -> str | None:
    lines = up.ask("/v1/charges?subject=s")["lines"]
    return next((line["amount"] for line in lines if line["meter"] == "egress_bytes"), None)


def test_a_price_follows_and_stays_when_the_rater_is_killed(starts: list[Up], data: Path, port: int) -> None:
    file = up_config(data.parent)
    up = Up(data, port, "--config", str(file))
    starts.append(up)
    send_gigabytes(up, "1", 100)
    until_charged(up, "9.00")

    old = file.read_text()
    file.write_text(old.replace('"0.09"', '"0.10"'))
    assert up.run("reload") == "in force now: price_books\n"
    until_charged(up, "10.00")

    file.write_text(old.replace('timezone = "UTC"', 'timezone = "Europe/Berlin"'))
    refused = run("reload", "--url", up.url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "the time zone of its price book cannot become Europe/Berlin; allowed: timezone = 'UTC'" in refused.stderr

    os.kill(up.child("parshall.rater_process"), signal.SIGKILL)  # the file has another price by now than what is in force
    send_gigabytes(up, "2", 100)
    until_charged(up, "20.00")
    os.kill(up.process.pid, signal.SIGHUP)
    time.sleep(1)
    assert up.process.poll() is None and egress_line(up) == "20.00"
    file.write_text(old)
    assert up.interrupt() == 0

    again = Up(data, port, "--config", str(file))  # a start reads the file
    starts.append(again)
    until_charged(again, "18.00")
    assert again.interrupt() == 0

    file.write_text(old.replace('"demo"', '"renamed"'))
    refused = run("up", "--config", str(file), "--data", str(data), "--listen", f"127.0.0.1:{port}")
    assert refused.returncode == 4 and "has been that of the tenant 'demo' here" in refused.stderr


def test_a_hangup_while_the_worker_is_away_is_heeded_when_it_is_back(starts: list[Up], data: Path, port: int) -> None:
    file = up_config(data.parent)
    old = file.read_text()
    file.write_text(f'{old}\n[[keys]]\ntenant = "demo"\nhash = "{hash_key("leaked-key")}"\nscopes = ["admin"]\n')
    up = Up(data, port, "--config", str(file))
    starts.append(up)
    leaked = ("flush", "show", "--url", up.url, "--key", "leaked-key")
    assert run(*leaked).returncode == 0
    os.kill(up.child("parshall.worker"), signal.SIGKILL)
    until_said(up, "a process ended and is started again")
    file.write_text(old)
    up.process.send_signal(signal.SIGHUP)
    until_said(up, "the configuration was read again")
    refused = run(*leaked)
    assert (refused.returncode, "does not know this key" in refused.stderr) == (1, True), refused.stderr
    assert up.log.read_text().count("the configuration was read again") == 1


def until_said(up: Up, what: str) -> None:
    until = time.monotonic() + 60
    while what not in up.log.read_text():
        assert time.monotonic() < until, up.log.read_text()
        time.sleep(0.02)


def test_at_a_terminal_a_hangup_ends_it_whatever_the_configuration(data: Path, port: int) -> None:
    master, slave = os.openpty()
    command = [sys.executable, "-m", "parshall", "up", "--config", str(up_config(data.parent)), "--data", str(data)]
    process = subprocess.Popen([*command, "--listen", f"127.0.0.1:{port}"], cwd=PROJECT, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    said = b""
    while b"Parshall is ready" not in said:
        said += os.read(master, 4096)
    os.close(master)  # nobody reads what it says from here on, and what it writes there fails
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0


def test_what_nohup_ignores_stays_ignored(data: Path, port: int) -> None:
    ignoring = partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)
    command = [sys.executable, "-m", "parshall", "up", "--data", str(data), "--listen", f"127.0.0.1:{port}"]
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, preexec_fn=ignoring, **quiet)  # type: ignore[call-overload]
    assert process.stdout is not None
    while b"Parshall is ready" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_without_a_file_there_is_nothing_to_read_again_and_a_hangup_ends_it(starts: list[Up], data: Path, port: int) -> None:
    up = Up(data, port)
    starts.append(up)
    refused = run("reload", "--url", up.url)
    assert refused.returncode == 1
    assert refused.stderr == f"{up.url} answered 422: There is no file to read again: this Parshall was started without --config.\n"
    up.process.send_signal(signal.SIGHUP)
    assert up.process.wait(60) == 0
