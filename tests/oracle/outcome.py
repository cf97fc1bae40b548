"""All that must come out of what was sent.

    python -m tests.oracle.outcome --config parshall.toml --sent sent.ndjson --now 2026-11-24T10:00:00+00:00

`sent.ndjson` has one line a request that was answered, in the order of the answers: {"tenant", "file", "first", "count"}: that file's
lines from the `first` on (0 is the first of the file). Phases that must not overtake each other are told apart by their order alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.oracle.charges import Charges, charge
from tests.oracle.config import Config, read_config
from tests.oracle.ledger import Ledger, Sent, accepted_of, judge
from tests.oracle.usage import Usage, add_up


@dataclass(frozen=True)
class Outcome:
    config: Config
    ledger: Ledger
    usage: Usage  # in each meter's own windows
    charges: Charges


def outcome(config_file: Path, sent_file: Path, now: datetime) -> Outcome:
    config = read_config(config_file)
    ledger = judge(read_sent(sent_file), config, now)
    usage = add_up(accepted_of(ledger), config)
    return Outcome(config, ledger, usage, charge(usage, config))


def read_sent(sent_file: Path) -> Iterator[Sent]:
    files: dict[str, list[bytes]] = {}
    for record in sent_file.read_text().splitlines():
        request = json.loads(record)
        name = request["file"]
        if name not in files:
            files[name] = (sent_file.parent / name).read_bytes().split(b"\n")
        for line in files[name][request["first"] : request["first"] + request["count"]]:
            yield Sent(request["tenant"], line)


def main() -> None:
    parser = argparse.ArgumentParser(description="What must come out of what was sent.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--sent", type=Path, required=True)
    parser.add_argument("--now", type=datetime.fromisoformat, required=True)
    arguments = parser.parse_args()
    result = outcome(arguments.config, arguments.sent, arguments.now)
    for tenant, ledger in result.ledger.tenants.items():
        rejected = dict(ledger.rejected)
        print(f"{tenant}: received {ledger.received}, accepted {ledger.accepted}, duplicate {ledger.duplicate}, rejected {rejected}")
    for key, line in sorted(result.charges.items(), key=str):
        print(f"{key.tenant} {key.period} {key.subject!r} {key.meter} {dict(key.dimensions)}: {line.quantity} -> {line.amount}")


if __name__ == "__main__":
    main()
