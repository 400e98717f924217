"""The public interface on a real lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

import testbed

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_script_creates_uses_and_removes_a_lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path))
    with testbed.lab("two-node", backend="host-gw", name="api") as lab:
        assert testbed.labs_running() == ["api"]
        assert lab.node("node1").run(["ping", "-c1", "-W10", "node2"]).ok
        assert lab.node("node2").host.service("docker").is_running
        peer = lab.container("container-1")
        assert lab.container("container-2").run(["ping", "-c1", "-W10", peer.address]).ok
    assert testbed.labs_running() == []
