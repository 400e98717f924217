"""Machines of Vagrant: the contract, what goes wrong, plain Vagrant, and a lab of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from cells import CellContract
from machines import make_vagrant

from testbed.errors import LabError, ServiceError, TestbedError
from testbed.nodes.base import LOGS
from testbed.nodes.netns import find
from testbed.nodes.ssh import services
from testbed.nodes.vagrant import hypervisor
from testbed.nodes.vagrant.client import Client
from testbed.nodes.vagrant.provider import running
from testbed.process import run
from testbed.testing.machine import LAB, Pair, two_machines
from testbed.testing.provider import TWO, FleetContract, NodeContract, spec, until
from testbed.testing.terminal import TerminalContract
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node, Provider
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.vagrant.provider import VagrantProvider

ROOT = Path(__file__).parents[2]


@pytest.fixture
def provider(state: Path) -> Iterator[VagrantProvider]:
    provider = make_vagrant(state)
    yield provider
    for lab in provider.labs():
        provider.destroy(lab)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from two_machines(make_vagrant(tmp_path_factory.mktemp("pair") / "state"))


@pytest.mark.seconds(1)
class TestNode(NodeContract, TerminalContract):
    @pytest.fixture
    def node(self, pair: Pair) -> Iterator[Node]:
        """One of the two, left as it was found."""
        machine = pair[1][0]
        yield machine
        for service in machine.services():
            machine.stop(service)
        machine.run(["rm", "-rf", services.FOLDER, LOGS])


class TestMachines(CellContract):
    kind: ClassVar[find.Kind] = "hypervisor"

    def test_vagrant_knows_them(self, pair: Pair) -> None:
        states = Client(cell_of(pair[0])).states()
        assert states == {"node1": "running", "node2": "running"}

    def test_nothing_of_libvirt_is_on_this_machine(self, pair: Pair) -> None:
        assert pair
        names = {path.name for path in Path("/sys/class/net").iterdir()}
        assert not {name for name in names if name.startswith(("virbr", "vnet", "node"))}
        assert not Path("/run/libvirt/libvirt-sock").exists()

    def test_their_leases_are_renewed(self, pair: Pair) -> None:
        for node in pair[1]:
            assert node.run(["systemctl", "is-active", "lease"]).stdout.strip() == "active"


def cell_of(provider: Provider) -> NetnsNode:
    cell = provider.hypervisor(LAB)  # type: ignore[attr-defined]
    assert cell is not None
    return cell  # type: ignore[no-any-return]


@pytest.mark.long
class TestFleet(FleetContract):
    skips: ClassVar[Mapping[str, str]] = {
        "test_many_nodes_are_made_at_once": "eight machines, and nothing that two do not show",
        "test_a_node_is_removed_and_joined_again_at_once": "eight boots; above it is done once",
        "test_labs_do_not_touch_each_other": "three labs; below two are up at once",
    }

    def again(self, provider: Provider) -> Provider:
        del provider
        return make_vagrant(Path(os.environ["TESTBED_STATE"]))

    @pytest.fixture
    def provider(self, state: Path) -> Iterator[Provider]:
        provider = make_vagrant(state)
        yield provider
        for lab in provider.labs():
            provider.destroy(lab)


@pytest.mark.long
class TestBadLuck:
    def test_two_labs_at_once_do_not_meet(self, provider: VagrantProvider) -> None:
        topology = load_text(TWO, "contract.yaml")

        def bring(lab: str) -> Node:
            provider.create_fabric(lab, topology)
            return provider.create_one(lab, spec("node1"))

        with ThreadPoolExecutor() as pool:
            one, two = pool.map(bring, ("one", "two"))
        assert one.get("/etc/machine-id") != two.get("/etc/machine-id")
        provider.destroy("one")
        assert provider.labs() == ["two"]
        assert two.run(["hostname"]).stdout == "node1\n"

    def test_a_machine_that_cannot_boot_is_reported_with_its_console(
        self, provider: VagrantProvider
    ) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        cell = provider.make_hypervisor(LAB)
        lab = hypervisor.read(cell)
        # The kernel finds neither the initial file system's program nor a disk.
        hypervisor.write(cell, {**lab, "append": lab["append"] + " rdinit=/no/such/init root=0:0"})
        with pytest.raises(ServiceError, match=r"(?s)node1 the machine ended.*Kernel panic"):
            provider.create_one(LAB, spec("node1"))
        assert provider.nodes(LAB) == {}

    def test_a_box_of_another_version_is_vagrants_to_refuse(
        self, provider: VagrantProvider
    ) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        cell = provider.make_hypervisor(LAB)
        lab = hypervisor.read(cell)
        hypervisor.write(cell, {**lab, "box": {**lab["box"], "version": "0.1"}})
        with pytest.raises(LabError, match=r"(?s)vagrant up node1.* status 1.*box version"):
            provider.create_one(LAB, spec("node1"))

    def test_without_libvirtd_vagrant_says_that_it_cannot_connect(
        self, provider: VagrantProvider
    ) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        provider.make_hypervisor(LAB).stop("libvirtd")
        with pytest.raises(LabError, match=r"(?s)vagrant up node1.*[Ll]ibvirt"):
            provider.create_one(LAB, spec("node1"))

    def test_a_machine_that_is_ended_is_not_there_and_made_anew(
        self, provider: VagrantProvider
    ) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        provider.create_one(LAB, spec("node1"))
        cell = cell_of(provider)
        cell.run(["kill", "-KILL", str(running(cell, "node1"))])
        assert until(lambda: provider.nodes(LAB) == {})
        made = provider.create_one(LAB, spec("node1", "digest-2"))
        assert provider.nodes(LAB)["node1"].digest == "digest-2"
        assert made.run(["hostname"]).stdout == "node1\n"

    def test_who_makes_a_machine_is_told_when_it_is_not_wanted_any_more(
        self, provider: VagrantProvider
    ) -> None:
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        failures: list[Exception] = []

        def make_it() -> None:
            try:
                provider.create_one(LAB, spec("node1"))
            except TestbedError as error:
                failures.append(error)

        maker = threading.Thread(target=make_it)
        maker.start()
        assert until(lambda: bool(provider.labs() and running_in(provider, "node1")), 60)
        provider.destroy(LAB, ["node1"])
        maker.join(120)
        assert not maker.is_alive()
        assert failures
        assert provider.nodes(LAB) == {}
        assert provider.labs() == [LAB]

    def test_a_maker_that_is_killed_leaves_what_down_removes(
        self, provider: VagrantProvider, state: Path
    ) -> None:
        code = (
            "import sys; from pathlib import Path; from machines import make_vagrant\n"
            "from testbed.testing.provider import TWO, spec\n"
            "from testbed.topology import load_text\n"
            "provider = make_vagrant(Path(sys.argv[1]))\n"
            "provider.create_fabric('contract', load_text(TWO, 'contract.yaml'))\n"
            "provider.create_one('contract', spec('node1'))\n"
        )
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        maker = subprocess.Popen([sys.executable, "-c", code, str(state)], env=env)
        try:
            assert until(lambda: bool(running_in(provider, "node1")), 60)
        finally:
            maker.send_signal(signal.SIGKILL)
            maker.wait()
        assert provider.nodes(LAB) == {}  # it never answered
        provider.destroy(LAB)
        assert provider.labs() == []
        assert str(state.resolve()) not in [init.state for init in find.inits()]


def running_in(provider: VagrantProvider, name: str) -> int:
    cell = provider.hypervisor(LAB)
    return running(cell, name) if cell else 0


class TestPlainVagrant:
    """The Vagrantfile of the project's root, as somebody who knows nothing of testbed uses it."""

    TOPOLOGY = """
name: plain
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  node1: {networks: {lan: 10.168.0.2}}
  node2: {networks: {lan: 10.168.0.3}}
"""

    CHECKS = """
def test_they_reach_each_other_on_kernels_of_their_own(nodes):
    assert nodes["node1"].run(["ping", "-c1", "-W5", "10.168.0.3"]).ok
    boots = [node.get("/proc/sys/kernel/random/boot_id") for node in nodes.values()]
    assert len(set(boots)) == 2
"""

    @pytest.mark.seconds(90)
    def test_up_ssh_verify_destroy(self, state: Path, tmp_path: Path) -> None:
        topology = tmp_path / "plain.yaml"
        topology.write_text(self.TOPOLOGY)
        env = {
            **os.environ,
            "TESTBED_TOPOLOGY": str(topology),
            "TESTBED": str(Path(sys.executable).parent / "testbed"),
            "VAGRANT_CWD": str(ROOT),
            "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
            "VAGRANT_HOME": str(tmp_path / "home"),
            "VAGRANT_CHECKPOINT_DISABLE": "1",
        }

        def call(*argv: str, seconds: float = 120) -> str:
            return run(list(argv), env=env, timeout=seconds).stdout

        try:
            assert "not created" in call("vagrant", "status")
            out = call("vagrant", "up", "--provider=libvirt", seconds=600)
            assert "plain is up" in out
            # Asked as a user asks, and found as the topology says.
            said = call("vagrant", "ssh", "node1", "-c", "ip -br address show eth0")
            assert "10.168.0.2/24" in said
            checks = tmp_path / "test_own.py"
            checks.write_text(self.CHECKS)
            said = call(env["TESTBED"], "verify", "plain", str(checks), "--provider", "vagrant")
            assert "1 other checks, 0 failed" in said
            call("vagrant", "destroy", "-f")
            assert "no lab is up" in call(env["TESTBED"], "ls")
        finally:
            call(env["TESTBED"], "down", "--all")
            shutil.rmtree(tmp_path / "home", ignore_errors=True)


