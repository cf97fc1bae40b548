"""Every setting: its name, meaning, default and limits; and how a configuration becomes one immutable snapshot or a list of problems.

Belongs here: the models and the checks across sections. Must not know: command lines, services, what a meter or a price means (the
catalogue and the price books check their own sections). Reading files is in settings_sources.py, the printed page in settings_page.py.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from parshall.settings_sources import PREFIX, Raw, read_raw, variable_name

Whole = Annotated[int, Strict()]


_ALL_INTERFACES = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # and where such an address is reached from this machine


class Address(NamedTuple):
    host: str
    port: int

    @property
    def loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def meets(self, other: Address) -> bool:
        """Whether both cannot be listened on. Port 0 is one that is free."""
        return self.port == other.port != 0 and (self.host == other.host or bool({self.host, other.host} & _ALL_INTERFACES.keys()))

    @property
    def text(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """Where to reach it from this machine: an address that means 'all interfaces' is no place to connect to."""
        host = _ALL_INTERFACES.get(self.host, self.host)
        return f"http://{Address(host, self.port).text}"


def parse_address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not host or not re.fullmatch(r"\d{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError("a host, a colon and a port from 0 to 65535, as in 127.0.0.1:8080 or [::1]:8080")
    return Address(host, int(port))


def _address(text: str) -> str:
    parse_address(text)
    return text


_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def _redis_url(text: str) -> str:
    urls = _redis_urls(text)
    if not all(url.startswith(_REDIS_SCHEMES) and _is_place(url, r"/?\d*") for url in urls):
        raise ValueError(
            "a URL as in redis://127.0.0.1:6379/0 or rediss://user:password@host:6379; several, separated by commas, share the tenants"
        )
    if len(set(urls)) < len(urls):
        raise ValueError("each URL once: every shard is a Redis of its own")
    return text


def _is_place(url: str, path: str) -> bool:
    """Whether host and port can be read, and the path is one. Of a socket the path may be any."""
    try:
        parts = urlsplit(url)
        return parts.scheme == "unix" or ((parts.port is None or parts.port > 0) and re.fullmatch(path, parts.path, re.ASCII) is not None)
    except ValueError:
        return False


def _redis_urls(text: str) -> tuple[str, ...]:
    """A comma may also stand in a password: only one before a URL parts two of them."""
    return tuple(re.split(r",(?=[a-z]+://)", text))


_KAFKA_SCHEMES = {"PLAINTEXT": "plaintext", "SSL": "tls", "SASL_PLAINTEXT": "sasl_plaintext", "SASL_SSL": "sasl_tls"}


def _bootstrap(text: str) -> str:
    if "://" in text:
        scheme = text.partition("://")[0].strip()
        meant = f'"{_KAFKA_SCHEMES[scheme.upper()]}"' if scheme.upper() in _KAFKA_SCHEMES else "one of " + _listed(_KAFKA_SCHEMES.values())
        raise ValueError(f"host:port without {scheme}://, as in kafka-0:9092,kafka-1:9092, and kafka.security = {meant} in its place")
    try:
        for server in text.split(","):
            parse_address(server.strip())
    except ValueError:
        raise ValueError("host:port, several of them separated by commas, as in kafka-0:9092,kafka-1:9092") from None
    return text


def _dsn(text: str) -> str:
    if not text.startswith(("postgresql://", "postgres://")) or not (_several_hosts(text) or _is_place(text, ".*")):
        raise ValueError("a URL as in postgresql://user:password@host:5432/database")
    return text


def _several_hosts(dsn: str) -> bool:
    """host:port,host:port, which PostgreSQL's clients understand and urlsplit does not."""
    return "," in dsn.partition("://")[2].partition("/")[0]


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError("1 to 64 letters, digits, dots, dashes or underscores, the first a letter or digit")
    return text


def _kafka_name(text: str) -> str:
    # A name of a topic has at most 249 characters, and the longest that follows the prefix has 14.
    if not re.fullmatch(r"[A-Za-z0-9._-]{0,200}", text):
        raise ValueError("at most 200 letters, digits, dots, dashes or underscores")
    return text


def _group(text: str) -> str:
    if not text:
        raise ValueError("a name: raters that have it in common share the partitions among them")
    return _kafka_name(text)


