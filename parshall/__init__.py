"""The front door: command line, settings, and which adapter goes where."""
