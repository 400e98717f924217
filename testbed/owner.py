"""The user whose folders are used, and who owns new files in them.

``sudo`` sets SUDO_UID and SUDO_GID to its caller.  With ``sudo -E``, HOME is the caller's too.
New files of root in the caller's folders are given to the caller, who otherwise could not write
there any more.  Another user's HOME, without sudo (``su``, a container), is not used: root then
uses its own folders.

Existing files never change their owner, and no link is followed to change one.
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
    """Return the user who called sudo; None if not root, or without sudo."""
    uid, gid = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() != ROOT or not (uid.isdecimal() and gid.isdecimal()) or int(uid) == ROOT:
        return None
    return Owner(int(uid), int(gid))


# -- which folders are used ----------------------------------------------------------------


def home() -> Path:
    """Return the home folder for cache, state and configuration.

    That is HOME, unless we are root and HOME belongs neither to root nor to sudo's caller.
    """
    given = Path.home()
    return given if _is_ours(given) else roots_home()


def base(variable: str, below: str) -> Path:
    """Return an XDG base folder: ``variable``, or the folder ``below`` the home folder."""
    given = os.environ.get(variable, "")
    # The specification requires ignoring relative paths.
    if given and Path(given).is_absolute() and _is_ours(Path(given)):
        return Path(given)
    return home() / below


def cache() -> Path:
    """Return ``$TESTBED_CACHE``, or testbed in the user's cache folder."""
    if given := os.environ.get("TESTBED_CACHE"):
        return Path(given)
    return base("XDG_CACHE_HOME", ".cache") / "testbed"


def login_home() -> Path:
    """Return the home folder of sudo's caller, or of this user, from the passwd database.

    OpenSSH's client looks there, regardless of HOME.
    """
    who = caller()
    try:
        return Path(pwd.getpwuid(who.uid if who else os.geteuid()).pw_dir)
    except KeyError:  # a user of a container may have no entry
        return Path.home()


def expanded(path: str) -> str:
    """Return a path with the home folder of :func:`login_home` for a ~ at its beginning."""
    return str(login_home()) + path[1:] if path.partition("/")[0] == "~" else path


def roots_home() -> Path:
    """Return root's home folder from the passwd database, regardless of HOME."""
    try:
        return Path(pwd.getpwuid(ROOT).pw_dir)
    except KeyError:  # the database may be missing
        return Path("/root")


def for_tools(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment for other programs without variables that name a user's folder.

    As root, they would leave root's files in such a folder, for instance in its cache.
    """
    found = dict(environment)
    if os.geteuid() != ROOT:
        return found
    for name in BASES:
        given = found.get(name)
        # Folders that we chose ourselves stay.
        if given and given == os.environ.get(name) and uid_of(Path(given)) != ROOT:
            del found[name]
    if uid_of(Path(found.get("HOME", "/"))) != ROOT:
        found["HOME"] = str(roots_home())
    return found


def uid_of(folder: Path) -> int:
    """Return the owner of a folder, or of the one in which it would be created."""
    return existing(folder).stat().st_uid


def existing(folder: Path) -> Path:
    """Return the absolute path of a folder, or of the nearest one above it that exists.

    A folder that this user may not look at does not exist here.
    """
    there = folder.absolute()
    while there != there.parent:
        with contextlib.suppress(OSError):
            there.stat()
            break
        there = there.parent
    return there


def _is_ours(folder: Path) -> bool:
    who = caller()
    return os.geteuid() != ROOT or uid_of(folder) in {ROOT, who.uid if who else ROOT}


# -- whom new files belong to --------------------------------------------------------------


def give(new: int, folder: int) -> None:
    """Give a file that we created to sudo's caller, if its folder belongs to the caller.

    Both arguments are open descriptors.
    """
    who = caller()
    if who is not None and os.fstat(folder).st_uid == who.uid:
        with contextlib.suppress(PermissionError):  # root may lack CAP_CHOWN
            os.fchown(new, *who)


def give_entry(name: str, folder: int) -> None:
    """Give an entry that we created in a folder to sudo's caller, as :func:`give` does.

    ``folder`` is an open descriptor.  A link is not followed.
    """
    who = caller()
    if who is not None:
        _give_entry(name, folder, who)


def make(folder: Path, mode: int = 0o777) -> None:
    """Create a folder and its parents with the right owners; existing ones are unchanged.

    ``mode``, minus the umask, is the mode of the last folder.  Raises OSError, and MachineError
    if a link of the caller leads to another user's folder.
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
    """Refuse links as the kernel does in world-writable folders (fs.protected_symlinks)."""
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
    """Open a file for reading and writing and return its descriptor.

    A missing file is created; no link is followed.  Raises OSError.
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
    """Give a folder that we filled to sudo's caller, if it is in one of the caller's folders.

    Only root's files in it are given, and no file with a second hard link elsewhere.  A private
    folder (mode 0700) stays root's: in it, owners are data, for instance of an image.
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
    """Give files that are created at ``paths`` while the block runs to sudo's caller.

    They may be created by other programs.  Each path is a file, or a folder with its contents.
    Files keep their owner if they existed before, are in a folder of another user, or have a
    second hard link elsewhere.
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
    """Yield a path and everything below it, folders first: path, name, its folder's descriptor."""
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
