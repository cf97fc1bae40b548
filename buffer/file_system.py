"""Which file system a folder is on, as far as Linux tells.

Belongs here: reading the table of mounts. Must not know: who must not be where.
"""

from __future__ import annotations

import os

# By their names in the table of mounts. A lock on one of these may not hold on another machine, or not after the network was away.
NETWORK = frozenset(
    {"afs", "ceph", "cifs", "fuse.ceph-fuse", "fuse.gcsfuse", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs"}
    | {"glusterfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
)


def network_file_system(folder: str) -> str | None:
    """The kind of network file system that a folder is on, or will be once it is made; None: on none that is known."""
    kind = file_system_of(folder)
    return kind if kind in NETWORK else None


def file_system_of(folder: str) -> str | None:
    """None where it cannot be told, as on systems that are not Linux."""
    folder = os.path.abspath(folder)
    while not os.path.exists(folder):
        folder = os.path.dirname(folder)
    device = os.stat(folder).st_dev
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            return kind_of(f"{os.major(device)}:{os.minor(device)}", table.read())
    except OSError:
        return None


def kind_of(device: str, mountinfo: str) -> str | None:
    """Lines as in proc(5): "36 35 98:0 /root /mounted rw shared:1 - ext4 /dev/sda1 rw"; a dash ends the optional fields."""
    for line in mountinfo.splitlines():
        fields, dash, rest = line.partition(" - ")
        if dash and fields.split(" ")[2] == device:
            return rest.split(" ")[0]
    return None
