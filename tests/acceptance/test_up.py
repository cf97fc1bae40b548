"""`parshall up` as a user meets it: what it prints, what one pastes, Ctrl-C, kill -9, and every sentence when it cannot start."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from ingest.auth import hash_key
from tests import services
from tests.acceptance.up import ENVIRONMENT, PARSHALL, ROOT, Up, now, run, runs


def refused(*arguments: str) -> tuple[int, str]:
    """Exit code and the one sentence."""
    finished = run("up", *arguments)
    assert finished.stdout == ""
    assert "Traceback" not in finished.stderr
    return finished.returncode, finished.stderr.strip()


def curls(welcome: str) -> list[str]:
    return re.findall(r"^  (curl .*?)\n(?=\n|  curl)", welcome, re.MULTILINE | re.DOTALL)


def test_a_first_hour(starts: list[Up], data: Path, port: int) -> None:
    up = Up(data, port)
    starts.append(up)
    event, usage, charges, ledger = curls(up.welcome)
    for _ in range(2):  # as it stands, as often as one likes
        assert json.loads(up.paste(event))["accepted"] == 1
    up.until_rated(2)
    assert sum(int(row["value"]) for row in json.loads(up.paste(usage))["data"]) == 2  # an hour may end between the two
    assert json.loads(up.paste(charges))["total"] == "0.02"
    told = json.loads(up.paste(ledger))["tenants"]["demo"]
    assert told == {
        "received": 2, "accepted": 2, "duplicate": 0, "rejected": 0, "unanswered": 0, "flushed": 2, "buffered": 0, "rated": 2
    }  # fmt: skip

    assert up.run("flush", "show") == "every 1s\n"
    assert "every 5s" in up.run("flush", "set", "--interval", "5s")
    at = now()
    assert up.send(["a", "b", "a"], at)["duplicate"] == 1
    assert up.run("flush", "now") == "flushed\n"
    assert up.until_rated(4)["duplicate"] == 1
    assert "every 1h" in up.run("flush", "set", "--interval", "1h")
    up.send(["c"], at)
    assert up.interrupt() == 0

    again = Up(data, port)
    starts.append(again)
    assert again.run("flush", "show") == "every 1h\n"
    assert again.send(["a", "b", "c"], at)["duplicate"] == 3
    assert again.until_rated(5)["buffered"] == 0  # `c` was flushed by the stop
    assert again.usage("egress_bytes", "s") == ["9"]
    with urlopen(f"{again.url}/metrics", timeout=30) as metrics:
        assert b'parshall_flush_interval_seconds{worker="0"} 3600.0' in metrics.read()
    again.process.send_signal(signal.SIGTERM)
    assert again.process.wait(60) == 0


def typed(welcome: str) -> tuple[str, str]:
    """What it suggests to type: how to send files, how to see the interval."""
    found = re.search(r"^Next: python -m (parshall send.*?) {4}python -m (parshall flush show.*?) {4}", welcome, re.MULTILINE)
    assert found is not None, welcome
    return tuple(f"{shlex.quote(sys.executable)} -m {words}" for words in found.groups())  # type: ignore[return-value]


def an_event(folder: Path) -> Path:
    event = {
        "specversion": "1.0",
        "type": "http.request",
        "source": "t",
        "id": "a",
        "time": now(),
        "subject": "s",
        "data": {"region": "eu"},
    }
    event["data"] |= {"zone": "a", "bytes": 3}  # type: ignore[operator]
    file = folder / "a file"
    file.write_text(json.dumps(event) + "\n")
    return file


@pytest.mark.parametrize(
    ("environment", "options"),
    [({}, []), ({"PARSHALL_KEY": "of another service", "PARSHALL_URL": "http://127.0.0.1:1"}, ["--admin-listen", "127.0.0.1:0"])],
)
def test_what_it_suggests_works_at_another_address(
    starts: list[Up], data: Path, port: int, environment: dict[str, str], options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")
    for name, value in {"PYTHONPATH": str(ROOT), **environment}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setitem(ENVIRONMENT, name, value)
    starts.append(Up(data, port, *options))
    send, show = typed(starts[0].welcome)
    assert starts[0].paste(show) == "every 1s\n"
    assert "all new" in starts[0].paste(send.replace("FILE…", shlex.quote(str(an_event(data.parent)))))
    if options:
        (admin,) = re.findall(r"Metrics and admin API at (\S+)", starts[0].welcome)
        assert "parshall_writer_info" in starts[0].paste(f"curl -s {admin}/metrics")
        assert "admin_listen" in starts[0].paste(f"curl -s {starts[0].url}/metrics")


def test_what_it_suggests_works_with_a_configuration(starts: list[Up], data: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PARSHALL_KEY", "k")
    config = data.parent / "parshall.toml"
    config.write_text(with_a_key("acme").replace('"requests"', '"calls"'))
    starts.append(Up(data, port, "--config", str(config)))
    up = starts[0]
    assert "export PARSHALL_KEY=" in up.welcome and "demo" not in up.welcome
    usage, charges, ledger = curls(up.welcome)
    assert json.loads(up.paste(usage))["data"] == []  # before there is any, too
    send, show = typed(up.welcome)
    assert up.paste(show) == "every 1s\n"
    assert "all new" in up.paste(send.replace("FILE…", shlex.quote(str(an_event(data.parent)))))
    while json.loads(up.paste(ledger))["tenants"]["acme"]["rated"] != 1:
        time.sleep(0.05)
    assert json.loads(up.paste(usage))["data"][0]["value"] == "1"
    assert [line["meter"] for line in json.loads(up.paste(charges))["subjects"][0]["lines"]] == ["calls", "egress_bytes"]


def test_at_the_end_all_is_flushed_and_rated(starts: list[Up], data: Path, port: int, postgres: services.Postgres, database: str) -> None:
    up = Up(data, port, "--postgres", database)
    starts.append(up)
    up.run("flush", "set", "--interval", "1h")
    assert up.send(["a", "b", "c"], now())["accepted"] == 3
    assert up.interrupt() == 0
    name = database.partition("@/")[2].partition("?")[0]
    assert postgres.sql("SELECT sum(events) FROM tallies WHERE verdict = 'accepted'", name) == "3\n"


def test_kill_of_the_whole_tree_twice_in_a_row(starts: list[Up], data: Path, port: int) -> None:
    at = now()
    for round_ in range(3):
        up = Up(data, port)
        starts.append(up)
        for before in range(round_):
            assert up.send([f"{before}-{n}" for n in range(50)], at)["duplicate"] == 50
        up.run("flush", "now")
        assert up.until_rated(50 * round_)["flushed"] == 50 * round_
        up.run("flush", "set", "--interval", "1h")  # nothing but the journal has the next ones
        assert up.send([f"{round_}-{n}" for n in range(50)], at)["accepted"] == 50
        assert up.ask("/v1/ledger")["tenants"]["demo"]["buffered"] == 50
        up.kill_all()
    up = Up(data, port)
    starts.append(up)
    up.run("flush", "now")
    up.until_rated(150)
    assert up.usage("requests", "s") == ["150"]


def test_when_the_first_process_alone_is_killed_the_next_start_waits_for_the_others(starts: list[Up], data: Path, port: int) -> None:
    up = Up(data, port)
    starts.append(up)
    at = now()
    up.send(["a"], at)
    others = up.descendants()
    worker = up.child("parshall.worker")
    os.kill(worker, signal.SIGSTOP)  # it takes its time
    up.process.kill()
    up.process.wait()
    told = subprocess.Popen(["bash", "-c", f"until grep -q 'still in use; waiting' {up.log}; do sleep 0.05; done; kill -CONT {worker}"])
    try:
        again = Up(data, port)
        starts.append(again)
        assert told.wait(10) == 0
    finally:
        told.kill()
        told.wait()
        if runs(worker):
            os.kill(worker, signal.SIGKILL)
    assert not any(map(runs, others))
    assert again.send(["a"], at)["duplicate"] == 1
    again.until_rated(1)


@pytest.mark.parametrize("part", ["parshall.worker", "parshall.rater_process", "bin/postgres"])
def test_a_part_that_is_killed_comes_back(starts: list[Up], data: Path, port: int, part: str) -> None:
    up = Up(data, port)
    starts.append(up)
    at = now()
    up.send(["a"], at)
    os.kill(up.child(part), signal.SIGKILL)
    finished = None
    while finished is None:
        try:
            finished = up.send(["a", "b"], at)
        except OSError:
            time.sleep(0.05)
    assert (finished["accepted"], finished["duplicate"]) == (1, 1)
    up.until_rated(2)
    assert "started again" in up.log.read_text()
    assert up.interrupt() == 0


def test_a_second_interrupt_hurries_and_nothing_is_lost(starts: list[Up], data: Path, port: int) -> None:
    up = Up(data, port)
    starts.append(up)
    at = now()
    up.send(["a"], at)
    os.kill(up.child("parshall.worker"), signal.SIGSTOP)  # it cannot finish
    up.process.send_signal(signal.SIGINT)
    while "Stopping" not in up.log.read_text():
        time.sleep(0.02)
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    again = Up(data, port)
    starts.append(again)
    assert again.send(["a"], at)["duplicate"] == 1
    again.until_rated(1)


def test_workers_share_one_redis_and_one_flush_interval(starts: list[Up], data: Path, port: int, redis: services.Redis) -> None:
    up = Up(data, port, "--redis", redis.url, "--workers", "2")
    starts.append(up)
    at = now()
    for _ in range(20):  # each on a connection of its own: both workers get some
        up.send(["a", "b"], at)
    assert up.run("flush", "set", "--interval", "2s").startswith("every 2s")
    up.run("flush", "now")
    ledger = up.until_rated(2)
    assert (ledger["received"], ledger["accepted"], ledger["duplicate"]) == (40, 2, 38)
    with urlopen(f"{up.url}/metrics", timeout=30) as metrics:
        told = metrics.read().decode()
    for worker in "01":
        assert f'parshall_flush_interval_seconds{{worker="{worker}"}} 2.0' in told
        received = re.search(rf'parshall_events_received_total{{tenant="demo",worker="{worker}"}} (\d+)', told)
        assert received is not None and int(received[1]) > 0
    assert up.interrupt() == 0
    code, sentence = refused("--data", str(data), "--listen", f"127.0.0.1:{port}", "--redis", redis.url)
    assert (code, "journals of 2 workers" in sentence) == (4, True)


def test_a_redis_that_begins_to_evict_is_refused_until_it_is_mended(starts: list[Up], data: Path, port: int, redis: services.Redis) -> None:
    up = Up(data, port, "--redis", redis.url)
    starts.append(up)
    at = now()
    assert up.send(["a", "b"], at)["accepted"] == 2
    redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    redis.ask("CONFIG", "SET", "maxmemory", "1")
    told = readiness(up, ready=False)
    assert "set maxmemory-policy to noeviction; if it has evicted keys by then, all claims are made again" in told
    with pytest.raises(HTTPError) as error:
        up.send(["a", "b"], at)
    with error.value as answer:
        assert (answer.code, int(answer.headers["Retry-After"]) > 0) == (503, True)
    redis.ask("CONFIG", "SET", "maxmemory", "0")
    redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    readiness(up, ready=True)
    assert up.send(["a", "b", "c"], at)["duplicate"] == 2


def readiness(up: Up, *, ready: bool) -> str:
    """What /readyz says once it is that."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urlopen(f"{up.url}/readyz", timeout=30) as answer:
                is_ready, told = True, answer.read().decode()
        except HTTPError as error:
            with error:
                assert error.code == 503
                is_ready, told = False, error.read().decode()
        if is_ready is ready and (ready or "maxmemory-policy" in told):
            return told
        assert time.monotonic() < deadline, told
        time.sleep(0.05)