def _one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError("text without line ends and other control characters (`printf` writes none at the end, `echo` does)")
    return text


def _key_hash(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("64 hexadecimal digits, as printed by `parshall key`")
    return text


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class IngestSettings(Section):
    """The HTTP edge."""

    workers: Whole = Field(1, ge=1, le=64, description="Worker processes, each with a journal of its own. More than one needs [redis].")
    max_events: Whole = Field(10_000, ge=1, le=1_000_000, description="Most events in one request.")
    max_body_bytes: Whole = Field(16_777_216, ge=1024, le=1 << 30, description="Most bytes of one request, after decompression.")
    max_age_s: Whole = Field(86_400, ge=60, le=30 * 86_400, description="An event whose time is older than this is too_late.")
    max_skew_s: Whole = Field(300, ge=0, le=86_400, description="An event whose time is further ahead than this is too_early.")
    deadline_ms: Whole = Field(10_000, ge=100, le=600_000, description="A request that cannot be answered in this time is answered 503.")
    max_connections: Whole = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Most connections of a worker, of which one tenant may have three quarters, and less where others have many (429 "
        "beyond that); when there are as many, one without a key is closed for the new one, or the new one is answered 503.",
    )
    max_in_flight_bytes: Whole = Field(
        512 << 20,
        ge=1 << 20,
        le=1 << 40,
        description="Most bytes of unanswered requests in a worker; beyond it, 503, or 429 for who has most.",
    )
    max_waiting_events: Whole = Field(
        200_000, ge=1, le=100_000_000, description="Most events of a worker that wait for their claims; beyond it, 503 or 429."
    )
    max_live_counters: Whole = Field(
        4_000_000, ge=1, le=1_000_000_000, description="Most counters of a worker that wait for the counter log; beyond it, 429."
    )
    drain_s: Whole = Field(30, ge=1, le=3600, description="How long a worker may take to finish and flush when it is told to stop.")


class JournalSettings(Section):
    """The journal of each worker, below the data folder."""

    max_bytes: Whole = Field(8 << 30, ge=64 << 20, le=1 << 50, description="A full journal answers 503 until a flush makes room.")
    min_free_bytes: Whole = Field(256 << 20, ge=0, le=1 << 50, description="Disk space that is left free; below it, 503.")


class FlushSettings(Section):
    """How often counters are handed on. `parshall flush set` changes the interval while the service runs, and that change is kept."""

    interval_ms: Whole | None = Field(
        None,
        ge=10,
        le=3_600_000,
        examples=[10_000],
        description="Time between two flushes. When not set: 1000 in `parshall up`, 10000 in `parshall ingest`.",
    )
    max_counters: Whole = Field(1_000_000, ge=1, le=100_000_000, description="A flush starts early when so many counters are live.")


class RedisSettings(Section):
    """Where claims are kept. Without it `parshall up` keeps them in the one worker it has."""

    url: Annotated[str, AfterValidator(_redis_url)] | None = Field(
        None,
        repr=False,
        examples=["redis://127.0.0.1:6379/0"],
        description="A Redis 7 or Valkey of our own. Several, separated by commas, share the tenants: see docs/decisions/0015-shards.md.",
    )

    layout: Literal["hashed", "packed"] = Field(
        "hashed",
        description="How claims lie in it. packed: less than half of the memory, for three times the CPU of Redis. "
        "To change it: docs/decisions/0014-packed-claims.md.",
    )

    @property
    def urls(self) -> tuple[str, ...]:
        """One for each shard, in their order; none when claims are kept in the process."""
        return () if self.url is None else _redis_urls(self.url)


class KafkaSettings(Section):
    """Where counters go. Without it `parshall up` keeps them in files below the data folder."""

    bootstrap: Annotated[str, AfterValidator(_bootstrap)] | None = Field(
        None, examples=["127.0.0.1:9092"], description="Some brokers of the cluster."
    )
    accept_weak: bool | None = Field(
        None,
        examples=[False],
        description="Start although replication or retention cannot keep the promise. When not set: only `parshall up` does.",
    )
    create_topics: bool | None = Field(
        None, examples=[False], description="Make the topics that are missing. When not set: only `parshall up` does."
    )
    topic_prefix: Annotated[str, AfterValidator(_kafka_name)] = Field(
        "",
        description="What the names of all topics begin with, so that two installations can share a cluster. The same for all parts of "
        "one, and not to be changed later: what lies in the topics before would stay there.",
    )
    consumer_group: Annotated[str, AfterValidator(_group)] = Field(
        "parshall-rater",
        description="The raters that share the partitions among them; another one in each installation. Commands that read the log join "
        "groups of their own, whose names begin with it.",
    )
    security: Literal["plaintext", "tls", "sasl_plaintext", "sasl_tls"] = Field(
        "plaintext",
        description="How the brokers are spoken to: plaintext, tls, or these with a user and a password (sasl_plaintext, sasl_tls). "
        "Only over TLS is a password safe from who listens.",
    )
    ca_file: str = Field(
        "", description="For TLS: a PEM file with the CA that signed the brokers' certificates. When not set: those this machine trusts."
    )
    cert_file: str = Field(
        "", description="For brokers that ask for a client certificate: a PEM file with it and what is between it and the CA."
    )
    key_file: str = Field("", description="A PEM file with the key of cert_file, without a passphrase; it may be the same file.")
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, examples=["SCRAM-SHA-512"], description="How user and password are shown; needed for sasl_plaintext and sasl_tls."
    )
    username: Annotated[str, AfterValidator(_one_line)] = Field("", description="The user, for sasl_plaintext and sasl_tls.")
    password: Annotated[str, AfterValidator(_one_line)] = Field(
        "", repr=False, description="The user's password; better kept out of a file."
    )


