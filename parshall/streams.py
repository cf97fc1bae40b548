"""Standard output and error, also where nothing arrives that is written there: a closed terminal, a pipe without a reader, a full disk.

Must not know: what is written.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

import click


def announce(text: str) -> None:
    """On standard output: what a service tells whoever started it. It runs on, whether or not that arrives."""
    try:
        click.echo(text)
    except OSError:
        give_up(sys.stdout)


def say(text: str) -> None:
    """On standard error: the same of what happens on the way."""
    try:
        click.echo(text, err=True)
    except OSError:
        give_up(sys.stderr)


def give_up(stream: TextIO) -> None:
    """What is written to it from here on goes nowhere, and so does what is in its buffer: else that would fail once more when Python ends,
    which makes the exit code 120."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
