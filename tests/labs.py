"""A lab for the tests of a file, with a state folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from testbed.cli.common import make_settings
from testbed.lab.lab import Lab

if TYPE_CHECKING:
    from testbed.topology import Topology


def brought_up(topology: Topology, state: Path) -> Iterator[Lab]:
    """The lab of a topology, up; it is removed in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(state))
        found = Lab(topology.name, make_settings())
        found.up(topology)
        yield found
        found.down()