# ---- without its journal


def test_without_its_journal_it_says_for_what_it_waits_and_what_is_left(starts: list[Up], data: Path, port: int) -> None:
    """Whether it may go on nobody can tell: the claims were in its process, and made again from the journal."""
    first = Up(data, port)
    starts.append(first)
    first.kill_all()
    (gone,) = json.loads(run("writer", "list", "--json", "--data", str(data)).stdout)
    shutil.rmtree(data / "writers" / "0")
    log = data.parent / "waiting"
    with log.open("wb") as file:
        command = [*PARSHALL, "up", "--listen", f"127.0.0.1:{port}", "--data", str(data)]
        process = subprocess.Popen(command, env=ENVIRONMENT, cwd="/", stdout=subprocess.PIPE, stderr=file)
    try:
        while "still waiting" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    (told,) = [json.loads(line) for line in log.read_text().splitlines() if "still waiting" in line]
    assert told["child"] == "worker-0" and "waiting for 1 of 2 writers" in told["reasons"]
    lost = run("writer", "lost", gone["writer"], "--data", str(data), "--i-accept-loss")
    assert lost.returncode == 2 and "that data folder takes no events any more" in lost.stderr


def test_usage_whose_log_is_gone_is_not_counted_on(starts: list[Up], data: Path, port: int) -> None:
    """It would begin as a new one does, and what is sent again would be added to what PostgreSQL has."""
    first = Up(data, port)
    starts.append(first)
    assert first.send(["a"], now())["accepted"] == 1
    assert first.interrupt() == 0
    for name in ("writers", "log"):
        shutil.rmtree(data / name)
    code, sentence = refused("--data", str(data), "--listen", f"127.0.0.1:{port}")
    assert code == 4 and f"{data}/log, is gone" in sentence and "--data" in sentence
    assert not (data / "log").exists(), "or the next start would find it"


