"""Reading and unpacking a body within bounds."""

from __future__ import annotations

import asyncio
import gzip
import os
import zlib
from typing import Any

import pytest
from aiohttp import StreamReader
from aiohttp.base_protocol import BaseProtocol

from ingest.request_body import Refused, read, unpack, zstd

PACK = {"gzip": gzip.compress, "zstd": zstd.compress}
packings = pytest.mark.parametrize("packing", PACK)


@pytest.mark.parametrize("most", [6, 5])
async def test_a_body_that_comes_in_pieces_is_told_as_it_grows_and_taken_up_to_the_bound(most: int) -> None:
    loop = asyncio.get_running_loop()
    content = StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    pieces, told = [b"cde", b"f"], list[int]()

    def arrived(size: int) -> None:
        told.append(size)
        if pieces:
            content.feed_data(pieces.pop(0))
        else:
            content.feed_eof()

    content.feed_data(b"ab")
    if most == 6:
        assert await read(content, most, 60, arrived) == b"abcdef"
    else:
        with pytest.raises(Refused, match="larger than 5 bytes"):
            await read(content, most, 60, arrived)
    assert told == [size for size in (2, 5, 6) if size <= most]


@packings
def test_parts_are_joined_up_to_the_bound(packing: str) -> None:
    pack = PACK[packing]
    packed = pack(b"ab") + pack(b"") + pack(b"c")
    assert unpack(packed, packing, 3) == b"abc"
    with pytest.raises(Refused) as caught:
        unpack(packed, packing, 2)
    assert (caught.value.status, caught.value.detail) == (413, "The body is larger than 2 bytes: send fewer events in one request.")


@packings
def test_parts_are_few(packing: str) -> None:
    empty = PACK[packing](b"")
    assert unpack(empty * 1000, packing, 10) == b""
    with pytest.raises(Refused, match=f"The {packing} body has more than 1000 (members|frames)") as caught:
        unpack(empty * 1001, packing, 10)
    assert caught.value.status == 400


@pytest.mark.parametrize(("packing", "maker"), [("gzip", "zlib.decompressobj"), ("zstd", "zstd.ZstdDecompressor")])
def test_what_stands_behind_many_parts_is_not_copied_for_each(monkeypatch: pytest.MonkeyPatch, packing: str, maker: str) -> None:
    """Else a body within its bound holds up everybody for seconds."""
    make = {"gzip": zlib.decompressobj, "zstd": zstd.ZstdDecompressor}[packing]
    copied = 0

    class Watched:
        def __init__(self, *settings: Any, **options: Any) -> None:
            self._inner = make(*settings, **options)

        def __getattr__(self, name: str) -> Any:
            nonlocal copied
            found = getattr(self._inner, name)
            copied += len(found) if name == "unused_data" else 0
            return found

    monkeypatch.setattr(f"ingest.request_body.{maker}", Watched)
    content = os.urandom(2_000_000)
    assert unpack(PACK[packing](b"") * 500 + PACK[packing](content), packing, len(content)) == content
    assert copied < 500 * 100_000


@packings
def test_every_cut_and_what_is_no_part_are_told(packing: str) -> None:
    packed = PACK[packing](b"some events, some events, some events")
    for end in range(len(packed)):
        with pytest.raises(Refused, match=f"The {packing} body ends too early") as caught:
            unpack(packed[:end], packing, 100)
        assert caught.value.status == 400
    with pytest.raises(Refused, match=f"The (body is not {packing}|{packing} body ends too early)"):
        unpack(packed + b"m", packing, 100)
    for wrong in (b"[]" + packed, packed + b"more", b"nothing packed", zlib.compress(packed)):
        with pytest.raises(Refused, match=f"The body is not {packing}") as caught:
            unpack(wrong, packing, 100)
        assert caught.value.status == 400


def test_a_zstd_frame_cannot_make_us_hold_more_than_its_window() -> None:
    def packed(window_log: int) -> bytes:
        packer = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: window_log})
        return packer.compress(b"ab" * 1000) + packer.flush()  # in a stream the size is not known, so the window is what was asked for

    assert unpack(packed(23), "zstd", 2000) == b"ab" * 1000
    with pytest.raises(Refused, match="with a window of at most 8 MiB"):
        unpack(packed(24), "zstd", 2000)


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_nothing_packed(encoding: str) -> None:
    assert unpack(b"x", encoding, 1) == b"x"
