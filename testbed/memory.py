"""Memory available on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from testbed.errors import MachineError

MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """Return the bytes that new programs can use without swapping (proc_meminfo(5))."""
    found = re.search(
        r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(encoding="utf-8"), re.MULTILINE
    )
    return int(found[1]) * 1024 if found else 0


def require(wanted: Sequence[int]) -> None:
    """Raise MachineError unless machines with these sizes in bytes fit into memory."""
    free = available()
    if sum(wanted) > free:
        raise MachineError(
            f"{len(wanted)} virtual machine(s) need {sum(wanted) >> 20} MiB of memory, but "
            f"only {free >> 20} MiB are free",
            hint="lower their `memory`, use fewer machines, or end other programs and labs",
        )
