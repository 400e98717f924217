"""A virtual machine: the contract of a node, asked of one machine that all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from machines import make

from testbed.nodes.base import LOGS, Service
from testbed.nodes.ssh import services
from testbed.testing.provider import TWO, NodeContract, spec, until
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
        machine.run(["rm", "-rf", services.FOLDER, LOGS])

    def test_systemctl_knows_a_daemon_by_the_name_of_its_unit(self, node: Node) -> None:
        """Also one whose package is installed and brings a unit of that name."""
        node.start(Service("keeper", ("sleep", "3600"), unit="iperf3"))
        before = node.services()["keeper"]
        assert node.run(["systemctl", "is-active", "iperf3"]).stdout == "active\n"
        assert f"MainPID={before.pid}\n" in node.run(["systemctl", "show", "iperf3"]).stdout
        node.run(["systemctl", "restart", "iperf3"])
        assert until(lambda: node.services()["keeper"].state == "ready", 60)
        assert node.services()["keeper"].pid != before.pid
        node.run(["systemctl", "stop", "iperf3"])
        assert node.services()["keeper"].state == "dead"
        # The settings of another kind of service replace the unit's.
        node.start(Service("keeper", ("sleep", "3601"), unit="iperf3", digest="other"))
        assert node.services()["keeper"].state == "ready"
