"""The frames of the local log: what is committed, what is doubtful, what is torn, what is damage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from buffer.local_frames import COMMIT_BYTES, commit_frame, read_body, record_body, record_frame, scan

headers = st.lists(st.tuples(st.text(max_size=5), st.binary(max_size=9)), max_size=4).map(tuple)
values = st.binary(max_size=40) | st.integers(1, 2000).map(lambda size: b"compressible " * size)
batches = st.lists(st.lists(values, min_size=1, max_size=4), max_size=4)


def written(batches_of_values: list[list[bytes]], start: int) -> tuple[bytes, list[tuple[int, bytes]], list[int]]:
    """The bytes of committed batches; (position after it, value) of each record; the positions behind the commits."""
    data, expected, commits = b"", [], [start]
    for batch in batches_of_values:
        for value in batch:
            data += record_frame(record_body((("n", b"1"),), value), start + len(data))
            expected.append((start + len(data), value))
        data += commit_frame(start + len(data))
        expected[-1] = (start + len(data), expected[-1][1])
        commits.append(start + len(data))
    return data, expected, commits


@given(headers, values)
def test_bodies_round_trip(some_headers: tuple[tuple[str, bytes], ...], value: bytes) -> None:
    assert read_body(record_body(some_headers, value)) == (some_headers, value)


@given(batches, st.integers(0, 2**40))
def test_what_was_committed_is_read(some: list[list[bytes]], start: int) -> None:
    data, expected, commits = written(some, start)
    found = scan(data, start)
    assert [(position, read_body(body)[1]) for position, body in found.committed] == expected
    assert (found.committed_to, found.good_to, list(found.doubtful), found.damaged) == (commits[-1], commits[-1], [], False)


@given(batches, st.data())
def test_any_cut_leaves_whole_batches_and_is_no_damage(some: list[list[bytes]], choose: st.DataObject) -> None:
    data, expected, commits = written(some, 0)
    cut = choose.draw(st.integers(0, len(data)))
    found = scan(data[:cut], 0)
    assert found.committed_to == max(position for position in commits if position <= cut)
    assert [(position, read_body(body)[1]) for position, body in found.committed] == [
        one for one in expected if one[0] <= found.committed_to
    ]
    assert not found.damaged
    known = dict(expected)
    for position, body in found.doubtful:
        assert position <= cut
        assert read_body(body)[1] == known.get(position, known.get(position + COMMIT_BYTES))


@given(batches.filter(bool), st.data())
def test_a_flipped_bit_is_damage_or_cut_off_but_never_misread(some: list[list[bytes]], choose: st.DataObject) -> None:
    data, expected, commits = written(some, 0)
    changed = bytearray(data)
    at = choose.draw(st.integers(0, len(data) - 1))
    changed[at] ^= 1 << choose.draw(st.integers(0, 7))
    found = scan(bytes(changed), 0)
    whole = max(position for position in commits if position <= at)
    assert found.committed_to == whole
    assert [(position, read_body(body)[1]) for position, body in found.committed] == [one for one in expected if one[0] <= whole]
    assert found.damaged == (at < len(data) - COMMIT_BYTES), "unless it is in the last commit frame, a commit follows"


@given(batches.filter(bool), st.integers(1, 1000))
def test_frames_are_good_in_their_place_only(some: list[list[bytes]], moved: int) -> None:
    data, _, _ = written(some, 0)
    found = scan(data, moved)
    assert (found.committed, found.doubtful, found.committed_to, found.damaged) == ([], [], moved, False)


def test_the_bytes_of_format_1() -> None:
    """Stored logs must stay readable: if this fails, the format's version has to rise."""
    assert record_frame(record_body((("n", b"1"),), b"v"), 77).hex() == "520c000000d3db930fcbba6069" + "93009192a16ec40131c40176"
    assert commit_frame(77).hex() == "4300000000" + "22a2b9169b3cfbe7"
