"""Resource limits of this process, and each node's use of the machine's limits."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import resource
from dataclasses import dataclass

from testbed.errors import MachineError

#: Far more than our programs need.  With a hard limit of a thousand million, children that close
#: every possible descriptor would take minutes.
MOST_FILES = 1 << 16
FILES_PER_NODE = 6  # to run a command on a node: a connection, what it reads and writes
SPARE = 16  # file descriptors reserved for files other than those counted
#: setrlimit(2), errno(3): the limits of this process and of the machine.
EXHAUSTED = (errno.EMFILE, errno.ENFILE)


@dataclass(frozen=True, slots=True)
class Takes:
    """A role's use of this machine's limits on one node, approximately as measured.

    ``files`` is the maximum number of open files of one of its daemons, ``tasks`` the number of
    processes and threads of all its daemons, ``inotify`` that of their inotify instances.
    """

    files: int = 0
    tasks: int = 0
    inotify: int = 0


def raise_soft() -> None:
    """Raise the soft limits of open files and processes to the hard ones, up to a useful value.

    A login session has a soft limit of 1024 open files, for programs that use select(2); this
    one does not.  Nodes are not affected: their pid 1 sets its own limits for its children.
    """
    for which, most in ((resource.RLIMIT_NOFILE, MOST_FILES), (resource.RLIMIT_NPROC, math.inf)):
        soft, hard = resource.getrlimit(which)
        wanted = hard if _size(hard) <= most else int(most)
        if _size(soft) < _size(wanted):
            with contextlib.suppress(OSError, ValueError):  # then the limit is unchanged
                resource.setrlimit(which, (wanted, hard))


def _size(limit: int) -> float:
    return math.inf if limit == resource.RLIM_INFINITY else limit


def free_files() -> int:
    """Return the number of files that this process may still open."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        taken = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  (names alone)
        return max(0, int(min(_size(soft), MOST_FILES)) - taken)
    except OSError:  # not even one for reading the folder
        return 0


def require(files: int, what: str, *, hard: bool = False) -> None:
    """Raise MachineError if this process may not have ``files`` open files.

    ``what`` names their purpose.  With ``hard``, check the hard limit, which applies to a node's
    daemons.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[hard]
    if _size(limit) < files:
        raise MachineError(
            f"{what} needs {files} open files, but a process may have only {limit}",
            hint=f"raise the limit as root: ulimit -n {files}",
        )


def at_once(most: int, *, files: int) -> int:
    """Return the number of tasks that may run at once, each with up to ``files`` open files.

    At least 1, at most ``most``.
    """
    return max(1, min(most, (free_files() - SPARE) // files))


def exhausted(error: OSError) -> MachineError | None:
    """Return the error to raise instead if ``error`` means too many open files, else None."""
    if error.errno not in EXHAUSTED:
        return None
    if error.errno == errno.ENFILE:
        return MachineError(
            "this machine has reached its limit of open files",
            hint="raise it (sysctl fs.file-max), or end other programs",
        )
    return no_more_files()


def no_more_files() -> MachineError:
    """Return the error for a process that has reached its limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(1024, 2 * soft)
    who = "" if wanted <= _size(hard) else " as root"
    return MachineError(
        f"testbed has reached its limit of {soft} open files",
        hint=f"raise the limit{who}: ulimit -n {wanted}",
    )
