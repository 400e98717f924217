"""What was found out about this machine, remembered in the cache folder until it boots again."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from testbed import files, owner
from testbed.errors import UsageError

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def recall(cache: Path, name: str) -> Any:
    """What was kept under that name since the machine booted; None if nothing was."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        data = json.loads((cache / f".{name}.json").read_text(encoding="utf-8"))
        if data["boot"] == _boot() != "":
            return data["found"]
    return None


def keep(cache: Path, name: str, found: Any) -> None:
    """Keep what was found, as JSON can say it."""
    # What cannot be kept is tried again: no reason to fail.
    with contextlib.suppress(OSError, UsageError):
        owner.make(cache)
        files.keep(cache / f".{name}.json", json.dumps({"boot": _boot(), "found": found}))


def parts_of_the_dead(folder: Path) -> list[Path]:
    """The files named ``.NAME.PID`` of writers that were killed: a whole one is renamed."""
    found = [path for path in folder.glob(".*") if path.suffix[1:].isdigit() and path.is_file()]
    return sorted(path for path in found if not Path("/proc", path.suffix[1:]).exists())


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:  # hidden in some containers: then nothing is remembered
        return ""
