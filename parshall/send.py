"""`parshall send`: what a person sees of sending files: options, the progress bar, the file of rejected events, the summary, exit codes.

Must not know: how bytes travel (send_client.py), how lines are cut (send_lines.py), what answers mean (send_answers.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

import click

from parshall.admin_client import key_option, key_or_demo, url_option
from parshall.errors import EXIT_CODES, FAILED, INTERRUPTED, OK, USAGE, Stop
from parshall.streams import harmless, say

if TYPE_CHECKING:
    from parshall.send_answers import Reject
    from parshall.send_client import Sender
    from parshall.send_lines import BadLine, Batch, Input

HELP = f"""Send FILEs of events, one JSON object a line, as an edge worker would.

A FILE may be gzipped; - is standard input, of which no line waits for longer than about a second. Every request is sent again until it is
answered: events are never counted twice, so an interrupted `send` is simply started again, and says how many events were already counted.

\b
Examples:
  parshall send events.ndjson
  zcat *.gz | parshall send -
  parshall send --url https://meter.example.com --key "$KEY" day-*.ndjson.gz

Rejected events go to FILE.rejected.ndjson with the reason of each. Exit code 1 says that there are some.

{EXIT_CODES}"""


@click.command(help=HELP)
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@url_option
@key_option
@click.option("--batch", default=1000, show_default=True, type=click.IntRange(1, 1_000_000), help="Events in one request.")
@click.option("--parallel", default=4, show_default=True, type=click.IntRange(1, 64), help="Requests under way at the same time.")
@click.option("--patience", default=300, show_default=True, type=click.IntRange(0), help="Seconds before a request is given up.")
@click.option("--rejects", metavar="PATH", help="Where rejected events go. [default: FILE.rejected.ndjson]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def send(
    files: tuple[str, ...], url: str, key: str | None, batch: int, parallel: int, patience: int, rejects: str | None, as_json: bool
) -> None:
    import asyncio

    from parshall.send_client import GaveUp, Sender, Target
    from parshall.send_lines import Input

    target = Target(url, key_or_demo(url, key), parallel, patience)
    inputs = [Input(name) for name in files]
    rejected = RejectFiles(rejects)
    rejected.spare(inputs)
    progress = Progress(inputs)
    sender = Sender(target, entropy=os.urandom, on_reject=rejected.write, on_wait=progress.waiting)
    stop: Stop | None = None
    try:
        with progress:
            batches = _all_batches(inputs, batch, progress)
            asyncio.run(sender.send(batches, lambda: progress.show(sender), progress.held))
    except Stop as error:
        later = _how_to_go_on(inputs) if isinstance(error, GaveUp) else []
        stop = Stop(" ".join([error.message, *later, *_gone_by(inputs, sender)]), error.code)
    except KeyboardInterrupt:
        stop = Stop(" ".join(["Interrupted.", *_how_to_go_on(inputs), *_gone_by(inputs, sender)]), INTERRUPTED)
    stop = _both(stop, rejected.close(inputs, complete=stop is None))
    _report(sender, rejected, as_json, stop)
    _leave(stop.code if stop else FAILED if sender.summary.rejected else OK)


def _both(first: Stop | None, other: Stop | None) -> Stop | None:
    if first is None or other is None:
        return first or other
    return first if other.message in first.message else Stop(f"{first.message} {other.message}", first.code)


def _how_to_go_on(inputs: list[Input]) -> list[str]:
    return [] if all(source.once for source in inputs) else ["Start the same command again to go on: nothing is counted twice."]


def _gone_by(inputs: list[Input], sender: Sender) -> list[str]:
    """What the same command will not read again."""
    told = []
    for source in inputs:
        lines = source.lines_read - sender.answered[source.name] if source.once else 0
        if lines > 0:
            name = "standard input" if source.name == "-" else source.name
            told.append(
                f"Of what was read from {name} it is not known whether up to {lines:,} of the last lines count: "
                "send them again from where they came, nothing is counted twice."
            )
    return told


def _all_batches(inputs: list[Input], size: int, progress: Progress) -> Iterator[Batch | BadLine]:
    for source in inputs:
        progress.current = source
        yield from source.batches(size)


def _report(sender: Sender, rejected: RejectFiles, as_json: bool, stop: Stop | None) -> None:
    if as_json:
        import json

        paths = ", ".join(rejected.paths) or None
        click.echo(json.dumps(sender.summary.as_json(paths, complete=stop is None), indent=2))
    else:
        click.echo(sender.summary.as_table(rejected.paths))
    if stop is not None:
        say(stop.message)


def _leave(code: int) -> None:
    """Not sys.exit: the reading thread may hang in standard input, and the interpreter would wait for its lock."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class RejectFiles:
    """One file of rejected events beside each input, or one for all. Written as the verdicts come."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._files: dict[str, IO[bytes]] = {}

    @property
    def paths(self) -> list[str]:
        return sorted(self._files)

    def path_for(self, source: str) -> str:
        return self._path or f"{'stdin' if source == '-' else source}.rejected.ndjson"

    def spare(self, inputs: list[Input]) -> None:
        """What is sent must not be overwritten by what is rejected."""
        for name in (source.name for source in inputs if source.name != "-"):
            for path in map(self.path_for, (source.name for source in inputs)):
                if os.path.exists(path) and os.path.samefile(path, name):
                    raise Stop(
                        f"Rejected events would be written over {name}, which is to be sent: choose another place with --rejects.", USAGE
                    )

    def write(self, reject: Reject) -> None:
        path = self.path_for(reject.file)
        try:
            if path not in self._files:
                self._files[path] = open(path, "wb")  # noqa: SIM115 - open until the end, `close` closes it
            self._files[path].write(reject.encode())
        except OSError as error:
            raise _cannot_write(path, error) from error

    def close(self, inputs: list[Input], *, complete: bool) -> Stop | None:
        """What an earlier run wrote about a file goes when this run found nothing wrong with it. A pipe brings something else each time.
        Returns why not all could be written."""
        stop = None
        for path, file in self._files.items():
            try:
                file.close()
            except OSError as error:
                stop = _cannot_write(path, error)
        for path in {self.path_for(source.name) for source in inputs} - set(self._files):
            if complete and os.path.exists(path) and self._path is None and path != self.path_for("-"):
                os.unlink(path)
        return stop


def _cannot_write(path: str, error: OSError) -> Stop:
    return Stop(f"Cannot write rejected events to {path}: {error.strerror}; choose another place with --rejects.", FAILED)


class Progress:
    """A bar on a terminal, nothing elsewhere (but a line each time the service has to be waited for)."""

    def __init__(self, inputs: list[Input]) -> None:
        self.current: Input | None = None
        self._inputs = inputs
        self._shown = sys.stderr.isatty()
        self._waiting = ""
        self._last_said = ""
        sizes = [source.size for source in inputs]
        length = None if None in sizes else max(1, sum(size or 0 for size in sizes))
        self._bar = click.progressbar(
            iter(()) if length is None else None, length=length, file=sys.stderr, hidden=not self._shown, label="sending", show_pos=False
        )

    def __enter__(self) -> None:
        self._bar.__enter__()

    def __exit__(self, *exc: object) -> None:
        self._bar.render_finish()

    def held(self) -> Batch | None:
        return self.current.held() if self.current is not None else None

    def show(self, sender: Sender) -> None:
        summary = sender.summary
        self._bar.label = f"{summary.counted:,} counted, {summary.rejected:,} rejected"
        step = sum(source.position for source in self._inputs) - self._bar.pos
        if step:
            self._bar.update(step)
        elif self._shown:
            self._bar.render_progress()

    def waiting(self, why: str) -> None:
        if why and not self._shown and why.partition(";")[0] != self._last_said:
            say(f"waiting: {why}")
            self._last_said = why.partition(";")[0]
        if why and self._shown:
            self._bar.label = harmless(why[:60])
            self._bar.render_progress()
