"""What `parshall size` prints: a table for people, JSON for scripts, and the table of constants that docs/PERFORMANCE.md shows.

Pure, and in integers as the model is: what is rounded is rounded up. Must not know: options, how capacity is computed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from textwrap import fill
from typing import NamedTuple

from parshall.measured import IN_PROCESS_CLAIMS, Constants
from parshall.sizing import Limit, Sizing

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_WIDTH = 100


class Row(NamedTuple):
    what: str
    needed: str
    why: str = ""


def as_text(found: Sizing) -> str:
    blocks = [_asked(found), "\n".join(_aligned(_rows(found))), _breaks(found)]
    if found.settings:
        blocks.append(_settings(found))
    return "\n\n".join(blocks)


def as_json(found: Sizing) -> str:
    answer = {
        "workload": found.workload._asdict(),
        "machines": found.machines._asdict(),
        **{part: figures._asdict() for part, figures in found.demand._asdict().items()},
        "bottleneck": found.bottleneck,
        "limits": [limit._asdict() for limit in found.limits],
        "settings": [{"setting": name, "at_least": least, "default": default} for name, least, default in found.settings],
    }
    return json.dumps(answer, indent=2)


# ---- the table


def _asked(found: Sizing) -> str:
    w = found.workload
    return (
        f"{w.events_per_second:,} events/s in requests of {w.events_per_request:,}, up to {lasting(w.max_age_s)} old; "
        f"{w.subjects:,} subjects x {w.meters:,} meters x {w.values:,} values\n"
        f"flushed every {lasting_ms(w.flush_interval_ms)} into windows of {lasting(w.window_s)}; "
        f"{_store(found)}{', claims packed' if w.packed else ''}; {'routed by subject' if w.routed else 'any writer gets any subject'}"
    )


def _store(found: Sizing) -> str:
    return "Valkey" if found.workload.valkey else "Redis"


def _rows(found: Sizing) -> Iterator[Row]:
    yield from _ingest_rows(found)
    yield from _claim_rows(found)
    yield from _rating_rows(found)


def _ingest_rows(found: Sizing) -> Iterator[Row]:
    counters, writers, journal = found.demand.counters, found.demand.writers, found.demand.journal
    machines = found.machines
    yield Row("Counters", f"{counters.per_s:,}/s", f"of {counters.keys:,} keys; {_tenths(counters.hits_each_tenths)} hits each")
    yield Row(
        "Writers",
        f"{writers.needed:,}",
        f"{writers.by_cpu:,} by CPU, {writers.by_start:,} to start within {lasting(machines.start_s)}",
    )
    yield Row("  CPU", f"{_thousandths(writers.cpu_ns_per_event)} us/event", f"a core is used to {machines.busy_percent} %")
    yield Row("  memory", f"{amount(writers.memory_bytes)} each", f"{counters.per_flush:,} counters a flush")
    yield Row("  start", lasting(writers.start_s), "to read the journal after a crash")
    yield Row(
        "Journal disk",
        f"{amount(journal.disk_bytes)} each",
        f"{_tenths(journal.bytes_per_event_tenths)} B/event, kept {lasting(journal.kept_s)}; {amount(journal.all_bytes)} in all",
    )
    network = found.demand.network
    yield Row("Network in", f"{amount(network.ingest)}/s", "requests and answers, not compressed")


def _claim_rows(found: Sizing) -> Iterator[Row]:
    claims = found.demand.claims
    tenants = f"{claims.by_tenants:,} by tenants" if claims.fit else "but the largest tenant does not fit on one"
    yield Row(f"{_store(found)} shards", f"{claims.primaries:,}", f"{claims.by_memory:,} by memory, {claims.by_cpu:,} by CPU, {tenants}")
    yield Row("  memory", f"{amount(claims.bytes)} in all", f"{claims.alive:,} claims; {amount(claims.bytes_each)} the fullest shard")
    yield Row("  CPU", f"{_hundredths(claims.cores_hundredths)} cores", f"{claims.generations} generations; one core a shard")
    yield Row("  all lost", lasting(claims.rebuild_s), "of 503 until everything is claimed again")
    yield Row("  network", f"{amount(found.demand.network.redis)}/s")
    if claims.in_process:
        yield Row("  or none", "", f"`parshall up` keeps up to {IN_PROCESS_CLAIMS:,} claims itself")


def _rating_rows(found: Sizing) -> Iterator[Row]:
    kafka, raters, postgres, w = found.demand.kafka, found.demand.raters, found.demand.postgres, found.workload
    yield Row("Kafka partitions", f"{kafka.partitions:,}", "as given" if w.partitions else "two a rater, at least 6")
    yield Row("  produced", f"{amount(kafka.bytes_per_s)}/s", f"{kafka.records_per_s:,} records/s")
    yield Row("  disk", amount(kafka.retained_bytes), f"of all brokers: {w.replication} copies, {lasting(w.retention_s)}")
    yield Row("  network", f"{amount(found.demand.network.kafka)}/s")
    yield Row("Raters", f"{raters.needed:,}", "" if raters.fit else f"but only {kafka.partitions:,} can work: one a partition")
    yield Row("PostgreSQL cores", f"{postgres.cores:,}", f"{amount(postgres.wal_bytes_per_s)}/s of write-ahead log")
    yield Row("  records", amount(postgres.record_bytes), f"{postgres.record_rows:,} rows, {w.kept_months} months")
    if w.archived_s:
        yield Row("  archives", amount(postgres.archive_bytes), f"files, of records that are {lasting(w.archived_s)} old")
    yield Row("  usage", amount(postgres.usage_bytes), f"{postgres.usage_rows:,} rows at most")
    yield Row("  series", amount(postgres.series_bytes), f"{postgres.series_rows:,} rows at most")
    yield Row("  charge lines", amount(postgres.line_bytes), f"{postgres.line_rows:,} rows at most")
    yield Row("  disk", amount(postgres.all_bytes), "without write-ahead log and copies")


def _aligned(rows: Iterable[Row]) -> list[str]:
    table = list(rows)
    first, second = (max(len(row[column]) for row in table) for column in (0, 1))
    return [f"{row.what.ljust(first)}  {row.needed.rjust(second)}  {row.why}".rstrip() for row in table]


# ---- what breaks


def _breaks(found: Sizing) -> str:
    lines = [_wrapped(found.bottleneck, ""), _wrapped(f"What helps: {found.limits[0].remedy}.", "  ")]
    later = [limit for limit in found.limits[1:] if limit.breaks]
    if later:
        lines.append("Then, each for itself:")
        lines += [_limit(limit) for limit in later]
    return "\n".join(lines)


def _limit(limit: Limit) -> str:
    return _wrapped(f"{limit.part}, beyond {limit.events_per_second:,} events/s: {limit.remedy}.", "  ")


def _wrapped(text: str, indent: str) -> str:
    return fill(text, _WIDTH, initial_indent=indent, subsequent_indent=indent + "  ")


def _settings(found: Sizing) -> str:
    rows = [Row(f"  {name}", f"{least:,}", f"instead of {default:,}") for name, least, default in found.settings]
    return "\n".join(["Settings of each writer that must be raised, to at least:", *_aligned(rows)])


# ---- constants


def constants_table(constants: Constants = Constants()) -> str:  # noqa: B008 - they do not change
    """Markdown."""
    lines = ["| what | measured | margin | command |", "|---|---|---|---|"]
    lines += [f"| {c.what} | {c.value:,} {c.unit} | {c.margin_percent} % | `{c.measured_by}` |" for c in constants]
    return "\n".join(lines)


# ---- units


def amount(count: int) -> str:
    """Of bytes, with a tenth where that says something."""
    unit = 0
    while unit + 1 < len(_UNITS) and count >= 1024 << (10 * unit):
        unit += 1
    if unit == 0:
        return f"{count:,} B"
    return f"{_tenths(-(-10 * count // (1 << (10 * unit))))} {_UNITS[unit]}"


def lasting(seconds: int) -> str:
    """In its two largest units."""
    parts = [(seconds // 86_400 if seconds >= 3 * 86_400 else 0, "d")]
    rest = seconds - parts[0][0] * 86_400
    parts += [(rest // 3600, "h"), (rest // 60 % 60, "m"), (rest % 60, "s")]
    first = next((at for at, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"


def lasting_ms(milliseconds: int) -> str:
    return lasting(milliseconds // 1000) if milliseconds % 1000 == 0 else f"{milliseconds}ms"


def _tenths(count: int) -> str:
    return f"{count // 10:,}.{count % 10}"


def _hundredths(count: int) -> str:
    return f"{count // 100:,}.{count % 100:02}"


def _thousandths(count: int) -> str:
    """In hundredths."""
    return _hundredths(-(-count // 10))
