"""The open files of this process, for tests that count them."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """No file that another test has left to the garbage collector is closed in the block."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextlib.contextmanager
def unchanged_files() -> Iterator[None]:
    """The open files are the same after the block."""
    with garbage_kept():
        before = open_files()
        yield
        assert open_files() == before


def open_files() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())
