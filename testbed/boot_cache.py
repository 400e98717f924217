"""Facts about this machine, kept in the cache folder until the next boot."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from testbed import files, owner
from testbed.errors import UsageError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def recall(cache: Path, name: str) -> Any:
    """Return the value kept under a name since the machine booted, or None."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads((cache / f".{name}.json").read_text(encoding="utf-8"))
        if data["boot"] == _boot() != "":
            return data["found"]
    return None


def keep(cache: Path, name: str, found: Any) -> None:
    """Keep a value, which must be valid as JSON, until the next boot."""
    # A failure is ignored: the value is then determined again the next time.
    with contextlib.suppress(OSError, UsageError):
        owner.make(cache)
        files.keep(cache / f".{name}.json", json.dumps({"boot": _boot(), "found": found}))


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:  # hidden in some containers: then no value is kept
        return ""
