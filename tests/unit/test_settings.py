"""From a configuration to a snapshot, or to everything that is wrong with it and where."""

from __future__ import annotations

import pickle
import re
import tomllib
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from parshall.settings import BadSettings, Settings, load_settings, near_misses, parse_address, scalar_fields
from parshall.settings_page import settings_page
from parshall.settings_sources import variable_name
from parshall.toml_lines import line_of, lines_of
from parshall.wiring import late_s

DEMO = Path(__file__).parents[2] / "parshall/demo.toml"


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None, options: dict[str, object] | None = None) -> Settings:
    file = tmp_path / "p.toml"
    file.write_text(text)
    return load_settings(str(file), environment=environment or {}, options=options or {})


def problems(tmp_path: Path, text: str, environment: dict[str, str] | None = None, options: dict[str, object] | None = None) -> list[str]:
    with pytest.raises(BadSettings) as caught:
        load(tmp_path, text, environment, options)
    return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]


# ---- what is right


def test_nothing_said_is_the_defaults() -> None:
    settings = load_settings(None, environment={}, options={})
    assert settings.listen == "127.0.0.1:8080"
    assert (settings.ingest.max_events, settings.ingest.max_body_bytes) == (10_000, 16_777_216)
    assert settings.flush.interval_ms is None


def test_an_option_wins_over_a_variable_wins_over_the_file_wins_over_a_default(tmp_path: Path) -> None:
    text = "[flush]\ninterval_ms = 2000\n"
    file = tmp_path / "p.toml"
    file.write_text(text)

    def interval(environment: dict[str, str], options: dict[str, object], name: str | None = str(file)) -> int | None:
        return load_settings(name, environment=environment, options=options, defaults={"flush.interval_ms": 1000}).flush.interval_ms

    variable = {"PARSHALL_FLUSH_INTERVAL_MS": "3000"}
    assert interval(variable, {"flush.interval_ms": 4000}) == 4000
    assert interval(variable, {}) == 3000
    assert interval({}, {}) == 2000
    assert interval({}, {}, None) == 1000


def test_every_setting_has_a_variable_of_its_own_and_a_meaning() -> None:
    names = [variable_name(path) for path, _ in scalar_fields()]
    assert len(names) == len(set(names)) > 15
    assert all(field.description for _, field in scalar_fields())


def test_a_snapshot_does_not_change_and_goes_to_another_process_as_it_is(tmp_path: Path) -> None:
    settings = load(tmp_path, DEMO.read_text())
    with pytest.raises(ValidationError):
        settings.listen = "0.0.0.0:1"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_fractions_in_the_file_stay_exact(tmp_path: Path) -> None:
    text = DEMO.read_text().replace('unit_price = "0.00012"', "unit_price = 0.1000000000000000055511151231257827")
    price = load(tmp_path, text).price_books[0]["versions"][0]["prices"][-1]["unit_price"]
    assert price == Decimal("0.1000000000000000055511151231257827")


def test_the_demo_is_right_and_prices_every_meter(tmp_path: Path) -> None:
    settings = load(tmp_path, DEMO.read_text())
    priced = {price["meter"] for price in settings.price_books[0]["versions"][0]["prices"]}
    assert priced == {meter["name"] for meter in settings.meters} and len(priced) == 5


def test_the_page_of_all_settings_is_a_configuration_once_it_is_uncommented(tmp_path: Path) -> None:
    """All but prose: a line that is a table or an assignment."""
    lines = [line.removeprefix("# ") for line in settings_page().splitlines()]
    text = "\n".join(line for line in lines if re.match(r"\[|[a-z_]+ = ", line))
    settings = load(tmp_path, text)
    assert {name for path, _ in scalar_fields() for name in path} <= set(re.findall(r"[a-z_]+", text))
    assert settings.ingest == Settings().ingest
    assert (len(settings.tenants), len(settings.keys), len(settings.meters), len(settings.price_books)) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback", "url"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080, True, "http://127.0.0.1:8080"),
        ("localhost:1", "localhost", 1, True, "http://localhost:1"),
        ("[::1]:8080", "::1", 8080, True, "http://[::1]:8080"),
        ("0.0.0.0:80", "0.0.0.0", 80, False, "http://127.0.0.1:80"),
        ("example.com:443", "example.com", 443, False, "http://example.com:443"),
        ("127.1.2.3:0", "127.1.2.3", 0, True, "http://127.1.2.3:0"),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool, url: str) -> None:
    address = parse_address(text)
    assert (address.host, address.port, address.loopback, address.url) == (host, port, loopback, url)


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host", "host:", "host:x", "host:65536", "host:-1", "host:٨"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="a host, a colon and a port"):
        parse_address(text)


