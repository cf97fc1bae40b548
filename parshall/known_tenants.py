"""The tenants that a data folder has ever served, so that none becomes another by a slip in the configuration.

Claims and journals know a tenant by its number, records, usage and charges by its name. Another number for a name would count its events
once more, another name for a number would hide its usage; neither can be seen from the events.

Belongs here: the rule, and DATA/tenants.json. Must not know: who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from buffer.disk import Disk
from parshall.settings import TenantSettings


class OtherTenant(Exception):
    """The message is one sentence for the operator."""


class _Known(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    tenants: dict[str, int]


def known_with(known: Mapping[str, int], tenants: Iterable[TenantSettings], file: str) -> dict[str, int]:
    """Name -> number, once these are served too; those that are gone stay. Pure; `file` is only for the message. Raises OtherTenant."""
    numbers = dict(known)
    names = {number: name for name, number in numbers.items()}
    for tenant in tenants:
        if (number := numbers.setdefault(tenant.name, tenant.number)) != tenant.number:
            raise OtherTenant(
                f"The tenant {tenant.name!r} has had the number {number} here ({file}), and its events would be counted again under "
                f"{tenant.number}: put {number} back."
            )
        if (name := names.setdefault(tenant.number, tenant.name)) != tenant.name:
            raise OtherTenant(
                f"The number {tenant.number} has been that of the tenant {name!r} here ({file}), and {tenant.name!r} would not see its "
                f"usage: put {name!r} back, or give {tenant.name!r} a number of its own."
            )
    return numbers


def check(file: str, disk: Disk, tenants: Iterable[TenantSettings]) -> None:
    """Raises OtherTenant."""
    known_with(read(file, disk), tenants, file)


def remember(file: str, disk: Disk, tenants: Iterable[TenantSettings]) -> None:
    """Raises OtherTenant, and then nothing is changed."""
    before = read(file, disk)
    after = known_with(before, tenants, file)
    if after != before:
        disk.replace(file, msgspec.json.encode(_Known(1, after)))


def read(file: str, disk: Disk) -> dict[str, int]:
    """Name -> number, of all that were ever served from there. Raises OtherTenant where the file is there and cannot be read."""
    try:
        return msgspec.json.decode(disk.read(file), type=_Known).tenants
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise OtherTenant(f"{file} cannot be read ({error.strerror}).") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise OtherTenant(f"{file} cannot be read ({error}): restore it, or remove it when no tenant was ever renamed.") from error
