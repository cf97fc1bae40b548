"""A tenant stays who it is: its name and its number belong together for ever."""

from __future__ import annotations

from itertools import product

import pytest

from parshall.known_tenants import OtherTenant, check, remember
from parshall.settings import TenantSettings
from tests.lossy_disk import LossyDisk

FILE = "/data/tenants.json"
ACME, BETA = TenantSettings(name="acme", number=1), TenantSettings(name="beta", number=2)


@pytest.fixture
def disk() -> LossyDisk:
    made = LossyDisk()
    made.make_directory("/data")
    remember(FILE, made, [ACME, BETA])
    return made


def test_tenants_come_and_go_and_stay_known(disk: LossyDisk) -> None:
    for served in ([], [BETA], [TenantSettings(name="gamma", number=3)], [ACME, BETA]):
        remember(FILE, disk, served)
    assert disk.read(FILE) == b'{"v":1,"tenants":{"acme":1,"beta":2,"gamma":3}}'


@pytest.mark.parametrize(("name", "number"), [*product(("acme", "beta", "gamma"), (1, 2, 3))])
def test_every_pair_of_a_name_and_a_number(disk: LossyDisk, name: str, number: int) -> None:
    """Also where the other one is not served any more: what is kept of it is still there."""
    before, tenants = disk.read(FILE), [TenantSettings(name=name, number=number)]
    if (name, number) in (("acme", 1), ("beta", 2), ("gamma", 3)):
        check(FILE, disk, tenants)
        assert disk.read(FILE) == before, "who only asks leaves no trace"
        remember(FILE, disk, tenants)
        return
    for ask in (check, remember):
        with pytest.raises(OtherTenant) as refused:
            ask(FILE, disk, tenants)
        assert repr(name) in str(refused.value) and str(number) in str(refused.value) and "put " in str(refused.value)
    assert disk.read(FILE) == before


def test_a_file_that_cannot_be_read_is_named(disk: LossyDisk) -> None:
    for content in (b"{", b'{"v":1}', b"\xff"):
        disk.replace(FILE, content)
        with pytest.raises(OtherTenant, match=r"^/data/tenants\.json cannot be read"):
            remember(FILE, disk, [ACME])
