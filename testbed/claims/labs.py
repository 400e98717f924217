"""The labs that a catalogue needs for ``verify --all``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.topology.load import Overrides, is_path, load

if TYPE_CHECKING:
    from testbed.topology.model import Topology

PREFIX = "all-"  # prefix of the labs' names, to keep them apart from the user's labs


@dataclass(frozen=True, slots=True)
class Wanted:
    """A lab that a catalogue needs: a topology by name or path, or a variant of one.

    ``documents`` are those whose claims the lab decides: it has their address plan.
    ``measures`` False leaves out measurements, which take time and would repeat
    those of a similar lab.  ``only`` restricts the claims to those
    listed by id, or by a feature that they need: other labs decide the rest.
    ``number`` keeps apart labs that would have the same name.
    """

    topology: str
    documents: tuple[str, ...]
    overrides: Overrides = field(default_factory=Overrides)
    measures: bool = True
    only: tuple[str, ...] = ()
    number: int = 1

    @property
    def name(self) -> str:
        """The topology's name with its variant: ``docker-single-29-nftables``."""
        of = {**self.overrides.options, "provider": self.overrides.provider}
        words = [
            f"{value}-{key}" if isinstance(value, int) else value.removeprefix("iptables-")
            for key, value in of.items()
            if value
        ]
        words += [str(self.number)] if self.number > 1 else []
        own = Path(self.topology).stem if is_path(self.topology) else self.topology
        return "-".join([own, *words])

    def load(self) -> Topology:
        """Return the topology, with a name of its own.  Raises UsageError, TopologyError."""
        return _load(self)


@functools.cache  # needed before the lab starts, by its own process, and after it has ended
def _load(wanted: Wanted) -> Topology:
    return load(wanted.topology, wanted.overrides.named(f"{PREFIX}{wanted.name}"))