# ---- when it cannot start


def test_a_port_that_is_taken(data: Path, port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        code, sentence = refused("--listen", f"127.0.0.1:{port}", "--data", str(data))
        admin_code, admin_sentence = refused("--listen", "127.0.0.1:0", "--admin-listen", f"127.0.0.1:{port}", "--data", str(data))
    assert (admin_code, admin_sentence) == (3, sentence.replace("--listen", "--admin-listen"))
    assert code == 3
    assert sentence.startswith(f"Port {port} on 127.0.0.1 is in use by another program")
    assert f"--listen 127.0.0.1:{port + 1}" in sentence
    assert "\n" not in sentence
    assert not (data / "postgres").exists()


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:secret@127.0.0.1:1/d", "postgresql://u:secret@nowhere.invalid/d", "postgresql://u:secret@/d?host=/nowhere"]
)
def test_a_postgresql_that_is_away(data: Path, port: int, dsn: str) -> None:
    code, said = refused("--listen", f"127.0.0.1:{port}", "--data", str(data), "--postgres", dsn)
    assert code == 3 and "defect" not in said and "secret" not in said
    assert said.splitlines()[-1].startswith("PostgreSQL cannot be used: ") and said.endswith(
        "postgres.dsn (or --postgres) says which one it is."
    )


