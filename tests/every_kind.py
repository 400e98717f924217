"""A tree with every kind of file that a layer of an image can hold, and what tells trees apart."""

from __future__ import annotations

import os
import stat
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OPAQUE = "trusted.overlay.opaque"
WHITEOUT = os.makedev(0, 0)
#: cap_net_raw+ep as the kernel writes it down (linux/capability.h, VFS_CAP_REVISION_2).
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)


def without_root(folder: Path) -> None:
    """Those kinds that anybody may make."""
    folder.mkdir()
    (folder / "file").write_text("text")
    (folder / "empty").touch()
    os.link(folder / "file", folder / "hard-link")
    (folder / "link").symlink_to("file")
    (folder / "link-to-nothing").symlink_to("/nowhere/at/all")
    (folder / "link-to-a-pipe").symlink_to("pipe")
    (folder / "link-to-a-folder").symlink_to(".")
    os.mkfifo(folder / "pipe", 0o600)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    with (folder / "sparse").open("wb") as file:
        file.truncate(1 << 20)
    (folder / "name with\nnewline").write_text("x")
    (folder / "sticky").mkdir()
    (folder / "sticky").chmod(0o1777)


def make(folder: Path) -> None:
    """All kinds; for root alone, on a file system with devices and extended attributes."""
    without_root(folder)
    (folder / "unreadable").write_text("x")
    (folder / "unreadable").chmod(0)
    os.mknod(folder / "whiteout", stat.S_IFCHR | 0o000, WHITEOUT)
    os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(folder / "no-such-driver", stat.S_IFCHR | 0o600, os.makedev(4095, 1))
    os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    (folder / "opaque").mkdir()
    os.setxattr(folder / "opaque", OPAQUE, b"y")
    (folder / "capable").write_bytes(b"#!")
    os.setxattr(folder / "capable", "security.capability", CAPABILITY)
    (folder / "setuid").write_bytes(b"#!")
    os.chown(folder / "setuid", 12345, 54321)
    (folder / "setuid").chmod(0o6755)
    os.lchown(folder / "link", 12345, 54321)


def described(folder: Path) -> dict[str, tuple[object, ...]]:
    """All that tells one tree from another, by path; sockets are left out, as tar leaves them."""
    found: dict[str, tuple[object, ...]] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = f"{root}/{name}"
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode):
                continue
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
            }
            regular = stat.S_ISREG(status.st_mode)
            found[os.path.relpath(path, folder)] = (
                stat.filemode(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_rdev,
                status.st_nlink if regular else 0,
                os.readlink(path) if stat.S_ISLNK(status.st_mode) else "",  # noqa: PTH115  as below
                _content(path) if regular else b"",
                attributes,
            )
    return found


def _content(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123  a name may be anything
        return file.read()
