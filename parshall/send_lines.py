"""From files of one event a line to request bodies, and back from a place in a request to its line.

Belongs here: reading (plain, gzip, standard input), what may be sent as it stands, cutting into batches. Must not know: HTTP, verdicts.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import stat
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple, cast

import msgspec

from parshall.errors import USAGE, Stop

STDIN = "-"
LONGEST_LINE = 8 << 20
MOST_BODY_BYTES = 8 << 20  # half of what a service takes by default

MOST_NESTING = 500  # about half of what makes a service refuse the request as a whole
_TOO_DEEP = f"the line is nested more than {MOST_NESTING} levels deep, which no meter reads"
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[][{}]', re.DOTALL)  # a text, or a bracket outside of one
_STEP = {b"[": 1, b"{": 1, b"]": -1, b"}": -1}
_GZIP_MAGIC = b"\x1f\x8b"
_Object = dict[str, msgspec.Raw]


class Line(NamedTuple):
    number: int  # from 1
    text: bytes


class BadLine(NamedTuple):
    """A line that is no event and is not sent."""

    file: str
    line: Line
    detail: str


class Batch(NamedTuple):
    """One request. The same bytes are sent until they are answered."""

    file: str
    lines: tuple[Line, ...]
    body: bytes

    def halves(self) -> list[Batch]:
        middle = len(self.lines) // 2
        return [make_batch(self.file, self.lines[:middle]), make_batch(self.file, self.lines[middle:])]


def make_batch(file: str, lines: tuple[Line, ...]) -> Batch:
    return Batch(file, lines, b"[" + b",".join(line.text for line in lines) + b"]")


class Pile:
    """The lines of the batch that is not full yet. The thread that reads adds to it; what waits in it for too long, another takes."""

    def __init__(self, file: str, size: int, most_bytes: int = MOST_BODY_BYTES) -> None:
        self.blank = 0  # lines that are nothing to send
        self._file = file
        self._size = size
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._lines: list[Line] = []
        self._length = 0

    def add(self, line: Line) -> list[Batch]:
        """What is full by that."""
        with self._lock:
            full = [self._take()] if self._lines and self._length + len(line.text) > self._most_bytes else []
            self._lines.append(line)
            self._length += len(line.text) + 1
            return [*full, self._take()] if len(self._lines) == self._size else full

    def take(self) -> Batch | None:
        with self._lock:
            return self._take() if self._lines else None

    def _take(self) -> Batch:
        lines, self._lines, self._length = tuple(self._lines), [], 0
        return make_batch(self._file, lines)


class Input:
    """One file, open. `position` tells how many bytes of it have been read, out of `size` (None: nobody knows).

    `once`: a pipe or a terminal, whose lines come when they come, and cannot be read again.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        try:
            self._raw = io.FileIO(0, closefd=False) if name == STDIN else io.FileIO(name)
            self.once = not stat.S_ISREG(os.fstat(self._raw.fileno()).st_mode)
            self._counted = _Counted(self._raw.readinto)
            buffered = io.BufferedReader(self._counted if self.once else self._raw, 1 << 18)
            self._gzip = buffered.peek(2)[:2] == _GZIP_MAGIC
        except OSError as error:
            raise Stop(f"Cannot read {name}: {error.strerror}.", USAGE) from error
        if self._gzip:
            self._counted = _Counted(_Unpacked(buffered.read1).readinto)
        self._file: IO[bytes] = io.BufferedReader(self._counted, 1 << 18) if self._gzip else buffered
        self._pile: Pile | None = None
        self.size = None if name == STDIN else os.fstat(self._raw.fileno()).st_size

    @property
    def position(self) -> int:
        if self.size is None:
            return 0
        try:
            return self._raw.tell()
        except (ValueError, OSError):  # closed: read to its end. Not asked first: the thread that reads may close it meanwhile
            return self.size

    @property
    def lines_read(self) -> int:
        """Of a file that is read once: those that are to be sent, and empty ones that were read ahead."""
        return self._counted.lines - (self._pile.blank if self._pile else 0)

    def held(self) -> Batch | None:
        """What has been read and waits for more, where more may be long in coming."""
        return self._pile.take() if self.once and self._pile else None

    def batches(self, size: int) -> Iterator[Batch | BadLine]:
        self._pile = Pile(self.name, size)
        try:
            yield from cut(self.name, self._file, self._pile)
        except EOFError as error:
            what = f"{self.name} is cut off; the lines before that place were sent"
            raise Stop(f"{what}: send the whole file once you have it, nothing is counted twice.", USAGE) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            what = f"{self.name} is damaged ({error}); the lines that could be read before it showed were sent"
            raise Stop(
                f"{what}, and some of them may be wrong, too: compare what was counted with where the file came from.", USAGE
            ) from error
        except OSError as error:
            raise Stop(f"Cannot read {self.name}: {error.strerror}.", USAGE) from error
        finally:
            if self.size is not None:
                self._raw.close()