def test_a_rater_without_its_postgresql_or_its_database(database: str) -> None:
    nowhere, nobody = database.replace("/test", "/no_such_database_as_test"), database.replace("parshall@", "nobody@")
    for dsn, why in (
        ("postgresql://u@127.0.0.1:1/d", "ConnectionRefusedError"),
        (nowhere, 'InvalidCatalogNameError: database "no_such_database_as_test'),
        (nobody, 'InvalidAuthorizationSpecificationError: role "nobody" does not exist'),
    ):
        finished = run("rate", "--kafka", "127.0.0.1:1", "--postgres", dsn, "--listen", "127.0.0.1:0")
        assert finished.returncode == 3 and finished.stderr.startswith(f"PostgreSQL cannot be used: {why}"), finished.stderr
        assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_a_limit_of_open_files_that_is_too_low(data: Path) -> None:
    command = f"ulimit -n 255; exec {shlex.join([*PARSHALL, 'up', '--data', str(data)])}"
    ended = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, cwd="/", capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    sentence = "This process may have 255 files open, and `parshall up` needs 256: raise the limit (`ulimit -n`)."
    assert ended.stderr.splitlines() == [sentence]
    assert not data.exists()


def test_a_soft_limit_of_open_files_is_raised(starts: list[Up], data: Path, port: int) -> None:
    starts.append(Up(data, port, below="ulimit -Sn 20"))
    assert starts[-1].interrupt() == 0


