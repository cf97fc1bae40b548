"""What the oracle reads of a configuration: meters, tenants, price books. It trusts the file; checking it is not its business."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

WINDOW_SECONDS = {"1m": 60, "15m": 900, "1h": 3600, "1d": 86400}


@dataclass(frozen=True)
class Meter:
    name: str
    event_type: str
    aggregation: str  # count, sum, max
    value: tuple[str, ...]  # path below data; () for count
    dimensions: dict[str, tuple[str, ...]]  # name -> path below data
    window_s: int
    scale: int
    signed: bool


@dataclass(frozen=True)
class Tier:
    up_to: Decimal | None
    unit_price: Decimal


@dataclass(frozen=True)
class Price:
    meter: str
    model: str  # per_unit, graduated
    dimensions: tuple[str, ...]
    where: dict[str, str]
    free: Decimal
    per: Decimal
    tiers: tuple[Tier, ...]  # of per_unit: one, without a bound


@dataclass(frozen=True)
class PriceVersion:
    effective_from: date
    prices: tuple[Price, ...]


@dataclass(frozen=True)
class PriceBook:
    tenant: str
    currency: str
    decimal_places: int
    timezone: str
    versions: tuple[PriceVersion, ...]


@dataclass(frozen=True)
class Config:
    tenants: tuple[str, ...]
    meters: tuple[Meter, ...]
    books: dict[str, PriceBook]  # by tenant
    max_age_s: int
    max_skew_s: int

    def meter(self, name: str) -> Meter:
        return next(meter for meter in self.meters if meter.name == name)

    def meters_of(self, event_type: str) -> list[Meter]:
        return [meter for meter in self.meters if meter.event_type == event_type]


def read_config(file: Path) -> Config:
    raw = tomllib.loads(file.read_text(), parse_float=Decimal)
    ingest = raw.get("ingest", {})
    return Config(
        tenants=tuple(tenant["name"] for tenant in raw["tenants"]),
        meters=tuple(_meter(table) for table in raw["meters"]),
        books={table["tenant"]: _book(table) for table in raw.get("price_books", [])},
        max_age_s=ingest.get("max_age_s", 86400),
        max_skew_s=ingest.get("max_skew_s", 300),
    )


def _meter(table: dict[str, Any]) -> Meter:
    assert table.get("time", "event") == "event", "the oracle cannot know when an event arrived"
    return Meter(
        name=table["name"],
        event_type=table["event_type"],
        aggregation=table["aggregation"],
        value=_path(table["value"]) if "value" in table else (),
        dimensions={name: _path(path) for name, path in table.get("dimensions", {}).items()},
        window_s=WINDOW_SECONDS[table.get("window", "1h")],
        scale=table.get("scale", 0),
        signed=table.get("signed", False),
    )


def _path(text: str) -> tuple[str, ...]:
    return tuple(text.split(".")[1:])


def _book(table: dict[str, Any]) -> PriceBook:
    return PriceBook(
        tenant=table["tenant"],
        currency=table["currency"],
        decimal_places=table.get("decimal_places", 2),
        timezone=table.get("timezone", "UTC"),
        versions=tuple(PriceVersion(version["effective_from"], tuple(map(_price, version["prices"]))) for version in table["versions"]),
    )


def _price(table: dict[str, Any]) -> Price:
    tiers = table["tiers"] if table["model"] == "graduated" else [{"unit_price": table["unit_price"]}]
    return Price(
        meter=table["meter"],
        model=table["model"],
        dimensions=tuple(table.get("dimensions", ())),
        where={name: str(value) for name, value in table.get("where", {}).items()},
        free=Decimal(table.get("free", 0)),
        per=Decimal(table.get("per", 1)),
        tiers=tuple(Tier(Decimal(tier["up_to"]) if "up_to" in tier else None, Decimal(tier["unit_price"])) for tier in tiers),
    )
