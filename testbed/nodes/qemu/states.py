"""Snapshots of running machines: memory and disk, in the disk image of each machine.

QEMU keeps them (snapshot-save, snapshot-load). The image is in the machine's cell, so they end with
the machine. All machines of a lab are stopped before the first is saved, and continue after the
last: what they have said to each other is the same on both sides.

The snapshots that machines wake from are something else: see :mod:`testbed.nodes.qemu.snapshot`.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from testbed.errors import TestbedError
from testbed.nodes.base import Snapshot
from testbed.nodes.qemu import identity
from testbed.nodes.qemu.command import DISK
from testbed.nodes.qemu.machine import monitor_of

if TYPE_CHECKING:
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.qemu.qmp import Monitor
    from testbed.nodes.ssh.node import SshNode

SECONDS = 600.0  # for one machine, on a busy processor
#: States (query-status) of a machine that was stopped, is saved, or was returned to a snapshot.
HALTED = ("paused", "save-vm", "restore-vm")


def save(cells: Mapping[str, NetnsNode], name: str) -> None:
    """Save machines, by the names of their nodes.  Raises LabError; then none is saved."""
    with _halted(cells) as monitors:
        try:
            _each(monitors, lambda one: _job(one, "snapshot-save", name, memory=True))
        except BaseException:
            for one in monitors.values():
                with contextlib.suppress(TestbedError):  # this one has not been saved
                    _job(one, "snapshot-delete", name)
            raise


def load(cells: Mapping[str, NetnsNode], name: str) -> None:
    """Return machines to a snapshot.  Raises LabError."""
    with _halted(cells) as monitors:
        _each(monitors, lambda one: _job(one, "snapshot-load", name, memory=True))


def drop(cells: Mapping[str, NetnsNode], name: str) -> None:
    """Remove a snapshot.  Raises LabError."""
    for cell in cells.values():
        with monitor_of(cell) as monitor:
            _job(monitor, "snapshot-delete", name)


def proceed(cell: NetnsNode) -> bool:
    """Continue a machine that a killed :func:`save` or :func:`load` left halted.

    Return False if it was running.
    """
    with monitor_of(cell) as monitor:
        if monitor.do("query-status")["status"] not in HALTED:
            return False
        monitor.do("cont")
    return True


def of_machine(cell: NetnsNode) -> list[Snapshot]:
    """Return the snapshots of a machine, the oldest first."""
    # QEMU has locked the image; only its header is read here.
    said = cell.run(["qemu-img", "info", "-U", "--output=json", DISK]).json()
    found = [
        Snapshot(one["name"], one["date-sec"] + one["date-nsec"] / 1e9, one["vm-state-size"])
        for one in said.get("snapshots", ())
    ]
    return sorted(found, key=lambda one: one.created)


def memory_of(cell: NetnsNode) -> int:
    """Return the memory of a machine, in bytes."""
    with monitor_of(cell) as monitor:
        return int(monitor.do("query-memory-size-summary")["base-memory"])


def refresh(node: SshNode) -> None:
    """Set the clock of a machine that was returned to a snapshot, and mix new random numbers in.

    Without them, it would draw the same ones each time.
    """
    node.close()  # its side of the connection is gone
    node.stir(secrets.token_bytes(identity.SEED))
    node.run(["date", "-s", f"@{time.time()}"])


@contextlib.contextmanager
def _halted(cells: Mapping[str, NetnsNode]) -> Iterator[dict[str, Monitor]]:
    """Stop machines; in the end all of them continue."""
    with contextlib.ExitStack() as stack:
        monitors = {name: stack.enter_context(monitor_of(cell)) for name, cell in cells.items()}
        for one in monitors.values():
            stack.callback(one.do, "cont")
            one.do("stop")
        yield monitors


def _job(monitor: Monitor, command: str, name: str, *, memory: bool = False) -> None:
    disks = monitor.disks()
    more = {"vmstate": disks[0]} if memory else {}
    monitor.job(command, SECONDS, tag=name, devices=disks, **more)


def _each(monitors: Mapping[str, Monitor], act: Callable[[Monitor], None]) -> None:
    """Do something with all machines at once.  Raises the error of the first that fails."""
    with ThreadPoolExecutor(len(monitors)) as pool:
        for done in [pool.submit(act, one) for one in monitors.values()]:
            done.result()
