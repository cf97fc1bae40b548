"""The command line: which commands there are, and how every one of them ends.

Must not know: what a command does. Each has a file of its own, imported only when it is asked for: `parshall --help` imports none.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys

import click

from parshall.errors import EXIT_CODES, INTERRUPTED, UNAVAILABLE, Stop
from parshall.streams import give_up, open_missing, say

COMMANDS = {  # name -> (where it is, what it does)
    "up": ("parshall.up:up", "Run everything in one process tree, nothing else needed."),
    "ingest": ("parshall.ingest_role:ingest", "Run the HTTP edge alone, with Redis and Kafka."),
    "rate": ("parshall.rate_role:rate", "Run the rater alone, with Kafka and PostgreSQL."),
    "send": ("parshall.send:send", "Send files of events, as an edge worker would."),
    "flush": ("parshall.flush_commands:flush", "Read and change the flush interval of a running service."),
    "reload": ("parshall.reload_command:reload", "Let a running service read its configuration again."),
    "writer": ("parshall.writer_commands:writer", "See the writers, and finish those that will not come back."),
    "audit": ("parshall.audit:audit", "Prove from the stores that every event is where it should be."),
    "archive": ("parshall.archive_command:archive", "Move old counter records out of PostgreSQL into files."),
    "recharge": ("parshall.recharge_command:recharge", "Charge a final month again, by the price book in force."),
    "held": ("parshall.held_commands:held", "See what could not be rated, and go on."),
    "resend": ("parshall.resend:resend", "Produce counter records again that the counter log has lost."),
    "check": ("parshall.check:check", "Check a configuration, or print one with every setting."),
    "size": ("parshall.size_command:size", "Say what a workload needs of every part, and what breaks first."),
    "key": ("parshall.key:key", "Make an API key."),
}

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)

HELP = f"""Parshall counts usage events exactly once and turns them into charges.

\b
Examples:
  parshall up                       everything, on http://127.0.0.1:8080
  parshall send events.ndjson       send a file of events
  parshall check parshall.toml      is the configuration right?

{EXIT_CODES}"""


class Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click does it, without importing a command for its one line."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=Commands, help=HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=lambda *given: _version(*given), help="Print the version."
)
def parshall() -> None:
    pass


def _version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from parshall.version import version

        click.echo(f"parshall {version()}" if version() else "parshall, from a source tree that is not installed")
        context.exit()


def main() -> None:
    """Whatever happens, a person reads sentences and a script reads an exit code."""
    open_missing()
    _heed_signals()
    try:
        sys.exit(parshall.main(prog_name="parshall", standalone_mode=False) or 0)
    except Stop as stop:
        say(stop.message)
        sys.exit(stop.code)
    except click.exceptions.Exit as leave:
        sys.exit(leave.exit_code)
    except click.ClickException as error:
        _show(error)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        say("Interrupted.")
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has seen enough
        sys.exit(1)
    except OSError as error:
        sys.exit(_cannot_write(error) if error.errno in NO_ROOM else _nowhere() or _report_bug(error))
    except Exception as error:
        sys.exit(_report_bug(error))


def _heed_signals() -> None:
    """Ctrl-C is heard from here on (`__main__.py`); and who is the first process of a container must ask to be ended by SIGTERM at all,
    until a service heeds it in its own way."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))


def _show(error: click.ClickException) -> None:
    try:
        error.show()
    except OSError:
        give_up(sys.stderr)


def _cannot_write(error: OSError) -> int:
    give_up(sys.stdout)
    what = "Not everything could" if error.filename is None else f"{error.filename} cannot"
    say(f"{what} be written ({error.strerror}): make room, then run the same command again.")
    return UNAVAILABLE


def _nowhere() -> int | None:
    """Where this was started, no path that begins there can be found."""
    try:
        os.getcwd()
    except OSError:
        say("The folder that this was started in is gone: go to another one (cd), then start it again.")
        return UNAVAILABLE
    return None


def _report_bug(error: Exception) -> int:
    """A defect of ours. The traceback goes to a file: it is for us, not for the person who waits."""
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="parshall-", suffix=".txt", delete=False) as file:
        traceback.print_exception(error, file=file)
    say(f"Parshall has a defect: {type(error).__name__}: {error}. Please report it together with {file.name}.")
    return 1
