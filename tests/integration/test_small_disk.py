"""The small disk that other tests fill: it is full when it is said to be, and gone afterwards."""

from __future__ import annotations

import errno

import pytest

from tests import services
from tests.small_disk import assert_not_permitted, small_disk

SIZE = 4 << 20


def test_a_full_disk_takes_nothing_and_a_relieved_one_does() -> None:
    with small_disk(SIZE) as disk:
        if disk is None:
            assert_not_permitted()
            return
        kept, more = disk.path / "kept", disk.path / "more"
        kept.write_bytes(b"x" * 5000)
        disk.fill()
        with pytest.raises(OSError, match="No space left") as refused, open(more, "wb", buffering=0) as file:
            file.write(b"x")
        assert refused.value.errno == errno.ENOSPC
        disk.relieve()
        more.write_bytes(b"y" * (SIZE // 2))
        assert kept.read_bytes() == b"x" * 5000
        path = disk.path
    assert not path.exists()


def test_postgres_lives_through_a_full_disk() -> None:
    with small_disk(256 << 20) as disk:
        if disk is None:
            assert_not_permitted()
            return
        with services.postgres_server(disk, max_wal_size="32MB") as postgres:
            postgres.sql("create table t as select repeat('x', 500) as x from generate_series(1, 1000)")
            disk.fill()
            with pytest.raises(services.SqlFailed, match="No space left on device"):
                postgres.sql("insert into t select repeat('x', 500) from generate_series(1, 100000)")
            disk.relieve()
            if not postgres.running:
                postgres.start()
            postgres.sql("insert into t select 'y'")
            assert postgres.sql("select count(*) from t") == "1001\n"
