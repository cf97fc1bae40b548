"""What a person is told when a command cannot go on: one sentence, and an exit code that a script can rely on.

Belongs here: the exit codes and the one exception that carries them. Must not know: any part of the service.
"""

from __future__ import annotations

OK = 0
FAILED = 1  # it ran, and something is wrong: events were rejected, a file does not check
USAGE = 2  # the command line or the configuration cannot be used; nothing was started
UNAVAILABLE = 3  # a service, a port or a folder was not to be had (any more): the same command may work later
REFUSED = 4  # going on could lose or count twice; a person must decide. A supervisor must not start it again
INTERRUPTED = 130  # Ctrl-C before the end

EXIT_CODES = """\b
Exit codes:
  0    done
  1    done, but something is wrong with the input (the output says what)
  2    the command line or the configuration cannot be used
  3    a service, port or folder is not available; try again later
  4    refused, because going on could lose or double data; needs a decision
  130  interrupted"""


class Stop(Exception):
    """The command ends here. The message is complete sentences for the person at the terminal, never a traceback."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
