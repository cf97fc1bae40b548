"""Which file system a folder is on."""

from __future__ import annotations

from pathlib import Path

import pytest

from buffer.file_system import NETWORK, file_system_of, kind_of, network_file_system

TABLE = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 27 0:45 / /data\\040of\\040all rw,relatime shared:7 master:1 - nfs4 server:/export rw,vers=4.2,addr=10.0.0.1
40 27 0:46 /sub /mnt/share rw - cifs //server/share rw
41 27 0:45 /below /elsewhere rw - nfs4 server:/export rw
"""


@pytest.mark.parametrize(("device", "kind"), [("0:21", "proc"), ("254:0", "ext4"), ("0:45", "nfs4"), ("0:46", "cifs"), ("8:1", None)])
def test_the_table_of_mounts(device: str, kind: str | None) -> None:
    assert kind_of(device, TABLE) == kind
    assert (kind in NETWORK) == (kind in ("nfs4", "cifs"))


def test_this_machine() -> None:
    assert file_system_of("/proc") == "proc"
    assert network_file_system("/proc") is None


def test_a_folder_that_is_still_to_be_made_is_where_its_parent_is(tmp_path: Path) -> None:
    assert file_system_of(str(tmp_path / "not" / "made")) == file_system_of(str(tmp_path))
