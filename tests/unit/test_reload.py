"""What follows a configuration that is read again, what waits, what is refused."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from buffer.disk import RealDisk
from ingest.sink import Unavailable
from parshall import peers
from parshall.errors import FAILED
from parshall.rater_reload import ReloadAlone
from parshall.reload import OF_ALL, OF_INGEST, LiveSettings, Origin, Refused, Reloaded, origin_of, together, with_kept
from parshall.reload_routes import tell_outcome
from parshall.settings import Settings, load_settings
from parshall.worker import why_stopped
from tests.lossy_disk import Inline

HASH = "ab" * 32
FILE = f"""
listen = "127.0.0.1:8080"
[ingest]
max_events = 100
[[tenants]]
name = "acme"
number = 7
[[keys]]
tenant = "acme"
hash = "{HASH}"
[[meters]]
name = "requests"
event_type = "http.request"
aggregation = "count"
[[price_books]]
tenant = "acme"
currency = "USD"
decimal_places = 2
timezone = "UTC"
[[price_books.versions]]
effective_from = 2020-01-01
[[price_books.versions.prices]]
meter = "requests"
model = "per_unit"
unit_price = "0.01"
"""
BETA = '[[tenants]]\nname = "beta"\nnumber = 8\n'


class Process:
    """One that follows, and keeps what it was told."""

    def __init__(self, file: Path, follows: tuple[str, ...] = OF_ALL, refuses: str = "") -> None:
        settings = load_settings(str(file), environment={}, options={})
        origin = origin_of(str(file), {}, {}, follows, settings)
        self.followed: list[Settings] = []
        self.live = LiveSettings(origin, settings, Inline(), check=self._check, follow=self._follow)
        self._refuses = refuses

    async def _check(self, settings: Settings) -> None:
        if self._refuses:
            raise Refused(self._refuses)

    async def _follow(self, settings: Settings) -> None:
        self.followed.append(settings)

    def reload(self, text: str) -> Reloaded:
        async def both() -> Reloaded:
            outcome = await self.live.check(text.encode())
            await self.live.follow(text.encode())
            return outcome

        return asyncio.run(both())

    def refusal(self, text: str) -> str:
        before = self.live.settings
        with pytest.raises(Refused) as refused:
            self.reload(text)
        assert self.live.settings == before and self.followed == []
        return str(refused.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "parshall.toml"
    path.write_text(FILE)
    return path


CHANGES = {
    "tenants": (FILE + BETA, "tenants"),
    "keys": (FILE.replace(HASH, "cd" * 32), "keys"),
    "meters": (FILE.replace('event_type = "http.request"', 'event_type = "http.call"'), "meters"),
    "price_books": (FILE.replace('"0.01"', '"0.02"'), "price_books"),
}


class Leader:
    """Worker 0 of a node without others: it reads again for all, and keeps what those who start later must know."""

    def __init__(self, folder: Path, known: str) -> None:
        self.file, self.folder = folder / "parshall.toml", folder
        self.steps: list[tuple[str, dict[str, int], bool]] = []  # what was done, and what those who start later found then
        self.file.write_text(FILE)
        (folder / "tenants.json").write_text(known)
        settings = load_settings(str(self.file), environment={}, options={})
        origin = origin_of(str(self.file), {}, {}, OF_INGEST, settings)
        live = LiveSettings(
            origin, settings, Inline(), check=self._noted("check"), follow=self._noted("follow"), settle=self._noted("settle")
        )
        local = peers.Local(0, cast(Any, None), cast(Any, None), tuple, live)
        kept = peers.Kept(str(folder / "flush.json"), str(folder / "tenants.json"), str(folder / "reloaded.toml"))
        self.all = peers.AllWorkers(local, peers.Sockets({}, None), kept, RealDisk(), Inline())

    def _noted(self, step: str) -> Callable[[Settings], Awaitable[None]]:
        async def note(settings: Settings) -> None:
            self.steps.append((step, self.tenants(), (self.folder / "reloaded.toml").exists()))

        return note

    def tenants(self) -> dict[str, int]:
        found: dict[str, int] = json.loads((self.folder / "tenants.json").read_text())["tenants"]
        return found

    def reload(self, text: str) -> Reloaded:
        self.file.write_text(text)
        return asyncio.run(self.all.reload())


def test_who_starts_later_finds_what_is_about_to_be_in_force_and_nothing_that_may_still_be_refused(tmp_path: Path) -> None:
    leader = Leader(tmp_path, '{"v":1,"tenants":{"acme":7}}')
    assert leader.reload(FILE + BETA) == Reloaded(["tenants"], [])
    both = {"acme": 7, "beta": 8}
    assert leader.steps == [("check", {"acme": 7}, False), ("settle", {"acme": 7}, False), ("follow", both, True)]
    assert (tmp_path / "reloaded.toml").read_text() == FILE + BETA
    assert leader.tenants() == both


def test_a_tenant_that_had_another_number_before_the_start_is_refused_before_anything_is_told(tmp_path: Path) -> None:
    known = {"acme": 7, "beta": 9}
    leader = Leader(tmp_path, json.dumps({"v": 1, "tenants": known}))
    with pytest.raises(Refused, match="'beta' has had the number 9 here"):
        leader.reload(FILE + BETA)
    assert [step for step, *_ in leader.steps] == ["check"]
    assert leader.tenants() == known and not (tmp_path / "reloaded.toml").exists()


@pytest.mark.parametrize("section", CHANGES)
@pytest.mark.parametrize("follows", [OF_ALL, OF_INGEST], ids=["all", "ingest"])
def test_a_section_follows_where_the_process_uses_it(file: Path, section: str, follows: tuple[str, ...]) -> None:
    process = Process(file, follows)
    before = process.live.settings
    text, name = CHANGES[section]
    assert process.reload(text) == Reloaded([name] if name in follows else [], [])
    read = load_settings(str(file), environment={}, options={}, content=text.encode())
    expected = {name: getattr(read, name)} if name in follows else {}
    assert process.followed == [before.model_copy(update=expected)] == [process.live.settings]
    assert process.reload(text) == Reloaded([], []), "a second time there is nothing new"


def test_other_settings_wait_for_a_restart_and_are_named_each_time(file: Path) -> None:
    process = Process(file)
    text = FILE.replace("8080", "8081").replace("max_events = 100", "max_events = 50") + "[flush]\nmax_counters = 5\n"
    for _ in range(2):
        assert process.reload(text) == Reloaded([], ["listen", "ingest.max_events", "flush.max_counters"])
    assert process.live.settings.listen == "127.0.0.1:8080" and process.live.settings.ingest.max_events == 100
    assert process.reload(FILE + BETA) == Reloaded(["tenants"], [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (FILE.replace("max_events = 100", "max_events = 0"), "parshall.toml:4: ingest.max_events: 0 cannot be used"),
        (FILE.replace('"acme"\nhash', '"nobody"\nhash'), "no tenant is called 'nobody'"),
        (FILE + "[[meters]]\n", "meters[1].name: it is missing"),
        (FILE + "[[", "is not TOML"),
        (FILE.replace("number = 7", "number = 8"), "the tenant 'acme' has the number 7, which never changes, and not 8"),
        (FILE.replace('"acme"', '"beta"'), "the tenant 'acme' is not there any more"),
        (
            FILE.replace('name = "acme"\nnumber = 7', 'name = "acme"\nnumber = 9\n[[tenants]]\nname = "beta"\nnumber = 7'),
            "the tenant 'acme' has the number 7, which never changes, and not 9",
        ),
        (FILE[: FILE.index("[[keys]]")] + FILE[FILE.index("[[meters]]") :], "there is no [[keys]] any more"),
        (FILE[: FILE.index("[[meters]]")], "there is no [[meters]] any more"),
        ("", "there is no [[tenants]] any more"),
    ],
)
def test_what_is_refused_changes_nothing(file: Path, text: str, why: str) -> None:
    assert why in Process(file).refusal(text)


def test_a_number_is_not_given_to_another_tenant_later_either(file: Path) -> None:
    process = Process(file)
    process.reload(FILE + BETA)
    process.followed.clear()
    gamma = BETA.replace("beta", "gamma")
    assert "the tenant 'beta' is not there any more" in process.refusal(FILE + gamma)
    moved = FILE + gamma + BETA.replace("number = 8", "number = 9")
    assert "the number 8 is that of the tenant 'beta', and never that of 'gamma'" in process.refusal(moved)


def test_what_the_process_itself_cannot_follow_is_refused(file: Path) -> None:
    assert Process(file, refuses="The meter cannot become another.").refusal(FILE + BETA) == "The meter cannot become another."


def test_what_changes_in_some_process_changes_in_the_node() -> None:
    """As when others followed at an earlier try, which ended half-way."""
    outcomes = [Reloaded([], ["listen"]), Reloaded(["keys", "tenants"], ["listen", "data"]), Reloaded(["price_books"], [])]
    assert together(outcomes) == Reloaded(["tenants", "keys", "price_books"], ["listen", "data"])


async def test_a_reload_by_a_signal_survives_whatever_happens(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (Refused("no"), Unavailable("not now"), ZeroDivisionError("a defect")):

        async def fails(error: Exception = error) -> Reloaded:
            raise error

        await tell_outcome(fails)
    assert "a defect" in capsys.readouterr().out


def test_a_worker_that_cannot_read_what_is_in_force_is_started_again() -> None:
    """A certificate may be away for a moment; the supervisor tries once more, and does not stop the tree."""
    assert why_stopped(Refused("kafka.ca_file: /etc/ca.pem cannot be read")) == FAILED


@pytest.mark.parametrize("text", ["number = " + "9" * 5000, "a = " + "[" * 5000, "a = " + "{b = " * 3000])
def test_a_file_that_breaks_the_reader_is_refused(file: Path, text: str) -> None:
    assert "parshall.toml" in Process(file).refusal(text)


def test_without_a_file_there_is_nothing_to_read_again(file: Path) -> None:
    settings = load_settings(str(file), environment={}, options={})

    async def nothing(_: Settings) -> None:
        raise AssertionError("nothing was read")

    live = LiveSettings(None, settings, Inline(), check=nothing, follow=nothing)
    for asked in (live.content, lambda: live.check(b""), lambda: live.follow(b"")):
        with pytest.raises(Refused, match="started without --config"):
            asyncio.run(asked())  # type: ignore[operator]


def test_a_file_that_is_gone_is_refused(file: Path) -> None:
    process = Process(file)
    assert asyncio.run(process.live.content()) == FILE.encode()
    file.unlink()
    with pytest.raises(Refused, match=r"parshall\.toml: cannot be read: No such file"):
        asyncio.run(process.live.content())


def test_who_starts_later_starts_with_what_was_kept(file: Path) -> None:
    """Only the sections that follow: the rest is as the service was started, whatever the file says by now."""
    settings = load_settings(str(file), environment={}, options={"ingest.max_events": 9})
    origin = Origin(str(file), {"ingest.max_events": 9}, {}, OF_INGEST, settings)
    kept = (FILE + BETA).replace("8080", "8081").replace('"0.01"', '"0.02"').encode()
    started = with_kept(origin, settings, kept)
    assert [tenant.name for tenant in started.tenants] == ["acme", "beta"]
    assert started == settings.model_copy(update={"tenants": started.tenants})
    assert with_kept(origin, settings, None) == settings == with_kept(None, settings, kept)
    with pytest.raises(Refused):
        with_kept(origin, settings, b"[[")


def test_options_and_variables_stand_above_the_file_each_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARSHALL_INGEST_MAX_AGE_S", "600")
    options: dict[str, object] = {"listen": "127.0.0.1:9999"}
    settings = load_settings(str(file), environment=os.environ, options=options)
    origin = Origin(str(file), options, {"flush.interval_ms": 50}, OF_ALL, settings)
    read = origin.read(FILE.replace("max_events = 100", "max_age_s = 700").encode())
    assert (read.listen, read.ingest.max_age_s, read.flush.interval_ms) == ("127.0.0.1:9999", 600, 50)


# ---- a process that nobody else must follow


async def test_a_process_alone_follows_what_it_has_checked_and_one_reload_at_a_time(file: Path) -> None:
    steps: list[str] = []

    def noting(step: str) -> Callable[[Settings], Awaitable[None]]:
        async def note(_: Settings) -> None:
            await asyncio.sleep(0)
            steps.append(step)

        return note

    settings = load_settings(str(file), environment={}, options={})
    origin = origin_of(str(file), {}, {}, OF_ALL, settings)
    alone = ReloadAlone(LiveSettings(origin, settings, Inline(), check=noting("check"), follow=noting("follow")))
    file.write_text(FILE + BETA)
    assert await asyncio.gather(alone.reload(), alone.reload()) == [Reloaded(["tenants"], []), Reloaded([], [])]
    alone.asked()
    async with asyncio.timeout(20):
        while len(steps) < 6:
            await asyncio.sleep(0)
    assert steps == ["check", "follow"] * 3


async def test_a_process_alone_follows_nothing_that_it_refuses(file: Path) -> None:
    process = Process(file, refuses="no")
    file.write_text(FILE + BETA)
    with pytest.raises(Refused, match="no"):
        await ReloadAlone(process.live).reload()
    assert process.followed == []
