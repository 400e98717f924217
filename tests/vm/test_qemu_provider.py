"""Virtual machines of QEMU: how they come, are found and go, and what is theirs alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from machine_contract import LAB, MachineContract, Pair, two_machines
from machines import make
from provider_contract import TWO, FleetContract, spec, until

from testbed.artifacts import Store
from testbed.errors import ServiceError
from testbed.nodes.netns import find
from testbed.nodes.netns.provider import NetnsProvider
from testbed.nodes.qemu import cell as cells
from testbed.nodes.qemu import machine as machines
from testbed.nodes.qemu.command import Hardware
from testbed.process import run
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Provider
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.qemu.provider import QemuProvider

#: docker0's addresses, the routes, and containers that reach each other from node to node.
CLAIMS = (
    "bridge-docker0-is-linux-bridge",
    "bridge-docker0-first-address",
    "ip-host-route-docker0",
    "bridge-container-ip-from-subnet",
    "flannel-virtual-network-per-node",
    "flannel-unique-subnet-per-node",
    "flannel-container-ip-in-node-range",
    "flannel-overlay-connects-all",
)


@pytest.fixture
def provider(state: Path) -> Iterator[QemuProvider]:
    provider = make(state)
    yield provider
    for lab in provider.labs():
        provider.destroy(lab)


class TestFleet(FleetContract):
    skips: ClassVar[Mapping[str, str]] = {
        "test_many_nodes_are_made_at_once": "eight machines, and nothing that two do not show",
        "test_a_node_is_removed_and_joined_again_at_once": "eight boots; below it is done once",
    }

    def again(self, provider: Provider) -> Provider:
        del provider
        return make(Path(os.environ["TESTBED_STATE"]))

    @pytest.fixture
    def provider(self, state: Path) -> Iterator[Provider]:
        provider = make(state)
        yield provider
        for lab in provider.labs():
            provider.destroy(lab)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from two_machines(make(tmp_path_factory.mktemp("pair") / "state"))


class TestMachines(MachineContract):
    kind: ClassVar[find.Kind] = "cell"


class TestBadLuck:
    def cell(self, provider: QemuProvider) -> NetnsNode:
        return provider.cells.found(LAB)["node1"]

    def test_a_machine_that_ends_by_itself_is_told_from_one_that_is_slow(
        self, provider: QemuProvider
    ) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        provider.create(LAB, spec("node1"))
        cell = self.cell(provider)
        cell.run(["sh", "-c", "echo Kernel panic - not syncing >> /var/log/testbed/console.log"])
        cell.stop(machines.SERVICE)
        with pytest.raises(ServiceError, match=r"(?s)ended.*Kernel panic"):
            machines.still_runs(cell)
        assert "panic" in cells.last_words(cell)

    def test_a_maker_that_is_killed_leaves_what_down_removes_and_up_makes_anew(
        self, provider: QemuProvider, state: Path
    ) -> None:
        code = (
            "import sys; from pathlib import Path; from machines import make; "
            "from provider_contract import TWO, spec; from testbed.topology import load_text\n"
            "provider = make(Path(sys.argv[1]))\n"
            "provider.create_fabric('contract', load_text(TWO, 'contract.yaml'))\n"
            "provider.create('contract', spec('node1'))\n"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        maker = subprocess.Popen([sys.executable, "-c", code, str(state)], env=env)
        try:
            assert until(lambda: "node1" in provider.cells.found(LAB), 60)
        finally:
            maker.send_signal(signal.SIGKILL)
            maker.wait()
        assert provider.labs() == [LAB]
        assert provider.nodes(LAB) == {}  # it never answered
        provider.destroy(LAB)
        assert provider.labs() == []
        state_of = [init.state for init in find.inits()]
        assert str(state.resolve()) not in state_of

    def test_without_the_initial_file_system_the_console_says_why(
        self, provider: QemuProvider, tmp_path: Path
    ) -> None:
        store = Store()
        other = NetnsProvider(
            tmp_path / "s", lambda: store.binary("testbed-init"), lambda: store.folders, kind="cell"
        )
        parts = provider.parts()
        empty = tmp_path / "box"
        empty.mkdir()
        for name in ("disk.qcow2", "vmlinuz", "manifest.json"):
            (empty / name).symlink_to(parts.box.folder / name)
        (empty / "initramfs").write_bytes(b"")
        try:
            cell = other.create(LAB, spec("node1"))
            bad = machines.Parts(
                parts.qemu, parts.acceleration, type(parts.box)(empty), parts.agent
            )
            with pytest.raises(ServiceError, match=r"(?s)ended before it answered.*"):
                machines.boot(cell, Hardware.of(spec("node1")), bad)
        finally:
            other.destroy(LAB)


class TestLab:
    """Two machines, flannel over them, the design's claims; and nothing left."""

    @pytest.mark.parametrize("backend", ["vxlan", "udp"])
    def test_two_node(self, state: Path, tmp_path: Path, backend: str) -> None:
        env = {**os.environ, "TESTBED_STATE": str(state)}

        def testbed(*words: str, seconds: float, check: bool = True) -> str:
            argv = [sys.executable, "-m", "testbed", *words]
            return run(argv, env=env, timeout=seconds, check=check).stdout

        try:
            out = testbed("up", "two-node", "--provider", "qemu", "--backend", backend, seconds=600)
            assert "two-node is up" in out
            data = tmp_path / "verify.json"
            chosen = [word for claim in CLAIMS for word in ("--claim", claim)]
            testbed(
                "verify", "two-node", "-q", *chosen,
                "--json", str(data), seconds=900,
            )  # fmt: skip
            assert json.loads(data.read_text())
        finally:
            testbed("down", "two-node", seconds=60)
        assert "two-node" not in testbed("ls", seconds=30)