class PostgresSettings(Section):
    """Where usage and charges are kept. Without it `parshall up` brings a PostgreSQL along."""

    dsn: Annotated[str, AfterValidator(_dsn)] | None = Field(
        None, repr=False, examples=["postgresql://parshall@127.0.0.1:5432/parshall"], description="A PostgreSQL database of our own."
    )


class TenantSettings(Section):
    """One customer whose usage is kept apart."""

    name: Annotated[str, AfterValidator(_name)] = Field(description="The name in answers, charges and records.")
    number: Whole = Field(ge=1, le=(1 << 32) - 1, description="A number of its own, never changed and never given to another tenant.")


class KeySettings(Section):
    """One API key. `parshall key` makes the key and prints this section; the key itself is not kept anywhere."""

    tenant: str = Field(description="The tenant whose usage the key may send and read.")
    hash: Annotated[str, AfterValidator(_key_hash)] = Field(repr=False, description="The hash of the key.")
    scopes: tuple[Literal["ingest", "read", "admin"], ...] = Field(("ingest",), min_length=1, description="What the key may do.")


class Settings(Section):
    """An immutable snapshot. It is replaced as a whole, never changed."""

    listen: Annotated[str, AfterValidator(_address)] = Field("127.0.0.1:8080", description="Host and port of the HTTP API.")
    admin_listen: Annotated[str, AfterValidator(_address)] | None = Field(
        None,
        examples=["127.0.0.1:8081"],
        description="Host and port of /metrics and /v1/admin/, which are then at no other address. Without it they are at `listen`.",
    )
    data: str = Field("parshall-data", min_length=1, description="The data folder: journals, and all that `parshall up` keeps itself.")
    ingest: IngestSettings = IngestSettings()
    journal: JournalSettings = JournalSettings()
    flush: FlushSettings = FlushSettings()
    redis: RedisSettings = RedisSettings()
    kafka: KafkaSettings = KafkaSettings()
    postgres: PostgresSettings = PostgresSettings()
    tenants: tuple[TenantSettings, ...] = ()
    keys: tuple[KeySettings, ...] = ()
    meters: tuple[dict[str, Any], ...] = Field((), description="The catalogue: what is counted.")
    price_books: tuple[dict[str, Any], ...] = Field((), description="What it costs: one book a tenant.")

    @property
    def address(self) -> Address:
        return parse_address(self.listen)

    @property
    def admin_address(self) -> Address | None:
        return None if self.admin_listen is None else parse_address(self.admin_listen)


class Problem(NamedTuple):
    """One thing wrong with the configuration."""

    place: str  # parshall.toml:12, PARSHALL_LISTEN or --listen
    setting: str  # ingest.max_events; empty when the whole file is meant
    wrong: str
    allowed: str

    def __str__(self) -> str:
        subject = f"{self.place}: {self.setting}: " if self.setting else f"{self.place}: "
        return subject + self.wrong + (f"; allowed: {self.allowed}" if self.allowed else "")


