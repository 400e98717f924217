"""Virtual machines for tests: the provider as the commands have it, of a state folder."""

from __future__ import annotations

from pathlib import Path

from testbed.artifacts import Store
from testbed.nodes.base import Setup
from testbed.nodes.qemu.provider import QemuProvider
from testbed.nodes.vagrant.provider import VagrantProvider


def make_vagrant(state: Path) -> VagrantProvider:
    """As :func:`make`, of Vagrant."""
    return VagrantProvider.of(Setup(state, Store()))


def make(state: Path) -> QemuProvider:
    """A provider whose labs are those of a state folder; the box is that of the user's cache."""
    return QemuProvider.of(Setup(state, Store()))
