"""containerlab's cell, as far as it needs no kernel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from testbed.artifacts import Store
from testbed.nodes.containerlab import cell
from testbed.nodes.containerlab.cell import CONTAINERS, RECORD, Cell

if TYPE_CHECKING:
    from testbed.nodes.netns.node import NetnsNode

ID = "ab" * 32


class Folder:
    """A namespace node of which only the files are there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def socket(self, path: str) -> str:
        return f"{self.root}{path}"

    def write(self, path: str, text: str) -> None:
        place = Path(self.socket(path))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def made(folder: Folder, tmp_path: Path) -> Cell:
    return Cell(cast("NetnsNode", folder), Store(tmp_path / "cache"))


def record(**changes: Any) -> str:
    """What dockerd writes of a container."""
    return json.dumps(
        {
            "ID": ID,
            "Name": "/clab-lab-node1",
            "State": {"Pid": 42, "ExitCode": 0},
            "Config": {
                "Image": "alpine:3",
                "Env": ["A=b"],
                "Labels": {"containerlab": "lab", "clab-node-name": "node1"},
            },
            **changes,
        }
    )


def test_a_container_is_read_from_the_engines_files(made: Cell, folder: Folder) -> None:
    folder.write(f"{CONTAINERS}/{ID}/{RECORD}", record())
    folder.write(f"{CONTAINERS}/other/{RECORD}", record(ID="other", Name="/mine", Config={}))
    folder.write(f"{CONTAINERS}/half/{RECORD}", '{"ID": "ha')
    one, other = made.containers()
    assert (one.name, one.pid, one.lab, one.node) == ("clab-lab-node1", 42, "lab", "node1")
    assert (one.env, one.image) == (("A=b",), "alpine:3")
    assert (other.name, other.lab, other.node) == ("mine", "", "")


@pytest.mark.parametrize(
    ("pid", "cgroup", "runs"),
    [(42, f"1:cpu:/docker/{ID}", True), (42, "1:cpu:/docker/other", False), (42, None, False),
     (0, None, False)],
)  # fmt: skip
def test_a_pid_that_another_process_has_is_not_the_containers(
    made: Cell, folder: Folder, pid: int, cgroup: str | None, runs: bool
) -> None:
    if cgroup is not None:
        folder.write(f"/proc/{pid}/cgroup", cgroup)
    (one,) = [cell._container(json.loads(record(State={"Pid": pid, "ExitCode": 1})))]
    assert made.runs(one) is runs


def test_the_last_words_of_a_container_are_its_log(made: Cell, folder: Folder) -> None:
    said = [f"line {number}\r\n" for number in range(20)]
    lines = [json.dumps({"log": text, "stream": "stdout"}) for text in said]
    folder.write(f"{CONTAINERS}/{ID}/{ID}-json.log", "\n".join([*lines, '{"log": "cut']))
    one = cell._container(json.loads(record()))
    words = made.last_words(one).splitlines()
    assert words[-1] == "line 19"
    assert len(words) < len(said)
    assert made.last_words(cell._container(json.loads(record(ID="none")))) == ""


def test_a_refusal_has_containerlabs_own_words() -> None:
    said = (
        "\x1b[1m10:20:30\x1b[0m \x1b[32mINFO\x1b[0m Containerlab started version=0.79.0\n"
        "10:20:31 ERRO failed to create topology: no such file\n"
    )
    error = cell.refused(["deploy"], said, "")
    assert "no such file" in error.message
    assert "INFO" not in error.message
    assert "\x1b" not in error.message
    assert "only output" in cell.refused(["inspect"], "", "only output").message