class BadSettings(Exception):
    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def load_settings(
    file: str | None,
    *,
    environment: Mapping[str, str],
    options: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
    content: bytes | None = None,
    asks_redis: bool = True,
) -> Settings:
    """The file, overridden by PARSHALL_… variables, overridden by options ("redis.url" -> value). Raises BadSettings with everything wrong.

    `defaults` are what a command wants where nobody said anything; `content` is what is in the file, where it was read before. Who does not
    ask Redis need not have the files that redis.url names.
    """
    raw = read_raw(file, environment=environment, options=options, defaults=defaults or {}, fields=dict(scalar_fields()), content=content)
    if raw.syntax_error is not None:
        raise BadSettings([Problem(*raw.syntax_error, "TOML 1.0, see https://toml.io")])
    try:
        settings = Settings.model_validate(raw.values)
    except ValidationError as error:
        # The sections of the catalogue and the prices are checked all the same: all problems in one go.
        problems = [_problem(raw, detail) for detail in _own_faults(error.errors(include_url=False))]
        raise BadSettings(_in_order(problems + _sections(raw))) from None
    problems = _check_references(raw, settings, asks_redis) + _sections(raw)
    if problems:
        raise BadSettings(_in_order(problems))
    return settings


def near_misses(environment: Iterable[str]) -> list[tuple[str, str]]:
    """Variables that are almost a setting, and that setting. Others with the prefix are none of ours: Kubernetes makes some."""
    known = [variable_name(path) for path, _ in scalar_fields()]
    found = []
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in known:
            found += [(name, meant) for meant in difflib.get_close_matches(name, known, n=1, cutoff=0.93)]
    return found


def _sections(raw: Raw) -> list[Problem]:
    from parshall.settings_sections import check_sections  # it needs the problems that are defined here

    return check_sections(raw)