@pytest.mark.long
class TestPackedBox:
    """The box as somebody gets it who has Vagrant and libvirt, and nothing of testbed."""

    VAGRANTFILE = """
Vagrant.configure("2") do |config|
  config.vm.box = "testbed"
  config.vm.box_url = "{url}"
  config.vm.boot_timeout = 300
  config.vm.provider(:libvirt) {{ |libvirt| libvirt.driver = "{driver}" }}
end
"""

    def test_it_is_added_booted_and_its_key_replaced(
        self, provider: VagrantProvider, tmp_path: Path
    ) -> None:
        env = {**os.environ, "TESTBED_STATE": str(tmp_path)}
        run([sys.executable, "-m", "testbed", "box", "package", tmp_path], env=env, timeout=300)
        provider.create_fabric(LAB, load_text(TWO, "contract.yaml"))
        cell = provider.make_hypervisor(
            LAB
        )  # a machine with libvirt, and another Vagrant's folders
        driver = hypervisor.read(cell)["driver"]
        # The cell has folders of its own in place of /tmp: what is packed is handed in.
        for name in ("testbed.json", "testbed.box"):
            cell.put((tmp_path / name).read_bytes(), f"/var/lib/mine/{name}")
        catalogue = cell.get("/var/lib/mine/testbed.json").decode()
        cell.put(
            catalogue.replace(str(tmp_path), "/var/lib/mine").encode(), "/var/lib/mine/testbed.json"
        )
        text = self.VAGRANTFILE.format(url="file:///var/lib/mine/testbed.json", driver=driver)
        cell.put(text.encode(), "/var/lib/mine/Vagrantfile")
        mine = {**hypervisor.environment(), "VAGRANT_CWD": "/var/lib/mine"}
        mine["VAGRANT_HOME"] = "/var/lib/mine/home"
        out = cell.run(["vagrant", "up"], env=mine, timeout=600).stdout
        assert "Calculating and comparing box checksum" in out
        assert "Inserting generated public key" in out
        said = cell.run(["vagrant", "ssh", "-c", "hostname"], env=mine, timeout=120).stdout
        assert said.strip() == "box"
