"""Whether the options in redis.url can be used: what stands behind its question mark, certificate files above all.

Belongs here: what is told of them, where the setting stands. Must not know: which options there are (dedupe/redis_tls.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from parshall.settings_sources import Raw

if TYPE_CHECKING:
    from parshall.settings import Problem, RedisSettings


def check_options(raw: Raw, redis: RedisSettings, *, files: bool) -> list[Problem]:
    """`files`: also those that it names. Who asks no Redis need not have them."""
    from parshall.settings import Problem

    place = raw.place(("redis", "url"))
    found = [(shard, _fault(url, files)) for shard, url in enumerate(redis.urls)]
    several = len(found) > 1
    return [
        Problem(place, "redis.url", f"of shard {shard}, {fault[0]}" if several else fault[0], fault[1])
        for shard, fault in found
        if fault is not None
    ]


def _fault(url: str, files: bool) -> tuple[str, str] | None:
    """What is wrong, and what is allowed."""
    if "?" not in url:
        return None  # and nothing is imported that whoever asks no Redis can do without
    from dedupe.redis_address import RedisAddress, check_url
    from dedupe.redis_tls import BadOption

    try:
        RedisAddress.from_url(url) if files else check_url(url)
    except BadOption as bad:
        return bad.wrong, bad.allowed
    except ValueError as error:  # of redis-py, which names the option and not its value
        return str(error).rstrip("."), ""
    return None
