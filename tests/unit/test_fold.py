"""What a batch of counter records adds up to, whatever their order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buffer.counters import MeterDefinition
from buffer.record import Counter, CounterRecord
from rater.fold import Fold, Series, SeriesTable, name_digest, unstorable

SUM = MeterDefinition("bytes", "a" * 16, "sum", 0, 60, ("region",))
MAX = MeterDefinition("peak", "b" * 16, "max", 0, 60, ())
COUNT = MeterDefinition("calls", "c" * 16, "count", 0, 60, ())
METERS = (SUM, MAX, COUNT)
WRITER = bytes(16)


@st.composite
def counters(draw: st.DrawFn) -> Counter:
    index = draw(st.integers(0, 2))
    events = draw(st.integers(1, 5))
    value = events if METERS[index] is COUNT else draw(st.integers(-(10**38), 10**38) | st.integers(-3, 3))
    dimensions = (draw(st.sampled_from(["eu", "us"])),) if METERS[index] is SUM else ()
    return Counter(index, draw(st.sampled_from("ab")), draw(st.sampled_from("xy")), 60 * draw(st.integers(0, 1)), dimensions, value, events)


@given(st.lists(st.lists(counters(), max_size=12), max_size=6))
def test_folding_is_adding_up_and_taking_the_maximum(records: list[list[Counter]]) -> None:
    fold = Fold(SeriesTable())
    for record in records:
        fold.add(WRITER, CounterRecord(METERS, record, {"a": {"accepted": 1}}))
    expected: dict[tuple[object, ...], list[Counter]] = {}
    for counter in (counter for record in records for counter in record):
        expected.setdefault((METERS[counter.meter].name, *counter[1:5]), []).append(counter)
    found = {
        (series.meter.name, series.tenant, series.subject, start, series.dimensions): tuple(cell)
        for cells in (fold.sums, fold.maxima)
        for (series, start), cell in cells.items()
    }
    assert found == {
        key: ((max if key[0] == "peak" else sum)(one.value for one in group), sum(one.events for one in group))
        for key, group in expected.items()
    }
    assert fold.tallies == ({("a", WRITER, "accepted"): len(records)} if records else {})
    assert fold.counters == sum(map(len, records))


def test_a_series_is_known_by_its_names_and_by_nothing_else() -> None:
    assert name_digest("a", "b") != name_digest("ab") != name_digest("a", ["b"])
    one = Series("demo", SUM, "acme", ("eu",))
    assert one.key == Series("demo", SUM._replace(hash="f" * 16), "acme", ("eu",)).key
    others = [
        Series("demo", SUM, "acme", ("us",)),
        Series("demo", SUM, "eu", ("acme",)),
        Series("acme", SUM, "demo", ("eu",)),
        Series("demo", MAX, "acme", ("eu",)),
    ]
    assert len({series.key for series in [one, *others]}) == 5


def test_a_digest_is_a_stored_format() -> None:
    """Rows are found by it for ever: it must not change with a version of Python or of a library."""
    assert Series("demo", SUM, "acmé", ("eu", 'a"b')).key == "f0b7dfde8f260a81e3c4c97a6ed42e22"


def test_an_escaped_backslash_is_no_nul() -> None:
    sound = CounterRecord((MAX,), [Counter(0, "demo", "a\\u0000", 0, (), 1, 1)], {})
    assert unstorable(sound, b'"a\\\\u0000"') is None
    assert unstorable(CounterRecord((MAX,), [Counter(0, "demo", "a\0", 0, (), 1, 1)], {}), b'"a\\u0000"') is not None


def test_whatever_postgresql_could_not_keep_is_found_wherever_it_stands() -> None:
    """A number beyond its column, and U+0000 in any name."""
    good = Counter(0, "demo", "acme", 0, ("eu",), 1, 1)
    most = ((1 << 63) - 1) >> 16

    def why(counter: Counter = good, meter: MeterDefinition = SUM, tallies: dict[str, dict[str, int]] | None = None) -> str | None:
        return unstorable(CounterRecord((meter,), [counter], tallies or {}), b'"\\u0000"')

    assert why() is why(good._replace(events=most), tallies={"demo": {"accepted": most}}) is None
    assert "events" in (why(good._replace(events=most + 1)) or "")
    assert "tally" in (why(tallies={"demo": {"received": 1, "accepted": most + 1}}) or "")
    assert "window" in (why(good._replace(window_start_s=-60)) or "")
    names = [
        why(good._replace(tenant="\0")),
        why(good._replace(subject="a\0")),
        why(good._replace(dimensions=("\0",))),
        why(meter=SUM._replace(name="\0")),
        why(meter=SUM._replace(dimensions=("\0",))),
        why(tallies={"\0": {"accepted": 1}}),
        why(tallies={"demo": {"\0": 1}}),
    ]
    assert all("U+0000" in (told or "") for told in names), names
