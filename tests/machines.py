"""Virtual machines for tests: the provider as the commands have it, of a state folder."""

from __future__ import annotations

from pathlib import Path

from testbed.artifacts import Store
from testbed.nodes.qemu.provider import QemuProvider
from testbed.nodes.vagrant.provider import VagrantProvider
from testbed.vm.box import box


def make_vagrant(state: Path) -> VagrantProvider:
    """As :func:`make`, of Vagrant."""
    store = Store()
    return VagrantProvider(
        state,
        lambda: store.binary("testbed-init"),
        exposed=lambda: store.folders,
        cache=store.folder,
        box=lambda: box(store),
        agent=lambda: store.binary("testbed-agent"),
    )


def make(state: Path) -> QemuProvider:
    """A provider whose labs are those of a state folder; the box is that of the user's cache."""
    store = Store()
    return QemuProvider(
        state,
        lambda: store.binary("testbed-init"),
        exposed=lambda: store.folders,
        cache=store.folder,
        box=lambda: box(store),
        agent=lambda: store.binary("testbed-agent"),
        keep=store.keep,
    )
