"""Locust and the cheap load generator send the same batches and get the same verdicts, from a real service."""

from __future__ import annotations

from bench import agreement


def test_the_two_load_generators_agree() -> None:
    assert agreement.main() == 0
