"""Each bug report of examples/bugs on its lab: the reported behaviour, and the fix."""

from __future__ import annotations

from pathlib import Path

import pytest
from bugs import BUGS
from commands import call
from labs import by_commands

from testbed.artifacts import Store
from testbed.registry import ROLES
from testbed.topology import load

SHORT = ("moby-45610",)


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, id=bug.name, marks=() if bug.name in SHORT else pytest.mark.long)
        for bug in BUGS
    ],
)
@pytest.mark.seconds(8)
def test_a_report_and_its_fix_are_seen(bug: Path, tmp_path: Path) -> None:
    topology = load(bug / "lab.yaml")
    for name in topology.roles:
        if why := ROLES[name].lacking(Store(), topology):
            pytest.skip(why)
    with by_commands(tmp_path, str(bug / "lab.yaml"), bug.name):
        done = call(tmp_path, "verify", bug.name, str(bug / "tests"))
        assert done.status == 0, done.out + done.err
