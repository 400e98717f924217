"""A lab for the tests of a file, with a state folder of its own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from commands import call

from testbed.artifacts import Store
from testbed.cli.common import make_settings
from testbed.errors import MachineError
from testbed.labs.lab import Lab
from testbed.labs.run import Watch
from testbed.nodes.engine import PROGRAMS
from testbed.registry import ROLES
from testbed.topology import load

if TYPE_CHECKING:
    from testbed.artifacts.engines import Engine
    from testbed.labs.run import Waiting
    from testbed.topology import Topology


def skip_unless_built(engine: Engine) -> None:
    """Skip a test of an engine that takes minutes to build, unless it is in the cache."""
    store = make_settings().store
    if not all(store.made(name, *engine.parts) for name in (*PROGRAMS, "docker")):
        pytest.skip(f"not built: testbed doctor --role engine-{engine.release} --fix")


def brought_up(topology: Topology, state: Path) -> Iterator[Lab]:
    """The lab of a topology, up; it is removed in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_STATE", str(state))
        found = Lab(topology.name, make_settings())
        found.up(topology)
        yield found
        found.down()


def hour_passes_at(patch: pytest.MonkeyPatch, word: str, *, idle_seconds: float) -> Watch:
    """A watch for `up`, whose clock moves on by an hour as soon as a step waits for ``word``."""
    passed = 0.0

    def idle(waiting: list[Waiting]) -> None:
        nonlocal passed
        if any(word in one.words for one in waiting):
            passed = 3600.0

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed)
    patch.setattr("testbed.labs.run.time", clock)
    patch.setattr("testbed.labs.run.IDLE_SECONDS", idle_seconds)
    return Watch(idle=idle)


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


def verify_beside(folder: Path, state: Path) -> None:
    """Create the lab of a folder, run the tests in the folder, and remove the lab.

    Skips where this machine lacks something.
    """
    file, env = folder / "lab.yaml", {"TESTBED_STATE": str(state / "state")}
    topology = load(file)
    for name in topology.roles:
        if why := ROLES[name].lacking(Store(), topology):
            pytest.skip(why)
    up = call(state, "up", str(file), "-q", env=env)
    if up.status == MachineError.exit_code:  # such as a kernel without macvlan
        pytest.skip(up.err)
    assert up.status == 0, up.err
    try:
        done = call(state, "verify", topology.name, str(folder / "tests"), env=env)
    finally:
        down = call(state, "down", "--all", env=env)
    assert done.status == 0, done.out + done.err
    assert down.status == 0, down.err
