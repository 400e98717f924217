"""Virtual machines of QEMU: how they come, are found and go, and what is theirs alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest
from machines import make
from provider_contract import TWO, FleetContract, spec, until

from testbed.artifacts import Store
from testbed.errors import ServiceError
from testbed.nodes.netns import find
from testbed.nodes.netns.provider import NetnsProvider, mac_of
from testbed.nodes.qemu import cell as cells
from testbed.nodes.qemu import machine as machines
from testbed.nodes.qemu.command import Hardware
from testbed.process import run
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.nodes.base import Node, Provider
    from testbed.nodes.netns.node import NetnsNode
    from testbed.nodes.qemu.provider import QemuProvider

LAB = "contract"
#: What decides quickly, of what both back ends have: docker0, addresses, veth pairs, the routes
#: that Docker and flanneld set, what is in etcd, and containers that reach each other.
CLAIMS = (
    "bridge-docker0-is-linux-bridge",
    "bridge-docker0-first-address",
    "bridge-docker0-address-32",
    "bridge-is-container-default-gateway",
    "bridge-container-ip-from-subnet",
    "ip-host-and-docker0-different-ranges",
    "ip-gateway-written-as-32",
    "veth-container-has-peer-end",
    "veth-one-end-on-bridge",
    "veth-link-ids-match",
    "nat-outbound-source-is-container",
    "nat-outbound-snat-to-eth0-address",
    "nat-outbound-reaches-external",
    "flannel-virtual-network-per-node",
    "flannel-unique-subnet-per-node",
    "flannel-container-ip-in-node-range",
    "flannel-etcd-key-naming",
    "flannel-etcdctl-ls",
    "flannel-overlay-connects-all",
)
#: What one back end alone has: its device, its routes and tables, and what is on the wire.
OF_BACKEND = {
    "vxlan": (
        "flannel-vxlan-device-name",
        "flannel-vxlan-vtep-address",
        "flannel-vxlan-route-entry",
        "flannel-vxlan-route-used",
        "flannel-vxlan-arp-entry",
        "flannel-vxlan-mac-from-arp-table",
        "flannel-vxlan-fdb-entry",
        "flannel-vxlan-fdb-maps-mac-to-host",
        "flannel-vxlan-frame-in-udp",
        "flannel-vxlan-packet-structure",
        "flannel-vxlan-kernel-l2-over-l3",
        "flannel-vxlan-no-userspace-datapath",
        "flannel-vxlan-vni-selects-frames",
        "flannel-vxlan-container1-to-container4",
    ),
    "udp": (
        "flannel-udp-node1-addresses",
        "flannel-udp-docker0-in-host-subnet",
        "flannel-udp-route-default",
        "flannel-udp-route-overlay",
        "flannel-udp-route-overlay-attributes",
        "flannel-udp-flannel0-address",
        "flannel-udp-route-local-subnet",
        "flannel-udp-route-host-network",
        "flannel-udp-longest-prefix",
        "flannel-udp-tun-is-l3",
        "flannel-udp-path-docker0-to-flannel0",
        "flannel-udp-flanneld-receives",
        "flannel-udp-ip-in-udp",
        "flannel-udp-outer-node-addresses",
        "flannel-udp-port-8285-listen",
        "flannel-udp-port-8285-destination",
        "flannel-udp-remote-delivery",
        "flannel-udp-three-crossings",
    ),
}


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
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[QemuProvider, list[Node]]]:
    """Two machines and the rest of the world, joined."""
    provider = make(tmp_path_factory.mktemp("pair") / "state")
    topology = load_text(TWO, "contract.yaml")
    try:
        provider.create_fabric(LAB, topology)
        with ThreadPoolExecutor() as pool:
            names = ("node1", "node2")
            made = list(pool.map(lambda name: provider.create(LAB, spec(name)), names))
        for node in made:
            provider.connect(LAB, topology, node)
        yield provider, made
    finally:
        provider.destroy(LAB)


def told(node: Node, path: str) -> str:
    return node.get(path).decode().strip()


class TestMachines:
    """Each is a machine, and another than the one beside it."""

    def test_each_has_a_kernel_of_its_own(self, pair: tuple[QemuProvider, list[Node]]) -> None:
        boots = {told(node, "/proc/sys/kernel/random/boot_id") for node in pair[1]}
        ours = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert ours not in boots

    @pytest.mark.parametrize(
        "path", ["/etc/hostname", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub",
                 "/root/.ssh/authorized_keys", "/proc/sys/kernel/hostname"],
    )  # fmt: skip
    def test_nothing_that_names_it_is_the_others_too(
        self, pair: tuple[QemuProvider, list[Node]], path: str
    ) -> None:
        one, two = (told(node, path) for node in pair[1])
        assert one != two
        assert one

    def test_both_draw_other_numbers(self, pair: tuple[QemuProvider, list[Node]]) -> None:
        one, two = (node.run(["head", "-c", "16", "/dev/urandom"]).out for node in pair[1])
        assert one != two

    def test_the_clock_is_right_though_it_was_saved_long_ago(
        self, pair: tuple[QemuProvider, list[Node]]
    ) -> None:
        for node in pair[1]:
            assert abs(float(node.run(["date", "+%s"]).stdout) - time.time()) < 30

    def test_addresses_are_the_topologys(self, pair: tuple[QemuProvider, list[Node]]) -> None:
        topology = load_text(TWO, "contract.yaml")
        for node in pair[1]:
            links = {one["ifname"]: one for one in node.run(["ip", "-j", "address"]).json()}
            for index, address in enumerate(topology.nodes[node.name].networks.values()):
                link = links[f"eth{index}"]
                assert link["address"] == mac_of(address)
                assert str(address) in [one["local"] for one in link["addr_info"]]

    def test_they_reach_each_other(self, pair: tuple[QemuProvider, list[Node]]) -> None:
        assert pair[1][0].run(["ping", "-c1", "-W5", "10.168.0.3"]).ok
        assert pair[1][1].run(["ping", "-c1", "-W5", "10.168.0.2"]).ok

    def test_a_machine_is_none_of_the_namespace_nodes(
        self, pair: tuple[QemuProvider, list[Node]]
    ) -> None:
        assert pair
        kinds = [init.kind for init in find.inits() if init.lab == LAB]
        assert "cell" in kinds
        assert "node" not in kinds

    def test_one_is_made_anew_and_joined_again(self, pair: tuple[QemuProvider, list[Node]]) -> None:
        provider, made = pair
        provider.destroy(LAB, ["node2"])
        made[1] = provider.create(LAB, spec("node2"))
        provider.connect(LAB, load_text(TWO, "contract.yaml"), made[1])
        # The MAC address is the same, so what its peer has in its cache still holds.
        assert made[0].run(["ping", "-c1", "-W5", "10.168.0.3"]).ok


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
            claims = (*CLAIMS, *OF_BACKEND[backend])
            chosen = [word for claim in claims for word in ("--claim", claim)]
            testbed("verify", "two-node", "-q", *chosen, "--json", str(data), seconds=900)
            (lab,) = json.loads(data.read_text())["labs"]
            verdicts = {finding["claim"]: finding["verdict"] for finding in lab["findings"]}
            assert verdicts.keys() == set(claims)
            assert not [claim for claim, verdict in verdicts.items() if verdict == "not here"]
            assert lab["facts"]["provider"] == "qemu"
        finally:
            testbed("down", "two-node", seconds=60)
        assert "two-node" not in testbed("ls", seconds=30)
