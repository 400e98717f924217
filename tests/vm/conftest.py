"""Without QEMU there are no virtual machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from testbed.process import which

PROGRAMS = ("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs")
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in PROGRAMS if which(name) is None]
    if not missing:
        return
    why = f"no {', '.join(missing)}: apt-get install --no-install-recommends qemu-system-x86 "
    skip = pytest.mark.skip(reason=f"{why}qemu-utils mmdebstrap e2fsprogs")
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(skip)
