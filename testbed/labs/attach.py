"""Attach to a lab that another tool has created on this machine."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from testbed.errors import UsageError
from testbed.labs.lab import Lab, labs
from testbed.labs.state import Record
from testbed.registry import PROVIDERS
from testbed.topology.load import load_data

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.nodes.attachable import Attachable
    from testbed.topology.model import Topology


def attachables() -> dict[str, type[Attachable]]:
    """Return what can be attached to, by provider."""
    found = ((name, kind.attachable()) for name, kind in PROVIDERS.usable().items())
    return {name: kind for name, kind in found if kind is not None}


def attach(settings: Settings, provider: str, lab: str, name: str | None = None) -> Lab:
    """Write the record of a lab that exists already, and return the lab.

    ``lab`` is the tool's name of it. ``name`` is that for commands of testbed, by default the same.
    The record of a lab that is attached already is replaced. Raises UsageError if the name is
    taken, NoSuchLab, MachineError, TopologyError.
    """
    plain = attachables()[provider](settings.setup).read(lab)
    topology = load_data({**plain, **({"name": name} if name else {})}, f"lab {lab} of {provider}")
    assert topology.foreign is not None
    file = topology.foreign.file and os.path.realpath(topology.foreign.file)
    with settings.state.lock(topology.name, f"attach {topology.name}"):
        _refuse_taken(settings, topology)
        settings.state.write(
            Record(topology.name, topology.to_dict(), source=file, created=time.time())
        )
    return Lab(topology.name, settings)


def _refuse_taken(settings: Settings, topology: Topology) -> None:
    """Raise UsageError if the name is that of another lab."""
    if topology.name not in labs(settings):
        return
    record = settings.state.read(topology.name)
    if record and record.attached and _identity(record.topology) == _identity(topology.to_dict()):
        return
    raise UsageError(
        f"there is another lab {topology.name}",
        hint="attach under another name: --name NAME",
    )


def _identity(plain: dict[str, object]) -> tuple[object, ...]:
    foreign = plain.get("foreign")
    there = foreign if isinstance(foreign, dict) else {}
    return (plain.get("provider"), there.get("attached"), there.get("lab"))
