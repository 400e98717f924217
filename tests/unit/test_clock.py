"""Durations use the monotonic clock; the settable clock is for time stamps only."""

from __future__ import annotations

import ast
import itertools
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import testbed
from testbed.labs.lab import Lab
from testbed.labs.status import status
from testbed.topology import load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.testing.fakes import Bench

ROOT = Path(testbed.__file__).parent
#: Who may ask what time it is, and what for.
STAMPS = {
    ("artifacts/cache.py", "choose"): "against the stamps of entries",
    ("cli/logs.py", "command"): "against the stamps of lines",
    ("cli/common.py", "age"): "how old a lab is, for the eye",
    ("labs/attach.py", "attach"): "when a lab was attached",
    ("labs/lab.py", "_record"): "when a lab was made",
    ("labs/logs.py", "fresh"): "the year of lines without one",
    ("leaks.py", "_temporary"): "against the stamps of files",
    ("nodes/kubernetes/site.py", "used"): "when a lab was last used, for its janitor",
    ("nodes/netns/cgroups.py", "age"): "against the stamps of folders",
    ("nodes/qemu/machine.py", "wake"): "for the guest, which has slept",
    ("nodes/qemu/states.py", "refresh"): "for the guest, which has gone back",
    ("observe/listen.py", "read"): "against the stamps of frames",
    ("registry.py", "_entry_points"): "against the stamps of folders",
    ("suites/model.py", "Run"): "when a run was begun",
    ("walk/send.py", "send"): "against the stamps of frames",
    ("testing/machine.py", "test_the_clock_is_right"): "of a node, against this machine's",
}
#: The same of programs in C: the clocks, by the file, that they may ask beside the monotonic one.
STAMPS_IN_C = {"systemctl.c": {"CLOCK_REALTIME"}}  # since when a service is as it is


#: No module without one of these words asks for it.
CLOCKS = re.compile(r"\btime\.time|\bdatetime\.|from time import")


def asked_for(tree: ast.AST, inside: str = "") -> Iterator[str]:
    """The functions, or classes, in which the time of day is asked for."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from asked_for(node, node.name)
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in {"time.time", "time.time_ns", "datetime.now", "datetime.today"}:
                yield inside
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            yield f"{inside}: imports {', '.join(name.name for name in node.names)}"
        yield from asked_for(node, inside)


@pytest.mark.source
def test_the_time_of_day_is_for_stamps() -> None:
    found = {
        (str(path.relative_to(ROOT)), inside)
        for path in ROOT.rglob("*.py")
        if CLOCKS.search(text := path.read_text(encoding="utf-8"))
        for inside in asked_for(ast.parse(text))
    }
    assert found == set(STAMPS)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.c")), ids=lambda path: path.name)
def test_so_it_is_in_c(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    clocks = {"CLOCK_MONOTONIC", *STAMPS_IN_C.get(path.name, ())}
    assert set(re.findall(r"CLOCK_\w+", text)) <= clocks
    others = r"\b(time|gettimeofday|alarm|setitimer|timer_create|ftime)\s*\("
    assert not re.findall(others, text)


def test_a_clock_that_jumps_changes_no_duration(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, jumps = time.time, itertools.cycle((1e9, -1e9, 3600.0, -3600.0, 0.0))
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    lab = Lab("two-node", bench.settings)
    began = time.monotonic()
    outcome = lab.up(load("two-node"))
    assert 0 < outcome.seconds <= time.monotonic() - began
    assert all(0 <= step.seconds <= outcome.seconds for step in outcome.steps)
    record = bench.state.read("two-node")
    assert record is not None
    assert outcome.seconds - 0.001 <= record.seconds <= time.monotonic() - began + 0.001  # rounded
    assert {node.state for node in status(lab.context()).nodes} == {"up"}
    assert not lab.up(load("two-node")).changed
    with bench.state.lock("two-node", "test", timeout=0):
        assert bench.state.holder("two-node").startswith("testbed test")
    assert lab.down()
