"""Where the values of settings come from: a TOML file, PARSHALL_… variables, options of the command line; and where each one stood.

Belongs here: reading and laying one source over the other. Must not know: which values are right.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from parshall.toml_lines import Path, line_of, lines_of

PREFIX = "PARSHALL_"


class Raw:
    """The values of all sources together, and the place of each."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.values: dict[str, Any] = {}
        self.syntax_error: tuple[str, str, str] | None = None  # place, setting, what is wrong
        self._lines: dict[Path, int] = {}
        self._elsewhere: dict[Path, str] = {}

    def read_file(self, file: str, content: bytes | None = None) -> None:
        """`content`: what is in it, where it was read before."""
        try:
            if content is None:
                with open(file, "rb") as opened:
                    content = opened.read()
            text = content.decode("utf-8-sig")  # some editors begin a file with a mark that is no TOML
            self.values = tomllib.loads(text, parse_float=Decimal)
            self._lines = lines_of(text)
        except OSError as error:
            self.syntax_error = (file, "", f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            self.syntax_error = (f"{file}:{line}", "", "is not UTF-8 text")
        except tomllib.TOMLDecodeError as error:
            self.syntax_error = _syntax_error(file, str(error))
        except ValueError:
            self.syntax_error = (file, "", "has a number with thousands of digits in it")
        except RecursionError:
            self.syntax_error = (file, "", "has tables or lists nested hundreds of levels deep in it")

    def put(self, path: Path, value: object, place: str) -> None:
        table = self.values
        for part in path[:-1]:
            inner = table.setdefault(str(part), {})
            if not isinstance(inner, dict):
                return  # the file has something else there, which is an error of its own
            table = inner
        table[str(path[-1])] = value
        self._elsewhere[path] = place

    def has(self, path: Path) -> bool:
        return self.value(path) is not None

    def value(self, path: Iterable[str | int]) -> Any:
        value: Any = self.values
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def place(self, path: Iterable[str | int]) -> str:
        path = tuple(path)
        if path in self._elsewhere:
            return self._elsewhere[path]
        line = line_of(self._lines, path)
        return f"{self.file}:{line}" if line is not None else self.file or "the configuration"


def read_raw(
    file: str | None,
    *,
    environment: Mapping[str, str],
    options: Mapping[str, object],
    defaults: Mapping[str, object],
    fields: Mapping[tuple[str, ...], Any],
    content: bytes | None = None,
) -> Raw:
    raw = Raw(file)
    if file is not None:
        raw.read_file(file, content)
    for path in fields:
        name = variable_name(path)
        if environment.get(name):
            raw.put(path, _typed(environment[name], fields[path].annotation), name)
    for dotted, value in options.items():
        if value is not None:
            raw.put(tuple(dotted.split(".")), value, _OPTION_OF.get(dotted, f"--{dotted.rpartition('.')[2]}"))
    for dotted, value in defaults.items():
        if not raw.has(tuple(dotted.split("."))):
            raw.put(tuple(dotted.split(".")), value, "the default of this command")
    return raw


_OPTION_OF = {"admin_listen": "--admin-listen", "redis.url": "--redis", "kafka.bootstrap": "--kafka", "postgres.dsn": "--postgres"}


def variable_name(path: tuple[str, ...]) -> str:
    return PREFIX + "_".join(path).upper()


def _typed(text: str, annotation: object) -> object:
    """A variable is always text; what does not look like the wanted type stays text and is refused later."""
    wanted = str(annotation)
    if "bool" in wanted and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.search(r"\bint\b", wanted) and not re.search(r"\bstr\b", wanted) and re.fullmatch(r"-?\d+", text, re.ASCII):
        return int(text)
    return text


def _syntax_error(file: str, message: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", message)
    if found is None:
        return file, "", f"is not TOML: {message[:1].lower()}{message[1:]}"
    what = found[1]
    return f"{file}:{found[2]}", "", f"is not TOML: {what[:1].lower()}{what[1:]}, column {found[3]}"
