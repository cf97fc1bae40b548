"""Runs a command as root of a user namespace in which no further one can be made: what a container without that right looks like.

    python without_namespaces.py PROGRAM ARGUMENT…

Belongs here: that namespace. Must not know: what runs in it. All uids are themselves in it, so 65534 is there to change to.
"""

from __future__ import annotations

import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000


def main() -> int:
    inside, outside = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) == 0
        os.write(inside[1], b"x")
        os.read(outside[0], 1)
        with open("/proc/sys/user/max_user_namespaces", "w") as limit:
            limit.write("0")
        os.execv(sys.argv[1], sys.argv[1:])
    os.read(inside[0], 1)
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/{child}/{name}", "w") as ids:
            ids.write("0 0 65536")
    os.write(outside[1], b"x")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    sys.exit(main())