def scalar_fields(model: type[BaseModel] = Settings, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], FieldInfo]]:
    """All settings that are one value, with their paths: those can be set by a variable."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from scalar_fields(field.annotation, (*path, name))
        elif name not in ("tenants", "keys", "meters", "price_books"):
            yield (*path, name), field


def _check_references(raw: Raw, settings: Settings, asks_redis: bool) -> list[Problem]:
    problems = _repeated(raw, "tenants", "name", [tenant.name for tenant in settings.tenants])
    problems += _repeated(raw, "tenants", "number", [tenant.number for tenant in settings.tenants])
    names = [tenant.name for tenant in settings.tenants]
    known = set(names)
    problems += _repeated_keys(raw, settings)
    for index, key in enumerate(settings.keys):
        if key.tenant not in known:
            problems.append(_unknown_tenant(raw, ("keys", index, "tenant"), key.tenant, names))
    for index, book in enumerate(settings.price_books):
        if isinstance(tenant := book.get("tenant"), str) and tenant not in known:
            problems.append(_unknown_tenant(raw, ("price_books", index, "tenant"), tenant, names))
    if settings.ingest.workers > 1 and settings.redis.url is None:
        problems.append(
            Problem(
                raw.place(("ingest", "workers")),
                "ingest.workers",
                f"{settings.ingest.workers} workers must share their claims, and no Redis is given",
                "1 worker, or any number with --redis URL (redis.url)",
            )
        )
    if settings.admin_address is not None and settings.admin_address.meets(settings.address):
        problems.append(
            Problem(
                raw.place(("admin_listen",)),
                "admin_listen",
                f"{settings.admin_listen} is where listen ({settings.listen}) is",
                "another port; or leave it out, and /metrics and /v1/admin/ are at listen",
            )
        )
    return problems + _redis_options(raw, settings.redis, asks_redis) + _kafka_security(raw, settings.kafka)


def _redis_options(raw: Raw, redis: RedisSettings, files: bool) -> list[Problem]:
    from parshall.redis_options import check_options  # it needs the problems that are defined here

    return check_options(raw, redis, files=files)


def _kafka_security(raw: Raw, kafka: KafkaSettings) -> list[Problem]:
    from parshall.kafka_security import check_security  # it needs the problems that are defined here

    return check_security(raw, kafka)


def _repeated(raw: Raw, section: str, field: str, values: list[Any]) -> list[Problem]:
    first = {value: index for index, value in reversed(list(enumerate(values)))}
    return [
        Problem(raw.place((section, index, field)), f"{section}[{index}].{field}", f"{value!r} is used before", f"a {field} of its own")
        for index, value in enumerate(values)
        if first[value] != index
    ]


def _repeated_keys(raw: Raw, settings: Settings) -> list[Problem]:
    """Whose usage would it be?"""
    first: dict[str, int] = {}
    for index, key in enumerate(settings.keys):
        first.setdefault(key.hash, index)
    return [
        Problem(raw.place(("keys", index, "hash")), f"keys[{index}].hash", f"is that of keys[{first[key.hash]}]", "one entry for each key")
        for index, key in enumerate(settings.keys)
        if first[key.hash] != index
    ]


def _unknown_tenant(raw: Raw, path: tuple[str | int, ...], tenant: str, names: list[str]) -> Problem:
    return Problem(raw.place(path), dotted(path), f"no tenant is called {tenant!r}{did_you_mean(tenant, names)}", _listed(names))


def _own_faults(details: list[ErrorDetails]) -> list[ErrorDetails]:
    """Without what only follows from a fault inside: pydantic finds a list too short when an element of it is wrong."""
    inside = {detail["loc"][:length] for detail in details for length in range(len(detail["loc"]))}
    return [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in inside]


def _problem(raw: Raw, detail: ErrorDetails) -> Problem:
    path = detail["loc"]
    kind = detail["type"]
    given = raw.value(path)
    if kind == "extra_forbidden":
        known = list(_model_at(path[:-1]).model_fields)
        return Problem(raw.place(path), dotted(path), f"unknown setting{did_you_mean(str(path[-1]), known)}", _listed(known))
    if kind == "missing":
        return Problem(raw.place(path[:-1]), dotted(path), "is missing", allowed_for(_field_at(path)))
    field = _field_at(path)
    wrong = f"{shown(given) if field is None or field.repr else 'what is given'} cannot be used"  # a password may stand in it
    if kind == "value_error":
        return Problem(raw.place(path), dotted(path), wrong, detail["msg"].removeprefix("Value error, "))
    return Problem(raw.place(path), dotted(path), wrong, allowed_for(field) if field else detail["msg"])


def _model_at(path: tuple[str | int, ...]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for part in path:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_of(part, model.model_fields[part]) or model
    return model


def _model_of(name: str, field: FieldInfo) -> type[BaseModel] | None:
    if name in ("tenants", "keys"):
        return TenantSettings if name == "tenants" else KeySettings
    return field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel) else None


def _field_at(path: tuple[str | int, ...]) -> FieldInfo | None:
    names = [part for part in path if isinstance(part, str)]
    for length in range(len(names), 0, -1):  # the path of an error may end inside the type of a field
        field = _model_at(tuple(names[: length - 1])).model_fields.get(names[length - 1])
        if field is not None:
            return field
    return None


_PLAIN_NAMES: Mapping[str, str] = {"int": "a whole number", "str": "text in quotes", "bool": "true or false"}


def allowed_for(field: FieldInfo | None) -> str:
    """What a field may be, in words, from its type and limits."""
    if field is None:
        return ""
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        return "a table of settings"
    written = str(field.annotation)
    if "Literal" in written:
        return ("a list of " if "tuple" in written else "one of ") + _listed(re.findall(r"'([^']+)'", written))
    if "tuple" in written:
        return "a list of tables"
    kind = next((words for name, words in _PLAIN_NAMES.items() if re.search(rf"\b{name}\b", written)), "")
    low = next((item.ge for item in field.metadata if hasattr(item, "ge")), None)
    high = next((item.le for item in field.metadata if hasattr(item, "le")), None)
    return kind + (f" from {low} to {high}" if low is not None and high is not None else "")


def shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else f"{value}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def dotted(path: Iterable[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def did_you_mean(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _in_order(problems: list[Problem]) -> list[Problem]:
    def by_line(problem: Problem) -> tuple[str, int]:
        file, _, line = problem.place.rpartition(":")
        return (file, int(line)) if line.isdigit() else (problem.place, 0)

    return sorted(problems, key=by_line)
