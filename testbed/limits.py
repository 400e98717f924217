"""Limits: this process's own, raised and kept to, and what a node takes of the machine's."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
from dataclasses import dataclass

from testbed.errors import MachineError

#: No program of ours comes near it.  Where the hard limit is a thousand million, children that
#: close every descriptor they could have would take minutes.
MOST_FILES = 1 << 16
FILES_PER_NODE = 6  # to run a command on a node: a connection, what it reads and writes
SPARE = 16  # file descriptors left for what is opened beside the work that is counted
#: setrlimit(2), errno(3): the limit of this process, and that of the machine.
EXHAUSTED = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Takes:
    """A role's share of this machine's limits on one node, about as much as was measured.

    ``files`` is how many files one of its daemons may have open, ``tasks`` the processes and
    threads of all, ``inotify`` their inotify instances.
    """

    files: int = 0
    tasks: int = 0
    inotify: int = 0


def raise_soft() -> None:
    """Raise the soft limits of open files and processes to the hard ones, as far as is of use.

    A login has a soft limit of 1024 open files, kept low for programs that use select(2), which
    this one does not.  Nodes are not affected: their pid 1 gives its children limits of its own.
    """
    for which, most in ((resource.RLIMIT_NOFILE, MOST_FILES), (resource.RLIMIT_NPROC, math.inf)):
        soft, hard = resource.getrlimit(which)
        wanted = hard if _size(hard) <= most else int(most)
        if _size(soft) < _size(wanted):
            with contextlib.suppress(OSError, ValueError):  # then it stays as it was
                resource.setrlimit(which, (wanted, hard))


def _size(limit: int) -> float:
    return math.inf if limit == resource.RLIM_INFINITY else limit


def free_files() -> int:
    """How many more files this process may open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        taken = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (names alone)
        return max(0, int(min(_size(soft), MOST_FILES)) - taken)
    except OSError:  # not even one for the folder
        return 0


def require(files: int, what: str, *, hard: bool = False) -> None:
    """Raise MachineError where this process may not have so many open files.

    With ``hard`` the hard limit counts: that of a node's daemons.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[hard]
    if _size(limit) < files:
        raise MachineError(
            f"a process may have {limit} open files here, and {what} needs {files}",
            hint=f"raise the limit as root: ulimit -n {files}",
        )


def at_once(most: int, *, files: int) -> int:
    """How many pieces of work may run at once, each with up to ``files`` open files.

    At least 1, at most ``most``.
    """
    return max(1, min(most, (free_files() - SPARE) // files))


def exhausted(error: OSError) -> MachineError | None:
    """The error to raise instead, if ``error`` says that no more files can be opened."""
    if error.errno not in EXHAUSTED:
        return None
    if error.errno == errno.ENFILE:
        return MachineError(
            "no more files can be opened on this machine",
            hint="raise its limit (sysctl fs.file-max), or end other programs",
        )
    return no_more_files()


def no_more_files() -> MachineError:
    """The error for a process that has as many open files as it may have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(1024, 2 * soft)
    who = "" if wanted <= _size(hard) else " as root"
    return MachineError(
        f"testbed has reached its limit of {soft} open files",
        hint=f"raise the limit{who}: ulimit -n {wanted}",
    )
