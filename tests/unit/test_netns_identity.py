"""The machine-id of a namespace node: one for each, and the same each time."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.nodes.netns import provider
from testbed.nodes.netns.provider import machine_id

if TYPE_CHECKING:
    import pytest

STATE = Path("/srv/state")


def test_it_is_the_same_each_time_and_of_one_node() -> None:
    mine = machine_id(STATE, "lab", "node1")
    assert machine_id(STATE, "lab", "node1") == mine
    others = {
        machine_id(STATE, "lab", "node2"),
        machine_id(STATE, "other", "node1"),
        machine_id(Path("/home/somebody/state"), "lab", "node1"),
        machine_id(STATE, "labn", "ode1"),
    }
    assert len(others | {mine}) == 5


def test_it_is_another_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "machine-id"
    found = []
    for text in ("0123456789abcdef0123456789abcdef\n", "f" * 32 + "\n", ""):
        own.write_text(text)
        monkeypatch.setattr(provider, "MACHINE_ID", own)
        found.append(machine_id(STATE, "lab", "node1"))
    monkeypatch.setattr(provider, "MACHINE_ID", tmp_path / "nothing")
    found.append(machine_id(STATE, "lab", "node1"))
    assert len(set(found)) == 3
    assert found[2] == found[3]


def test_it_is_one_as_machine_id_5_says() -> None:
    for number in range(50):
        text = machine_id(STATE, "lab", f"node{number}")
        assert len(text) == 32
        assert text == text.lower()
        read = uuid.UUID(hex=text)
        assert (read.version, read.variant) == (4, uuid.RFC_4122)
