"""Finds the nodes that run, by what they are.

A node is a process that is called ``testbed-init``, is pid 1 of a pid
namespace of its own, and belongs to root.  What it is a node of stands in its
arguments.  No file is asked.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

from testbed.nodes.netns.agent import wait_readable

PROGRAM = b"testbed-init"
#: A cell is what a virtual machine runs in: namespaces and a cgroup like a node's.  A hypervisor
#: is what all those of a lab run in that somebody else's tool starts.
Kind = Literal["node", "fabric", "cell", "hypervisor"]
KINDS = (b"node", b"fabric", b"cell", b"hypervisor")


@dataclass(frozen=True, slots=True)
class Init:
    """Pid 1 of a running node, held by a pidfd so that its number can't be reused on us."""

    pid: int
    kind: Kind
    lab: str
    node: str
    digest: str
    state: str  #: the state folder of the testbed that made it
    _pidfd: int = field(compare=False, repr=False)

    def alive(self) -> bool:
        return not wait_readable(self._pidfd, 0)

    def kill(self) -> None:
        """SIGKILL; the kernel then ends every process of the node's pid namespace."""
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return

    def wait_dead(self, timeout: float) -> bool:
        """True once all of the node is gone: pid 1 is reaped last (pid_namespaces(7))."""
        return wait_readable(self._pidfd, timeout)

    def __del__(self) -> None:
        os.close(self._pidfd)


def inits() -> Iterator[Init]:
    """Every node on this machine, whoever made it."""
    for entry in os.listdir("/proc"):  # noqa: PTH208  (Path costs 3x in this loop)
        if entry.isdigit() and _arguments(int(entry)) is not None:
            found = at(int(entry))
            if found is not None:
                yield found


def at(pid: int) -> Init | None:
    """The node whose pid 1 has this number here, or None."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return None
    # Read again now that the pidfd pins the process: what is read is what is held.
    arguments = _arguments(pid)
    if arguments is None or not _is_pid_one(pid):
        os.close(pidfd)
        return None
    kind, lab, node, digest, state = arguments
    return Init(
        pid=pid,
        kind=cast("Kind", kind),
        lab=lab,
        node=node,
        digest=digest,
        state=state,
        _pidfd=pidfd,
    )


def _arguments(pid: int) -> list[str] | None:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:  # noqa: PTH123  (Path costs 3x in this loop)
            line = file.read(8192)  # the state folder alone may take PATH_MAX
    except OSError:
        return None
    fields = line.split(b"\0")
    named = fields[0].rpartition(b"/")[2] == PROGRAM
    if not named or len(fields) < 7 or fields[1] not in KINDS:
        return None
    return [os.fsdecode(field) for field in fields[1:6]]


def _is_pid_one(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123  (as above)
            status = file.read()
    except OSError:
        return False
    facts = dict(line.split(b":", 1) for line in status.splitlines() if b":" in line)
    inner = facts.get(b"NSpid", b"").split()
    return len(inner) > 1 and inner[-1] == b"1" and facts.get(b"Uid", b"").split()[:1] == [b"0"]