# ---- what is wrong


def test_all_problems_at_once_each_with_place_name_fault_and_remedy(tmp_path: Path) -> None:
    text = """\
listen = "nope"
dta = "x"

[ingest]
workers = "two"
max_age_s = 5

[[tenants]]
name = "a"
number = 1

[[tenants]]
name = "a"
number = 0

[[keys]]
tenant = "a"
hash = "xyz"
scopes = [
  "red",
]
"""
    found = problems(tmp_path, text)
    assert [problem.partition(": ")[0] for problem in found] == [f"p.toml:{line}" for line in (1, 2, 5, 6, 14, 18, 19)]
    assert found[0] == (
        "p.toml:1: listen: 'nope' cannot be used; allowed: a host, a colon and a port from 0 to 65535, as in 127.0.0.1:8080 or [::1]:8080"
    )
    assert "p.toml:2: dta: unknown setting (did you mean 'data'?); allowed: listen, admin_listen, data, ingest" in found[1]
    assert found[2] == "p.toml:5: ingest.workers: 'two' cannot be used; allowed: a whole number from 1 to 64"
    assert found[3] == "p.toml:6: ingest.max_age_s: 5 cannot be used; allowed: a whole number from 60 to 2592000"
    assert found[4].startswith("p.toml:14: tenants[1].number: 0 cannot be used; allowed: a whole number from 1 to")


def test_names_and_numbers_of_tenants_are_their_own(tmp_path: Path) -> None:
    text = '[[tenants]]\nname = "a"\nnumber = 1\n[[tenants]]\nname = "a"\nnumber = 1\n[[keys]]\ntenant = "b"\nhash = "' + "0" * 64 + '"\n'
    assert problems(tmp_path, text) == [
        "p.toml:5: tenants[1].name: 'a' is used before; allowed: a name of its own",
        "p.toml:6: tenants[1].number: 1 is used before; allowed: a number of its own",
        "p.toml:8: keys[0].tenant: no tenant is called 'b'; allowed: a, a",
    ]


def test_more_workers_need_redis_whoever_asks_for_them(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "", options={"ingest.workers": 2})
    assert found.startswith("--workers: ingest.workers: 2 workers must share their claims, and no Redis is given")
    assert "--redis URL" in found
    assert load(tmp_path, "", options={"ingest.workers": 2, "redis.url": "redis://localhost"}).ingest.workers == 2


