"""How every process of Parshall logs: lines for a person on a terminal, JSON for machines elsewhere; always to standard error.

Must not know: what is logged.
"""

from __future__ import annotations

import errno
import io
import logging
import sys
from typing import TextIO, cast

import structlog

from parshall.streams import give_up

OURS = ("buffer", "dedupe", "ingest", "parshall", "rater")  # of other packages only warnings are shown


def configure_logs(process: str, *, level: int = logging.INFO) -> None:
    """Once, at the start of a process. Libraries that use the standard logging come out in the same form."""
    terminal = sys.stderr.isatty()
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if terminal else "iso", utc=not terminal),
        _named(process),
    ]
    last: list[structlog.types.Processor] = [structlog.dev.ConsoleRenderer(colors=terminal, pad_event_to=0)]
    if not terminal:
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    stderr = cast(TextIO, _Lasting(sys.stderr))
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stderr)
    only_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[only_meta, *last]))
    logging.basicConfig(handlers=[handler], level=max(level, logging.WARNING), force=True)
    for package in OURS:
        logging.getLogger(package).setLevel(level)


class _Lasting(io.TextIOBase):
    """Standard error, also where nobody is at its other end any more: a terminal that was closed must not end the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        """Nobody will read any more. (A disk that is full may have room later.)"""
        if error.errno in (errno.EIO, errno.EPIPE):
            give_up(self._stream)


def _named(process: str) -> structlog.types.Processor:
    def add(_logger: object, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event["process"] = process
        return event

    return add
