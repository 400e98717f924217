"""A lab for the tests of a file, with a state folder of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from commands import call

from testbed.cli.common import make_settings
from testbed.labs.lab import Lab

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


@contextlib.contextmanager
def by_commands(folder: Path, topology: str, lab: str) -> Iterator[Path]:
    """A lab that commands are called on, by default this one; it is removed in the end.

    The commands go through ``folder``, in which its state is, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(folder / "state"))
        patch.setenv("TESTBED_LAB", lab)
        up = call(folder, "up", topology, "--name", lab, "-q")
        assert up.status == 0, up.err
        yield folder
        down = call(folder, "down", "--all")
        assert down.status == 0, down.err
