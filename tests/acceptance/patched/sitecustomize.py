"""Python runs this first in every process that tests/acceptance/edge.py starts with patches: it applies those that TEST_PATCHES names.

Belongs here: nothing but the call. (A patch has to reach the children of a supervisor too, which are started as modules of their own.)
"""

import os
import sys

if os.environ.get("TEST_PATCHES"):
    sys.path.insert(0, os.environ["TEST_PROJECT"])
    from tests.acceptance.patches import apply

    apply(os.environ["TEST_PATCHES"].split(","))
    sys.path.remove(os.environ["TEST_PROJECT"])
