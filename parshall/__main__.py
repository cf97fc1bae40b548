"""`python -m parshall`, and the program `parshall`.

Nothing is imported before Ctrl-C ends the process without a word: what is imported is ours to explain, and not a user's to read.
"""

import signal


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from parshall.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
