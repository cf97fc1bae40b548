"""The Python with which tests found what they have written down: bytecodes are its own, and so is the world that a seed makes."""

from __future__ import annotations

import sys

USUAL_PYTHON = sys.version_info[:2] == (3, 11)
