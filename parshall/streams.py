"""Standard output and error, also where nothing arrives that is written there: a closed terminal, a pipe without a reader, a full disk.

Must not know: what is written.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

import click


def open_missing() -> None:
    """Standard streams that whoever started us has closed go nowhere. What is opened later would take their descriptors, and a child
    would be given it as one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)


def announce(text: str) -> None:
    """On standard output: what a service tells whoever started it. It runs on, whether or not that arrives."""
    try:
        click.echo(text)
    except OSError:
        give_up(sys.stdout)


def say(text: str) -> None:
    """On standard error: the same of what happens on the way."""
    try:
        click.echo(harmless(text), err=True)
    except OSError:
        give_up(sys.stderr)


def harmless(text: str) -> str:
    """Without what a terminal would obey: the text may be another's, a server's answer for one."""
    return "".join([character if character.isprintable() or character in "\n\t" else "\ufffd" for character in text])


def give_up(stream: TextIO) -> None:
    """What is written to it from here on goes nowhere, and so does what is in its buffer: else that would fail once more when Python ends,
    which makes the exit code 120."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