@pytest.mark.parametrize(
    ("listen", "admin", "wrong"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8080", True),
        ("0.0.0.0:8080", "127.0.0.1:8080", True),
        ("127.0.0.1:8080", "[::]:8080", True),
        ("127.0.0.1:8080", "127.0.0.2:8080", False),
        ("0.0.0.0:8080", "127.0.0.1:8081", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_the_admin_address_is_another_one(tmp_path: Path, listen: str, admin: str, wrong: bool) -> None:
    text = f'listen = "{listen}"\nadmin_listen = "{admin}"\n'
    if not wrong:
        (tmp_path / "p.toml").write_text(text)
        settings = load_settings(str(tmp_path / "p.toml"), environment={}, options={})
        assert settings.admin_address == parse_address(admin) and settings.address == parse_address(listen)
        return
    assert problems(tmp_path, text) == [
        f"p.toml:2: admin_listen: {admin} is where listen ({listen}) is; "
        "allowed: another port; or leave it out, and /metrics and /v1/admin/ are at listen"
    ]


def test_a_wrong_variable_or_option_is_named_as_what_it_is(tmp_path: Path) -> None:
    (variable,) = problems(tmp_path, "[ingest]\nmax_events = 3\n", {"PARSHALL_INGEST_MAX_EVENTS": "many"})
    assert variable == "PARSHALL_INGEST_MAX_EVENTS: ingest.max_events: 'many' cannot be used; allowed: a whole number from 1 to 1000000"
    (option,) = problems(tmp_path, "", options={"redis.url": "http://x"})
    assert option.startswith("--redis: redis.url: what is given cannot be used; allowed: a URL as in redis://")


def test_several_redis_are_parted_by_commas(tmp_path: Path) -> None:
    def urls(text: str) -> tuple[str, ...]:
        return load(tmp_path, "", options={"redis.url": text}).redis.urls

    assert load(tmp_path, "").redis.urls == ()
    assert urls("redis://a") == ("redis://a",)
    assert urls("redis://a,rediss://b:1/0,unix:///run/c") == ("redis://a", "rediss://b:1/0", "unix:///run/c")
    assert urls("redis://u:a,b@one,redis://two") == ("redis://u:a,b@one", "redis://two"), "a comma may stand in a password"
    (wrong,) = problems(tmp_path, "", options={"redis.url": "redis://a,http://b"})
    assert "several, separated by commas, share the tenants" in wrong
    (twice,) = problems(tmp_path, "", options={"redis.url": "redis://a,redis://b,redis://a"})
    assert twice.endswith("allowed: each URL once: every shard is a Redis of its own")


def test_catalogue_and_prices_are_checked_with_places_too(tmp_path: Path) -> None:
    text = DEMO.read_text().replace('aggregation = "max"', 'aggregation = "maximum"').replace('unit_price = "15.00"', "unit_price = -1")
    lines = text.splitlines()
    found = problems(tmp_path, text)
    assert len(found) == 2
    meter, price = lines.index('aggregation = "maximum"') + 1, lines.index("unit_price = -1") + 1
    assert found[0].startswith(f"p.toml:{meter}: meters[3].aggregation: ")
    assert found[1].startswith(f"p.toml:{price}: price_books[0].versions[0].prices[2].unit_price: ")


def test_a_price_for_a_meter_that_is_not_there(tmp_path: Path) -> None:
    text = DEMO.read_text().replace('meter = "storage_gb_hours"', 'meter = "storage"')
    (found,) = problems(tmp_path, text)
    assert "no meter is called 'storage'" in found


@pytest.mark.parametrize(
    ("text", "place"),
    [("a = 1\nb = = 2\n", "p.toml:2"), ('a = "x\n', "p.toml:1"), ("[a]\n[a]\n", "p.toml:2"), ("a = 1\na = 2\n", "p.toml:2")],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path, text: str, place: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(f"{place}: is not TOML: ")


def test_the_mark_that_some_editors_begin_a_file_with_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_bytes(b'\xef\xbb\xbflisten = "127.0.0.1:1234"\r\n')
    assert load_settings(str(tmp_path / "p.toml"), environment={}, options={}).listen == "127.0.0.1:1234"


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"nothing\.toml: cannot be read: No such file"):
        load_settings(str(tmp_path / "nothing.toml"), environment={}, options={})
    (tmp_path / "p.toml").write_bytes(b"a = 1\nb = '\xff'\n")
    with pytest.raises(BadSettings, match=r"p\.toml:2: is not UTF-8 text"):
        load_settings(str(tmp_path / "p.toml"), environment={}, options={})


def test_a_secret_is_not_shown_where_settings_are(tmp_path: Path) -> None:
    settings = load(tmp_path, '[redis]\nurl = "redis://:hidden@host"\n[postgres]\ndsn = "postgresql://u:hidden@host/d"\n')
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PARSHALL_REDIS_URL", "valkey://:hidden@h:6379"),
        ("PARSHALL_REDIS_URL", "redis://:hidden@h:notaport"),
        ("PARSHALL_REDIS_URL", "redis://:hidden@h:99999"),
        ("PARSHALL_REDIS_URL", "redis://:hidden@h/abc"),
        ("PARSHALL_REDIS_URL", "redis://:hidden@h,redis://:hidden@h:x"),
        ("PARSHALL_POSTGRES_DSN", "host=db user=u password=hidden"),
        ("PARSHALL_POSTGRES_DSN", "postgresql://u:hidden@h:notaport/d"),
    ],
)
def test_an_address_that_cannot_be_read_is_refused_and_its_password_not_shown(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(BadSettings) as refused:
        load(tmp_path, "", environment={variable: value})
    assert str(refused.value).startswith(f"{variable}: ") and "what is given cannot be used; allowed: a URL as in" in str(refused.value)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "redis",
    ["redis://h", "redis://h/", "rediss://u:p,w@h:6380/3", "unix:///run/redis.sock?db=1", "redis://[::1]:6379/0", "redis://a,redis://b:1"],
)
@pytest.mark.parametrize(
    "dsn", ["postgresql://h/d", "postgres://u:p@h:5432/d?sslmode=require", "postgresql://u@/d?host=/run", "postgresql://u@a:1,b:2/d"]
)
def test_addresses_of_every_kind_are_taken(tmp_path: Path, redis: str, dsn: str) -> None:
    made = load(tmp_path, f'[redis]\nurl = "{redis}"\n[postgres]\ndsn = "{dsn}"\n')
    assert (made.redis.url, made.postgres.dsn) == (redis, dsn)


def test_a_key_has_one_entry(tmp_path: Path) -> None:
    tenants = "".join(f'[[tenants]]\nname = "{name}"\nnumber = {number}\n' for number, name in enumerate("ab", 1))
    keys = "".join(f'[[keys]]\ntenant = "{name}"\nhash = "{"0" * 63}{number}"\n' for name, number in (("a", 1), ("b", 2), ("b", 1)))
    with pytest.raises(BadSettings) as refused:
        load(tmp_path, tenants + keys)
    assert "keys[2].hash: is that of keys[0]; allowed: one entry for each key" in str(refused.value)


def test_variables_that_are_almost_a_setting_are_named() -> None:
    others = ["PARSHALL_SERVICE_HOST", "PARSHALL_INGEST_PORT", "PARSHALL_PORT_8080_TCP_ADDR", "PARSHALL_URL", "PARSHALL_KEY", "HOME"]
    wrong = ["PARSHALL_INGEST_MAXAGE_S", "PARSHALL_KAFKA_BOOTSTRAPS", "PARSHALL_REDIS_URLS"]
    assert near_misses([*others, *wrong, "PARSHALL_INGEST_MAX_AGE_S"]) == [
        ("PARSHALL_INGEST_MAXAGE_S", "PARSHALL_INGEST_MAX_AGE_S"),
        ("PARSHALL_KAFKA_BOOTSTRAPS", "PARSHALL_KAFKA_BOOTSTRAP"),
        ("PARSHALL_REDIS_URLS", "PARSHALL_REDIS_URL"),
    ]


# ---- lines


def test_lines_of_tables_arrays_and_values_that_go_on() -> None:
    text = '''\
a = 1
b.c = 2
[d."e f"]
g = """
h = 3
"""  # ends here
i = [
  { j = 4 }, # ]
  "]",
]
k = 'x" # ['
[[l]]
m = 5
[l.n]
o = 6
[[l.p]]
q = 7
[[l]]
m = 8
[[l.p]]
q = 9
'''
    lines = lines_of(text)
    wanted = {
        ("a",): 1,
        ("b", "c"): 2,
        ("d", "e f"): 3,
        ("d", "e f", "g"): 4,
        ("d", "e f", "i"): 7,
        ("d", "e f", "k"): 11,
        ("l", 0): 12,
        ("l", 0, "m"): 13,
        ("l", 0, "n"): 14,
        ("l", 0, "n", "o"): 15,
        ("l", 0, "p", 0): 16,
        ("l", 0, "p", 0, "q"): 17,
        ("l", 1): 18,
        ("l", 1, "m"): 19,
        ("l", 1, "p", 0): 20,
        ("l", 1, "p", 0, "q"): 21,
    }
    assert {path: lines.get(path) for path in wanted} == wanted
    assert ("d", "e f", "h") not in lines and ("h",) not in lines
    assert line_of(lines, ("d", "e f", "i", 0, "j")) == 7
    assert line_of(lines, ("unknown",)) is None


@given(
    st.lists(
        st.one_of(
            st.text("ab\"'\\[]{}#=\n\r\t ", max_size=12),
            st.integers(),
            st.lists(st.text('a"]\n', max_size=4), max_size=3),
        ),
        max_size=6,
    )
)
def test_whatever_a_value_looks_like_the_next_key_is_found(values: list[object]) -> None:
    """Each value written in several ways; a marker key after it must be found in its line."""
    import json

    text = ""
    for index, value in enumerate(values):
        written = json.dumps(value)
        if isinstance(value, list):
            written = written.replace(", ", ",\n  ")
        if isinstance(value, str) and "\r" not in value and "\\" not in value and not value.endswith('"') and '"""' not in value:
            written = f'"""{value}"""' if not value.startswith("\n") else f'"""\n{value}"""'
        text += f"k{index} = {written}  # '\nm{index} = 1\n"
    tomllib.loads(text)
    lines = lines_of(text)
    rows = text.split("\n")
    for index in range(len(values)):
        assert rows[lines[(f"m{index}",)] - 1] == f"m{index} = 1"


def test_a_month_is_open_for_as_long_as_an_event_of_it_may_come(tmp_path: Path) -> None:
    assert late_s(load_settings(None, environment={}, options={})) == 86_400 + 10 + 3600
    assert late_s(load(tmp_path, "[ingest]\nmax_age_s = 7200\ndeadline_ms = 10001\n")) == 7200 + 11 + 3600
