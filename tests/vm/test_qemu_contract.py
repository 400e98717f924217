"""A virtual machine: the contract of a node, asked of one machine that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from machines import make

from testbed.nodes.ssh import services
from testbed.testing.provider import TWO, NodeContract, spec
from testbed.testing.terminal import TerminalContract
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node

LAB = "contract"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    provider = make(tmp_path_factory.mktemp("machine") / "state")
    try:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        yield provider.create_one(LAB, spec("node1"))
    finally:
        provider.destroy(LAB)


class TestContract(NodeContract, TerminalContract):
    @pytest.fixture
    def node(self, machine: Node) -> Iterator[Node]:
        """The machine, left as it was found."""
        yield machine
        for service in machine.services():
            machine.stop(service)
        machine.run(["rm", "-rf", services.FOLDER, services.LOGS])
