"""The demo's settings, for benchmarks that put parts of the product together themselves. Belongs here: only that."""

from __future__ import annotations

from pathlib import Path

from parshall.settings import Settings, load_settings

DEMO = Path(__file__).resolve().parents[1] / "parshall" / "demo.toml"


def demo_settings(**options: object) -> Settings:
    return load_settings(str(DEMO), environment={}, options={name.replace("__", "."): value for name, value in options.items()})
