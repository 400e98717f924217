"""A machine that has booted, saved: its memory, its disk, and the keys that it has until it wakes.

A snapshot fits the same QEMU, machine type, processor options, hardware and box
and no other, so it is kept by all of them, and made anew when any changes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source
from testbed.nodes.qemu.command import DISK, FOLDER, MONITOR
from testbed.nodes.qemu.qmp import Monitor

if TYPE_CHECKING:
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.qemu.command import Hardware
    from testbed.vm.accel import Acceleration

NAME = "vm-snapshot"  #: under which the store keeps them
MEMORY, OVERLAY, KEY, HOST_KEY = "memory", "disk.qcow2", "key", "host"
SAVED = f"{FOLDER}/memory"  # in the cell
SAVE_SECONDS = 120.0


@dataclass(frozen=True)
class Snapshot(Source):
    """``booted`` boots a machine in a cell and removes both at the end of its ``with``."""

    qemu: str  #: its version
    acceleration: Acceleration
    hardware: Hardware
    box: str  #: the box's key
    line: tuple[str, ...]  #: the command, which says all about the machine's devices
    make: Callable[[Job], None] = field(compare=False)
    origin: ClassVar[Origin] = "engine"

    def recipe(self) -> Mapping[str, object]:
        return {
            "qemu": self.qemu,
            "machine": [*self.acceleration.machine, *self.acceleration.cpu],
            "hardware": asdict(self.hardware),
            "box": self.box,
            "line": list(self.line),
            "form": 1,
        }

    def whole(self, folder: Path) -> bool:
        return all((folder / name).is_file() for name in (MEMORY, OVERLAY, KEY, HOST_KEY))

    def fill(self, job: Job) -> str:
        self.make(job)
        return f"qemu-{self.qemu}"


def save(cell: NetnsNode, into: Path) -> None:
    """Stop the machine of a cell, and keep its memory and what it has written."""
    with Monitor(cell.socket(MONITOR)) as monitor:
        monitor.save(SAVED, SAVE_SECONDS)
        monitor.do("quit")  # what QEMU has still to write is in the file then
    for _ in range(500):
        if cell.services()["qemu"].state == "dead":
            break
    shutil.copyfile(cell.socket(SAVED), into / MEMORY)
    shutil.copyfile(cell.socket(DISK), into / OVERLAY)


def wake(cell: NetnsNode, seconds: float) -> None:
    """Let the machine of a cell go on from where it was saved, once its memory is read."""
    with Monitor(cell.socket(MONITOR)) as monitor:
        monitor.wait_state("paused", seconds)
        monitor.do("cont")
