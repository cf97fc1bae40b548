"""In which line of a TOML file a value stands, so that an error can name it. tomllib reads the values but forgets their places.

Pure. Must not know: which settings exist. The text has been parsed by tomllib before, so it is known to be well formed.
"""

from __future__ import annotations

import re

Path = tuple[str | int, ...]

_KEY_PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*""")


def lines_of(text: str) -> dict[Path, int]:
    """Path of every table and key at the start of a line -> its line, from 1. What stands inside a value has no entry of its own."""
    scan = _Scan()
    for number, line in enumerate(text.splitlines(), start=1):
        scan.line(number, line)
    return scan.lines


def line_of(lines: dict[Path, int], path: Path) -> int | None:
    """The line of the value, or of the innermost thing around it that has a line."""
    for length in range(len(path), 0, -1):
        if (line := lines.get(path[:length])) is not None:
            return line
    return None


class _Scan:
    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self._table: Path = ()
        self._last_element: dict[Path, int] = {}  # of each array of tables
        self._depth = 0  # brackets open in a value that goes on over lines
        self._quote = ""  # the quotes that end a string that goes on over lines

    def line(self, number: int, line: str) -> None:
        if self._depth or self._quote:
            self._value(line)
            return
        text = line.strip()
        if text.startswith("[["):
            self._array_element(number, text[2:])
        elif text.startswith("["):
            self._table = self._resolve(_key(text[1:])[0])
            self.lines.setdefault(self._table, number)
        elif text and not text.startswith("#"):
            parts, rest = _key(text)
            path = self._table
            for part in parts:
                path += (part,)
                self.lines.setdefault(path, number)
            self._value(rest)

    def _array_element(self, number: int, text: str) -> None:
        parts, _ = _key(text)
        array = (*self._resolve(parts[:-1]), parts[-1])
        self._last_element[array] = element = self._last_element.get(array, -1) + 1
        self._table = (*array, element)
        self.lines.setdefault(array, number)
        self.lines[self._table] = number

    def _resolve(self, parts: list[str]) -> Path:
        """[[a]] followed by [a.b] means b of the last element of a."""
        path: Path = ()
        for part in parts:
            path += (part,)
            if path in self._last_element:
                path += (self._last_element[path],)
        return path

    def _value(self, text: str) -> None:
        """Follow strings and brackets to know whether the value goes on in the next line."""
        at = 0
        while at < len(text):
            if self._quote:
                at = self._string(text, at)
            elif text[at] == "#":
                return
            elif text[at] in "\"'":
                quote = text[at]
                self._quote = quote * 3 if text.startswith(quote * 3, at) else quote
                at += len(self._quote)
            else:
                self._depth += (text[at] in "[{") - (text[at] in "]}")
                at += 1

    def _string(self, text: str, at: int) -> int:
        if self._quote[0] == '"' and text[at] == "\\":
            return at + 2
        if not text.startswith(self._quote, at):
            return at + 1
        at += len(self._quote)
        while len(self._quote) == 3 and text.startswith(self._quote[0], at):
            at += 1  # up to two quotes may stand before the closing three
        self._quote = ""
        return at


def _key(text: str) -> tuple[list[str], str]:
    """The parts of a dotted key at the start of the text, and what follows the sign after it."""
    parts = []
    at = 0
    while match := _KEY_PART.match(text, at):
        parts.append(next(group for group in match.groups() if group is not None))
        at = match.end()
        if not text.startswith(".", at):
            break
        at += 1
    return parts, text[at + 1 :]
