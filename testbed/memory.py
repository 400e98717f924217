"""How much memory this machine has to give."""

from __future__ import annotations

import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def available() -> int:
    """Bytes that programs can still have without others being pushed out (proc_meminfo(5))."""
    found = re.search(
        r"^MemAvailable:\s+(\d+) kB", MEMINFO.read_text(encoding="utf-8"), re.MULTILINE
    )
    return int(found[1]) * 1024 if found else 0