def test_a_second_one_on_the_same_data(starts: list[Up], data: Path, port: int) -> None:
    up = Up(data, port)
    starts.append(up)
    code, said = refused("--data", str(data), "--listen", "127.0.0.1:0")
    assert code == 3
    waiting, sentence = said.splitlines()
    assert "still in use" in waiting
    assert f"in use by a running Parshall (process {up.process.pid}, listening on 127.0.0.1:{port})" in sentence
    assert "--data" in sentence
    code, sentence = refused("--data", str(data.parent / "other"), "--listen", f"127.0.0.1:{port}")  # they could share the port
    assert (code, sentence.startswith(f"Port {port} on 127.0.0.1 is in use")) == (3, True)
    up.send(["a"], now())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--listen", "0.0.0.0:8080"], ["demo-key", "--config", "127.0.0.1"]),
        (["--listen", "127.0.0.1:0", "--admin-listen", "0.0.0.0:8081"], ["demo-key", "0.0.0.0:8081", "--config"]),
        (["--workers", "2"], ["2 workers must share their claims", "--redis"]),
        (["--admin-listen", "nowhere"], ["--admin-listen: admin_listen: 'nowhere' cannot be used", "127.0.0.1:8080"]),
        (["--listen", "nowhere"], ["--listen: listen: 'nowhere' cannot be used", "127.0.0.1:8080"]),
        (["--config", "/nothing.toml"], ["/nothing.toml: cannot be read: No such file"]),
        (["--data", "/proc/nothing"], ["/proc/nothing cannot be made or used", "--data"]),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(data: Path, arguments: list[str], words: list[str]) -> None:
    code, sentence = refused("--data", str(data), *arguments)
    assert code == 2
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence
    assert not (data / "postgres").exists()


def test_root_on_the_folder_of_another_user(starts: list[Up], data: Path, port: int) -> None:
    if os.geteuid() != 0:
        return  # nobody else could
    starts.append(Up(data, port))
    assert starts[0].interrupt() == 0
    for path in (data, *data.rglob("*")):
        os.chown(path, 1000, 1000, follow_symlinks=False)
    before = {str(path): path.lstat().st_ctime_ns for path in (data / "lock", *data.rglob("*"))}
    for role in (
        ["up"],
        ["ingest", "--config", str(data.parent / "parshall.toml"), "--redis", "redis://127.0.0.1:1", "--kafka", "127.0.0.1:1"],
    ):
        (data.parent / "parshall.toml").write_text(with_a_key("demo"))
        finished = run(*role, "--data", str(data), "--listen", f"127.0.0.1:{port}")
        assert (finished.returncode, finished.stdout) == (2, "")
        assert finished.stderr.startswith(f"The data folder {data} belongs to uid 1000, ") and len(finished.stderr.splitlines()) == 1
    assert {str(path): path.lstat().st_ctime_ns for path in (data / "lock", *data.rglob("*"))} == before


def with_a_key(tenant: str) -> str:
    """The demo's configuration under another name, with the key `k`."""
    demo = (ROOT / "parshall" / "demo.toml").read_text().replace('"demo"', f'"{tenant}"')
    return f'{demo}\n[[keys]]\ntenant = "{tenant}"\nhash = "{hash_key("k")}"\nscopes = ["ingest", "read", "admin"]\n'


def test_an_interrupt_while_it_starts(data: Path, port: int) -> None:
    command = [*PARSHALL, "up", "--listen", f"127.0.0.1:{port}", "--data", str(data)]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd="/", text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not (data / "postgres/unfinished").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate(timeout=60)
    assert said == ""
    assert "Traceback" not in complaints
    assert process.returncode == 0