class _Counted(io.RawIOBase):
    """Knows how many lines were read from it, also those that nobody has asked for yet."""

    def __init__(self, read_into: Callable[[Any], int | None]) -> None:
        self.lines = 0
        self._read_into = read_into
        self._in_a_line = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        length = self._read_into(buffer)
        if length:
            piece = bytes(buffer[:length])
            self.lines += piece.count(b"\n")
            self._in_a_line = not piece.endswith(b"\n")
        elif length == 0 and self._in_a_line:  # the last line may lack its end
            self.lines += 1
            self._in_a_line = False
        return length


class _AsItComes:
    """For GzipFile, which asks for large pieces and would wait until a slow pipe has brought one."""

    def __init__(self, read1: Callable[[int], bytes]) -> None:
        self.read = read1


class _Unpacked:
    """What a gzip file holds, piece by piece: all that comes before a place that is damaged, where GzipFile alone drops a whole read."""

    def __init__(self, read1: Callable[[int], bytes]) -> None:
        self._file = gzip.GzipFile(fileobj=cast(IO[bytes], _AsItComes(read1)))

    def readinto(self, buffer: Any) -> int:
        piece = self._file.read1(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)


def cut(name: str, file: IO[bytes], pile: Pile) -> Iterator[Batch | BadLine]:
    """Batches as `pile` makes them, in the order of the file; lines that are no JSON object one by one.

    What cannot be read further is raised once all that was read is out.
    """
    try:
        for number, text in _numbered(file):
            line = Line(number, text)
            if not text:
                pile.blank += 1
            elif (wrong := what_is_wrong(text)) is not None:
                yield BadLine(name, line, wrong)
            else:
                yield from pile.add(line)  # at once when it is full, not when the next line comes: that may be long in coming
    except (OSError, EOFError, zlib.error):
        if (rest := pile.take()) is not None:
            yield rest
        raise
    if (rest := pile.take()) is not None:
        yield rest


def what_is_wrong(text: bytes) -> str | None:
    """Only what would spoil the whole request is found here; whether it is a good event is for the service to say."""
    if len(text) > LONGEST_LINE:
        return f"the line is longer than {LONGEST_LINE} bytes"
    try:
        text.decode()
        msgspec.json.decode(text, type=_Object)
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except msgspec.ValidationError:
        if text.startswith(b"["):
            return "the line is a JSON array; one event a line is wanted (`jq -c '.[]'` turns an array into lines)"
        return "the line is JSON, but not an object"
    except msgspec.DecodeError as error:
        if not _is_json_but_for_half_pairs(text):
            return f"the line is not JSON: {error}"
    except RecursionError:
        return _TOO_DEEP
    return _TOO_DEEP if _nesting(text) > MOST_NESTING else None


def _is_json_but_for_half_pairs(text: bytes) -> bool:
    """Half of an emoji, cut by whoever wrote the line: the service counts such an event where no meter reads that text."""
    from ingest.decode import without_half_pairs

    try:
        msgspec.json.decode(without_half_pairs(text), type=_Object)
    except (msgspec.MsgspecError, RecursionError):
        return False
    return True


def _nesting(text: bytes) -> int:
    """How deep arrays and objects lie in each other; 0 where they are too few to lie deep."""
    if text.count(b"[") + text.count(b"{") <= MOST_NESTING:
        return 0
    depth = deepest = 0
    for token in _TOKEN.finditer(text):
        depth += _STEP.get(token[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _numbered(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if not line.endswith(b"\n"):
            while (rest := file.readline(1 << 16)) and not rest.endswith(b"\n"):
                pass  # the rest of a line that is too long is of no use
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        yield number, line if len(line) > LONGEST_LINE else line.strip()
