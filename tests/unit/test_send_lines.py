"""Cutting files of lines into request bodies."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parshall.errors import Stop
from parshall.send_lines import LONGEST_LINE, MOST_NESTING, BadLine, Batch, Input, Line, Pile, cut, make_batch, what_is_wrong


def items(text: bytes, size: int = 2, most_bytes: int = 1 << 20) -> list[Batch | BadLine]:
    return list(cut("f", io.BytesIO(text), Pile("f", size, most_bytes)))


def numbers(item: Batch | BadLine) -> list[int]:
    return [line.number for line in item.lines] if isinstance(item, Batch) else [item.line.number]


def test_lines_become_batches_that_know_their_line_numbers() -> None:
    found = items(b'{"a":1}\n\n{"b":2}\r\n{"c":3}')
    assert [numbers(item) for item in found] == [[1, 3], [4]]
    assert isinstance(found[0], Batch)
    assert found[0].body == b'[{"a":1},{"b":2}]'


def test_a_bad_line_costs_its_neighbours_nothing() -> None:
    found = items(b'{"a":1}\nnonsense\n{"b":2}\n[1]\n3\n\xff\n{"c":"\xc3"}\n{"d":4}\n', size=10)
    bad = {item.line.number: item.detail for item in found if isinstance(item, BadLine)}
    assert set(bad) == {2, 4, 5, 6, 7}
    assert "not JSON" in bad[2]
    assert "array" in bad[4]
    assert "not an object" in bad[5]
    assert "UTF-8" in bad[6]
    assert [numbers(item) for item in found if isinstance(item, Batch)] == [[1, 3, 8]]


def test_a_batch_is_cut_at_its_size_in_bytes_too() -> None:
    line = json.dumps({"x": "y" * 50}).encode()
    assert [numbers(item) for item in items(b"\n".join([line] * 4), size=100, most_bytes=130)] == [[1, 2], [3, 4]]


def test_a_line_that_is_too_long_is_named_and_the_next_one_is_read() -> None:
    found = items(b'{"x":"' + b"y" * (LONGEST_LINE + 100_000) + b'"}\n{"a":1}\n')
    assert isinstance(found[0], BadLine)
    assert "longer than" in found[0].detail
    assert numbers(found[1]) == [2]


def test_a_byte_order_mark_is_no_part_of_the_first_event() -> None:
    found = items(b'\xef\xbb\xbf{"a":1}\n')
    assert isinstance(found[0], Batch)
    assert found[0].body == b'[{"a":1}]'


@given(
    st.lists(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none(), st.lists(st.integers()))), max_size=12),
    st.integers(1, 5),
)
def test_what_is_sent_is_what_was_in_the_file(events: list[dict[str, object]], size: int) -> None:
    text = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    batches = [item for item in items(text, size) if isinstance(item, Batch)]
    assert [event for batch in batches for event in json.loads(batch.body)] == events
    assert all(len(batch.lines) == size for batch in batches[:-1])


def test_halves_are_the_whole() -> None:
    found = items(b'{"a":1}\n{"b":2}\n{"c":3}\n', size=3)[0]
    assert isinstance(found, Batch)
    first, second = found.halves()
    assert first.lines + second.lines == found.lines
    assert make_batch("f", found.lines) == found


def test_numbers_of_any_size_are_left_to_the_service() -> None:
    assert what_is_wrong(b'{"data":{"bytes":123456789012345678901234567890.5,"x":1e999}}') is None


@pytest.mark.parametrize("pair", [r"\ud800", r"\udc00", r"cut: \uD83D", r"\udc00\ud800", r"\\\ud800"])
def test_half_an_emoji_is_left_to_the_service(pair: str) -> None:
    """It counts such an event where no meter reads the text."""
    assert what_is_wrong(b'{"id":"1","data":{"note":"' + pair.encode() + b'"}}') is None
    assert "not JSON" in str(what_is_wrong(b'{"id":"1","data":{"note":"' + pair.encode() + b'"}'))


@pytest.mark.parametrize("deep", [MOST_NESTING + 1, 1_100, 5_000, 200_000])
def test_a_line_that_would_cost_its_neighbours_is_found(deep: int) -> None:
    for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
        text = b'{"x":' + opening * (deep - 1) + b"1" + closing * (deep - 1) + b"}"
        assert what_is_wrong(text) == f"the line is nested more than {MOST_NESTING} levels deep, which no meter reads"


def test_brackets_that_do_not_lie_in_each_other_are_no_depth() -> None:
    flat = b'{"a":[' + b",".join([b"[]"] * 5_000) + b'],"b":"' + b"[{" * 5_000 + rb"\"[[\\" + b'"}'
    assert what_is_wrong(flat) is None
    edge = MOST_NESTING - 1
    assert what_is_wrong(b'{"x":' + b"[" * edge + b"]" * edge + b"}") is None


def test_gzip_is_recognized_by_its_content(tmp_path: Path) -> None:
    text = b'{"a":1}\n{"b":2}\n'
    (tmp_path / "events").write_bytes(gzip.compress(text))
    source = Input(str(tmp_path / "events"))
    (batch,) = list(source.batches(10))
    assert isinstance(batch, Batch)
    assert batch.body == b'[{"a":1},{"b":2}]'
    assert source.position == source.size


def test_the_place_in_a_file_can_be_asked_for_while_another_thread_closes_it(tmp_path: Path) -> None:
    path = tmp_path / "e"
    path.write_bytes(b'{"id":"a"}')
    source = Input(str(path))
    descriptor = source._raw.fileno()
    kept = os.dup(descriptor)
    os.close(descriptor)  # gone, and the object does not know it yet: so it is for a moment within `close`
    assert source.position == source.size
    os.dup2(kept, descriptor)
    os.close(kept)
    assert list(source.batches(1)) == [Batch(str(path), (Line(1, b'{"id":"a"}'),), b'[{"id":"a"}]')]
    assert source.position == source.size


@pytest.mark.parametrize("damage", ["cut off", "a wrong sum at the end", "another byte in the middle"])
def test_of_a_gzip_file_that_is_damaged_all_lines_before_that_place_are_read(tmp_path: Path, damage: str) -> None:
    text = b"".join(json.dumps({"n": random.Random(n).random().hex()}).encode() + b"\n" for n in range(30_050))
    packed = bytearray(gzip.compress(text))
    if damage == "cut off":
        del packed[len(packed) // 2 :]
    elif damage == "a wrong sum at the end":
        packed[-5] ^= 1
    else:
        packed[len(packed) // 2] ^= 1
    (tmp_path / "events.gz").write_bytes(packed)
    unpacked = bytearray()
    unpacker, at = zlib.decompressobj(31), 0
    with contextlib.suppress(zlib.error):
        while at < len(packed):  # byte by byte: all that can be had
            unpacked += unpacker.decompress(packed[at : at + 1])
            at += 1
    found: list[Batch] = []
    told = "is cut off; the lines before that place were sent: send the whole" if damage == "cut off" else "is damaged .* may be wrong, too"
    with pytest.raises(Stop, match=told):
        found += (item for item in Input(str(tmp_path / "events.gz")).batches(1000) if isinstance(item, Batch))
    lines = [line.text for batch in found for line in batch.lines]
    whole = bytes(unpacked).split(b"\n")[:-1]
    good = next((at for at, line in enumerate(whole) if what_is_wrong(line) is not None), len(whole))
    assert lines[:good] == whole[:good] and len(lines) > 10_000
    assert len(whole) - len(lines) < 1000, "no more is missing than one piece that the unpacker keeps to itself"


def test_a_file_that_is_not_there_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Stop, match=r"Cannot read .*: No such file"):
        Input(str(tmp_path / "nothing"))


@pytest.mark.parametrize("packed", [False, True])
def test_of_a_pipe_what_was_read_can_be_taken_and_is_counted(packed: bool) -> None:
    reader, writer = os.pipe()
    text = b'{"a":1}\n\nnonsense\n{"b":2}\n{"c":3}'
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(gzip.compress(text) if packed else text)
    source = Input(f"/dev/fd/{reader}")
    assert source.once and source.held() is None
    batches = source.batches(10)
    bad = next(batches)
    assert numbers(bad) == [3]
    held = source.held()
    assert held is not None and numbers(held) == [1] and held.body == b'[{"a":1}]'
    assert source.held() is None
    (rest,) = batches
    assert numbers(rest) == [4, 5]
    assert source.lines_read == 4  # the empty one is nothing to send
    os.close(reader)


def test_what_is_held_of_a_file_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "f").write_text('{"a":1}\nnonsense\n')
    source = Input(str(tmp_path / "f"))
    next(source.batches(10))
    assert not source.once and source.held() is None
