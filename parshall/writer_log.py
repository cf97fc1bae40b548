"""The counter log as the commands about writers use it: open while they need it, its troubles told in one sentence.

Must not know: which log it is, what is asked of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from parshall.errors import REFUSED, UNAVAILABLE, Stop

if TYPE_CHECKING:
    from buffer.counter_log import CounterLog
    from parshall.data_folder import DataFolder
    from parshall.settings import Settings


@asynccontextmanager
async def opened_log(settings: Settings, folder: DataFolder | None) -> AsyncIterator[CounterLog]:
    """Raises Stop."""
    from buffer.counter_log import LogUnavailable, UnfitLog
    from parshall.wiring import make_counter_log

    log = make_counter_log(settings, folder)
    try:
        await log.open()
        yield log
    except LogUnavailable as error:
        raise Stop(f"The counter log cannot be reached: {error}.", UNAVAILABLE) from error
    except UnfitLog as error:
        raise Stop(str(error), REFUSED) from error
    finally:
        await log.close()
