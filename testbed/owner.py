"""The user whose folders are used, and to whom new files in them belong.

``sudo`` names who called it in SUDO_UID and SUDO_GID.  With ``sudo -E`` HOME is that user's too,
and what root creates in folders of the user's is given to the user, or the user could not write
there any more.  A HOME of somebody else, of whom sudo says nothing (``su``, a container), is not
used: root has folders of its own.

Nothing that was there before changes its owner, and no link is followed to change one.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from testbed.errors import MachineError

ROOT = 0
#: Base folders of the XDG specification, and of Go, which keeps two more.
BASES = (
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
    "GOPATH", "GOCACHE", "GOMODCACHE",
)  # fmt: skip


class Owner(NamedTuple):
    """The numeric ids of a user, as chown(2) takes them."""

    uid: int
    gid: int


def caller() -> Owner | None:
    """The user on whose behalf root works; None for anybody else, and for root itself."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != ROOT or not (uid.isdecimal() and gid.isdecimal()) or int(uid) == ROOT:
        return None
    return Owner(int(uid), int(gid))


# -- which folders are used ----------------------------------------------------------------


def home() -> Path:
    """The home folder in whose subfolders cache, state and configuration are.

    That is HOME, unless we are root and it is neither root's nor of the user that called sudo.
    """
    given = Path.home()
    return given if _is_ours(given) else roots_home()


def base(variable: str, below: str) -> Path:
    """A base folder of the XDG specification: ``variable``, or a folder below the home folder."""
    given = os.environ.get(variable, "")
    # The specification has relative paths ignored.
    if given and Path(given).is_absolute() and _is_ours(Path(given)):
        return Path(given)
    return home() / below


def cache() -> Path:
    """``$TESTBED_CACHE``, or testbed in the user's cache folder."""
    if given := os.environ.get("TESTBED_CACHE"):
        return Path(given)
    return base("XDG_CACHE_HOME", ".cache") / "testbed"


def roots_home() -> Path:
    """Root's home folder by the passwd database, whatever HOME says."""
    try:
        return Path(pwd.getpwuid(ROOT).pw_dir)
    except KeyError:  # there need be no such database
        return Path("/root")


