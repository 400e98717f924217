"""Find running nodes by their processes.

A node is a process with the name ``testbed-init`` that is pid 1 of its own pid
namespace and belongs to root.  Its arguments name the lab and the node.  No
record on disk is needed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

from testbed.nodes.netns.agent import wait_readable

PROGRAM = b"testbed-init"
#: A virtual machine runs in a cell: namespaces and a cgroup like a node's.  All machines of a lab
#: that an external tool starts run in one hypervisor.  An uplink is the way out of a lab.
Kind = Literal["node", "fabric", "uplink", "cell", "hypervisor"]
KINDS = (b"node", b"fabric", b"uplink", b"cell", b"hypervisor")
#: Errors for a process that has ended, or is hidden from us.  Any other error must be raised: with
#: no free file descriptor, every node would seem to have ended.
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class Init:
    """Pid 1 of a running node.

    ``started`` tells it from a later process with the same number.  No file descriptor is
    held: a lab may have more nodes than this process may have open files.
    """

    pid: int
    kind: Kind
    lab: str
    node: str
    digest: str
    state: str  #: the state folder of the testbed that made it
    started: int = field(compare=False, repr=False)  #: see :func:`started`

    def alive(self) -> bool:
        """Tell whether pid 1 runs."""
        return not self.wait_dead(0)

    def kill(self) -> None:
        """SIGKILL; the kernel then ends every process of the node's pid namespace."""
        with self._held() as pidfd:
            if pidfd is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def wait_dead(self, timeout: float) -> bool:
        """Wait for the end of all processes of the node; return False after ``timeout`` seconds.

        Pid 1 is reaped last (pid_namespaces(7)).
        """
        with self._held() as pidfd:
            return pidfd is None or wait_readable(pidfd, timeout)

    @contextlib.contextmanager
    def _held(self) -> Iterator[int | None]:
        """Open a pidfd of the process; None if it is gone, even if its pid was reused."""
        with pinned(self.pid) as pidfd:
            yield pidfd if pidfd is not None and started(self.pid) == self.started else None


#: Errors of pidfd_open(2) without such a process.  If a thread of another process has the number by
#: now, it is EINVAL, and ENOENT since Linux 6.16.
NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)


@contextlib.contextmanager
def pinned(pid: int) -> Iterator[int | None]:
    """Open a pidfd of the process with this pid, or None.

    While it is open the pid is not reused, so all that is read belongs to this process.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno not in NO_PROCESS:
            raise
        yield None
        return
    try:
        yield pidfd
    finally:
        os.close(pidfd)


def started(pid: int) -> int | None:
    """Return the start time of a process in clock ticks since boot.

    (proc_pid_stat(5), field 22.)  None if there is no such process.
    """
    stat = _read(f"/proc/{pid}/stat", 4096)
    # The second field is the program's name in parentheses, which may hold spaces and more.
    return None if stat is None else int(stat.rpartition(b")")[2].split()[19])


def inits(*, state: str | None = None, lab: str | None = None) -> Iterator[Init]:
    """Find the nodes on this machine: all, or those of a state folder or of a lab."""
    for entry in os.listdir("/proc"):  # noqa: PTH208  (Path costs 3x in this loop)
        if not entry.isdigit():
            continue
        arguments = _arguments(int(entry))
        if arguments is None or (arguments[4] != (state or arguments[4])):
            continue
        if arguments[1] == (lab or arguments[1]) and (found := at(int(entry))) is not None:
            yield found


def at(pid: int) -> Init | None:
    """Return the node whose pid 1 has this pid on this machine, or None."""
    with pinned(pid) as pidfd:
        since = None if pidfd is None else started(pid)
        # Read now that the process is pinned: what is read is of one process.
        arguments = None if since is None else _arguments(pid)
        if since is None or arguments is None or not _is_pid_one(pid):
            return None
    kind, lab, node, digest, state = arguments
    return Init(pid, cast("Kind", kind), lab, node, digest, state, since)


def _arguments(pid: int) -> list[str] | None:
    line = _read(f"/proc/{pid}/cmdline", 8192)  # the state folder alone may take PATH_MAX
    if line is None:
        return None
    fields = line.split(b"\0")
    named = fields[0].rpartition(b"/")[2] == PROGRAM
    if not named or len(fields) < 7 or fields[1] not in KINDS:
        return None
    return [os.fsdecode(field) for field in fields[1:6]]


def _is_pid_one(pid: int) -> bool:
    status = _read(f"/proc/{pid}/status", 1 << 16) or b""
    facts = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    inner = facts.get(b"NSpid", b"").split()
    return len(inner) > 1 and inner[-1] == b"1" and facts.get(b"Uid", b"").split()[:1] == [b"0"]


def _read(path: str, size: int) -> bytes | None:
    try:
        with open(path, "rb", 0) as file:  # noqa: PTH123  (Path costs 3x in a loop)
            return file.read(size)
    except GONE:
        return None
