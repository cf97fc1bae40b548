"""One line for an outage of Kafka, however often its client library complains.

Belongs here: taking over the log of aiokafka. Must not know: producers, consumers, topics.

aiokafka logs every attempt to reconnect, several a second, as long as an outage lasts. The first complaint is passed on; the others are
counted until somebody calls `answered`, or until they have stopped for a while. Tracebacks are defects, and are always passed on.
"""

from __future__ import annotations

import logging

import structlog

_QUIET_S = 60  # after so long without a complaint the next one is a new outage
_CHOSEN = "Sending username and password in the clear"  # said at each connection; whoever chose it in the settings knows

log = structlog.get_logger()


class Outages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._last_s = 0.0  # when the latest complaint of this outage came; 0 when there is none
        self._held_back = 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            log.error("kafka client failed", detail=record.getMessage(), exc_info=record.exc_info)
            return
        if record.getMessage() == _CHOSEN:
            return
        if self._last_s == 0 or record.created - self._last_s > _QUIET_S:
            log.warning("trouble with kafka; more of the same is held back until it answers", detail=record.getMessage())
            self._held_back = 0
        else:
            self._held_back += 1
        self._last_s = record.created

    def answered(self) -> None:
        if self._last_s:
            log.info("kafka answers again", held_back=self._held_back)
            self._last_s = 0.0
            self._held_back = 0


_outages = Outages()


def take_over() -> None:
    """From now on aiokafka's complaints go through here only."""
    library = logging.getLogger("aiokafka")
    if _outages not in library.handlers:
        library.addHandler(_outages)
        library.propagate = False


def answered() -> None:
    """Kafka has answered: an outage, if there was one, is over."""
    _outages.answered()