def for_tools(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for other programs, in which no variable leads root to a user's folder.

    They keep caches there, and would leave files of root's.
    """
    found = dict(environment)
    if os.geteuid() != ROOT:
        return found
    for name in BASES:
        given = found.get(name)
        # What we chose ourselves stays.
        if given and given == os.environ.get(name) and uid_of(Path(given)) != ROOT:
            del found[name]
    if uid_of(Path(found.get("HOME", "/"))) != ROOT:
        found["HOME"] = str(roots_home())
    return found


def uid_of(folder: Path) -> int:
    """The owner of a folder, or of the one in which it would be created."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return there.stat().st_uid


def _is_ours(folder: Path) -> bool:
    who = caller()
    return os.geteuid() != ROOT or uid_of(folder) in {ROOT, who.uid if who else ROOT}


# -- whom new files belong to --------------------------------------------------------------


def give(new: int, folder: int) -> None:
    """Give a file that we created to the caller of sudo, in a folder that is the caller's.

    Both are open descriptors.
    """
    who = caller()
    if who is not None and os.fstat(folder).st_uid == who.uid:
        with contextlib.suppress(PermissionError):  # root need not have CAP_CHOWN
            os.fchown(new, *who)


def make(folder: Path, mode: int = 0o777) -> None:
    """Create a folder and its parents, each for whom it belongs to; one that exists stays as it is.

    ``mode`` is the last one's, less the umask.  Raises OSError, and MachineError where a link of
    the caller's leads to a folder of somebody else's.
    """
    folder = folder.absolute()
    _refuse_links(folder)
    missing = []
    while not folder.is_dir():
        missing.append(folder.name)
        if folder == folder.parent:
            break
        folder = folder.parent
    place = _open(str(folder))
    try:
        for name in reversed(missing):
            inner = _make(name, place, mode if name == missing[0] else 0o777)
            os.close(place)
            place = inner
    finally:
        os.close(place)


def _open(name: str, *, within: int | None = None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(name, flags | (os.O_NOFOLLOW if within is not None else 0), dir_fd=within)


def _make(name: str, within: int, mode: int) -> int:
    try:
        os.mkdir(name, mode, dir_fd=within)
    except FileExistsError:  # another process was first
        return _open(name, within=within)
    made = _open(name, within=within)
    give(made, within)
    return made


def _refuse_links(folder: Path) -> None:
    """As the kernel does in folders that anybody may write to (fs.protected_symlinks)."""
    who = caller()
    if who is None:
        return
    for place in (folder, *folder.parents):
        if not place.is_symlink() or place.lstat().st_uid != who.uid or not place.exists():
            continue
        if place.stat().st_uid != who.uid:
            raise MachineError(
                f"{place} is a link of uid {who.uid} to a folder of uid {place.stat().st_uid}",
                hint="remove the link, or run testbed without SUDO_UID in its environment",
            )


def create(path: Path, mode: int = 0o666) -> int:
    """Open a file for reading and writing, created if need be; no link is followed.

    Returns the descriptor.  Raises OSError.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    place = _open(str(path.parent))
    try:
        while True:
            try:
                made = os.open(path.name, flags | os.O_CREAT | os.O_EXCL, mode, dir_fd=place)
            except FileExistsError:
                try:
                    return os.open(path.name, flags, dir_fd=place)
                except FileNotFoundError:  # removed in between
                    continue
            give(made, place)
            return made
    finally:
        os.close(place)


def give_tree(folder: Path) -> None:
    """Give a folder that we filled to the caller of sudo, where it is in a folder of the caller's.

    Of what is in it only what is root's is given, and no file that has a second name elsewhere.
    A folder that is private (mode 0700) stays root's: in it owners are data, such as of an image.
    """
    who = caller()
    if who is None or folder.parent.stat().st_uid != who.uid:
        return
    if not stat.S_IMODE(folder.lstat().st_mode) & 0o077:
        return
    with contextlib.suppress(PermissionError):
        for _, _, names, place in os.fwalk(folder):
            for name in names:
                found = os.stat(name, dir_fd=place, follow_symlinks=False)
                if found.st_uid == ROOT and found.st_nlink == 1:
                    os.chown(name, *who, dir_fd=place, follow_symlinks=False)
            if os.fstat(place).st_uid == ROOT:
                os.fchown(place, *who)


@contextlib.contextmanager
def giving(paths: Iterable[Path]) -> Iterator[None]:
    """Give the caller of sudo what is created meanwhile, perhaps by another program, at paths.

    Each is a file or a folder with all that is in it.  What was there before keeps its owner, and
    so does what is in a folder that is not the caller's, or has a second name elsewhere.
    """
    who = caller()
    places = [] if who is None else [path.absolute() for path in paths]
    before = {place: {path for path, *_ in _entries(place)} for place in places}
    try:
        yield
    finally:
        for place, old in before.items():
            for path, name, folder in _entries(place):
                if who is not None and path not in old:
                    _give_entry(name, folder, who)


def _give_entry(name: str, folder: int, who: Owner) -> None:
    with contextlib.suppress(FileNotFoundError, PermissionError):
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
        single = stat.S_ISDIR(found.st_mode) or found.st_nlink == 1
        if found.st_uid == ROOT and single and os.fstat(folder).st_uid == who.uid:
            os.chown(name, *who, dir_fd=folder, follow_symlinks=False)


def _entries(place: Path) -> Iterator[tuple[str, str, int]]:
    """What is at a place, and all that is in it, folders first: path, name, its folder opened."""
    try:
        parent = _open(str(place.parent))
    except OSError:
        return
    try:
        if os.path.lexists(place):
            yield place.name, place.name, parent
            for root, folders, names, inside in os.fwalk(place.name, dir_fd=parent):
                for name in (*folders, *names):
                    yield f"{root}/{name}", name, inside
    finally:
        os.close(parent)
