"""The keys of nodes on virtual machines, and VLANs in one, whose kernel has them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from labs import brought_up
from say_keys import DELAY, check, spoil_and_mend, text

import testbed
from testbed import kernel
from testbed.artifacts import Store
from testbed.nodes.netns import vlans
from testbed.topology import load_text
from testbed.topology.ports import Port

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.nodes.base import Node

#: Both providers' machines are of the same box; Vagrant takes a minute to bring them up.
PROVIDERS = ["qemu", pytest.param("vagrant", marks=pytest.mark.long)]
#: Ports of a switch: two in VLAN 10, one in the default one, and a trunk.
PORTS = {
    "p10": Port("lan", "eth0", vlan=10),
    "q10": Port("lan", "eth0", vlan=10),
    "p1": Port("lan", "eth0"),
    "trunk": Port("lan", "eth0", trunk=(10, 20)),
    "native": Port("lan", "eth0", vlan=1, trunk=(20,)),
}
#: Place on the machine for testbed and the file of a lab in it.
HERE = "/srv/testbed"
LAB = f"""\
name: switch
networks: {{lan: {{}}, slow: {{subnet: 10.9.0.0/24, delay: {DELAY}ms, loss: 0.001%}}}}
nodes:
  sales: {{networks: {{lan: {{address: 10.1.0.2/24, vlan: 10}}, slow: 10.9.0.2}}}}
  peer: {{networks: {{lan: {{address: 10.1.0.3/24, vlan: 10}}, slow: 10.9.0.3}}}}
  stock: {{networks: {{lan: {{address: 10.1.0.4/24, vlan: 20}}}}}}
  router:
    networks: {{lan: {{trunk: [10]}}}}
    run:
      - ip link add link eth0 name v10 type vlan id 10
      - ip address add 10.1.0.1/24 dev v10
      - ip link set dev v10 up
  other: {{networks: {{lan: {{address: 10.1.0.5/24, vlan: 20, trunk: [10]}}}}}}
"""
SWITCH = f"""\
set -e
for module in bridge veth 8021q; do modprobe $module; done
ip link add name sw type bridge {vlans.FILTERS}
ip link set dev sw up
number=0
for name; do
    number=$((number + 1))
    ip netns add $name
    ip link add name $name type veth peer name eth0 netns $name
    ip link set dev $name master sw up
    ip -n $name link set dev eth0 up
    ip -n $name address add 10.7.0.$number/24 dev eth0
done
"""


@pytest.fixture(scope="module", params=PROVIDERS)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    shaping = f"rate: 20mbit, delay: {DELAY}ms"  # by the kernel of the machines
    topology = load_text(text(request.param, shaping), f"{request.param}.yaml")
    yield from brought_up(topology, tmp_path_factory.mktemp("state"))


def test_nodes_are_as_the_file_says(lab: Lab) -> None:
    check(lab, "netem")


def test_what_is_lost_comes_back(lab: Lab) -> None:
    spoil_and_mend(lab, "netem")


def test_a_machine_can_have_interfaces_of_vlans(lab: Lab) -> None:
    """Frames with tags pass through the lab's network, without a VLAN of the file."""
    for number, (name, link) in enumerate((("a", "eth5"), ("b", "eth1")), 1):
        lines = (
            f"link add link {link} name v10 type vlan id 10",
            f"address add 10.5.0.{number}/24 dev v10",
            "link set dev v10 up",
        )
        node = lab.context().node(name)
        node.run(["modprobe", "8021q"])
        node.run(["ip", "-batch", "-"], input="\n".join(lines).encode())
    assert lab.context().node("b").run(["ping", "-c3", "-W5", "10.5.0.1"]).ok


def test_a_kernel_with_vlans_does_what_the_bridge_is_told(lab: Lab) -> None:
    """The commands for the bridges of the fabric, in a machine whose kernel has the filter."""
    node = lab.context().node("b")
    node.run(["sh", "-c", SWITCH, "sh", *PORTS])
    (trial,) = (one.try_it for one in kernel.FEATURES if one.name == "bridge vlan")
    assert node.run(["sh", "-c", trial]).ok
    seen = vlans.read(node.run(vlans.LOOK).json())
    lines = [one for name, port in PORTS.items() for one in vlans.lines(name, port, seen[name])]
    node.run(["bridge", "-batch", "-"], input="\n".join(lines).encode())
    seen = vlans.read(node.run(vlans.LOOK).json())
    for name, port in PORTS.items():
        assert seen[name] == vlans.wanted(port)
        assert not vlans.lines(name, port, seen[name])
    assert _reaches(node, "p10", 2)
    assert not _reaches(node, "p10", 3)
    assert _reaches(node, "p1", 5), "both without a tag in VLAN 1"
    assert not _reaches(node, "p10", 4)
    inside = ("link add link eth0 name v10 type vlan id 10", "address add 10.7.0.44/24 dev v10",
              "address del 10.7.0.4/24 dev eth0", "link set dev v10 up")  # fmt: skip
    node.run(["ip", "-n", "trunk", "-batch", "-"], input="\n".join(inside).encode())
    assert _reaches(node, "p10", 44)


class Inner:
    """testbed itself on a machine, whose kernel has VLANs and netem."""

    def __init__(self, node: Node) -> None:
        self._node = node
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for place in (Path(testbed.__file__).parent, *map(_folder, ("click", "yaml"))):
                tar.add(place, place.name, filter=_sources)
            names = metadata.distribution("container-testbed").read_text("entry_points.txt")
            _add(tar, f"container_testbed-{testbed.__version__}.dist-info/entry_points.txt", names)
            tar.add(Store().binary("testbed-init"), "testbed-init")
        node.run(["mkdir", "-p", HERE])
        node.run(["tar", "--extract", "--directory", HERE], input=data.getvalue())

    def __call__(self, *words: str, status: int = 0) -> str:
        given = ["--artifact", f"testbed-init={HERE}/testbed-init"] if words[0] == "up" else []
        env = {"PYTHONPATH": HERE, "HOME": HERE}
        argv = ["python3", "-m", "testbed", *words, *given]
        with self._node.spawn(argv, env=env) as running:
            done = running.wait(600)
        assert done.status == status, (done.stdout, done.stderr)
        return done.stdout

    def exec(self, node: str, *words: str, status: int = 0) -> str:
        return self("exec", "-l", "switch", node, *words, status=status)


def _folder(module: str) -> Path:
    found = util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _sources(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in info.name else info


def _add(tar: tarfile.TarFile, name: str, text: str | None) -> None:
    data = (text or "").encode()
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_a_whole_lab_with_vlans_and_delays_on_a_kernel_that_has_them(lab: Lab) -> None:
    node = lab.context().node("b")
    for module in ("bridge", "veth", "8021q", "sch_netem"):
        node.run(["modprobe", module])
    inner = Inner(node)
    node.put(LAB.encode(), f"{HERE}/lab.yaml")
    inner("up", f"{HERE}/lab.yaml", "-q")
    inner("status", "switch")
    inner.exec("sales", "ping", "-c2", "-W5", "10.1.0.3")
    inner.exec("sales", "ping", "-c1", "-W2", "10.1.0.4", status=1)
    inner.exec("router", "ping", "-c2", "-W5", "10.1.0.2")  # with the tag
    inner.exec("other", "ping", "-c2", "-W5", "10.1.0.4")  # without: the native VLAN of the trunk
    inner.exec("sales", "ping", "-c1", "-W5", "10.9.0.3")
    rtt = inner.exec("sales", "ping", "-c2", "-W5", "10.9.0.3").rpartition("= ")[2]
    assert float(rtt.partition("/")[0]) >= 2 * DELAY
    inner.exec("sales", "tc", "qdisc", "del", "dev", "eth1", "root")
    assert "netem" not in inner.exec("sales", "tc", "qdisc", "show", "dev", "eth1")
    inner("status", "switch", status=1)
    inner("up", f"{HERE}/lab.yaml", "-q")
    inner("status", "switch")
    edited = LAB.replace("vlan: 20}", "vlan: 10}")
    node.put(edited.encode(), f"{HERE}/lab.yaml")
    inner("up", f"{HERE}/lab.yaml", "-q")
    inner.exec("sales", "ping", "-c2", "-W5", "10.1.0.4")
    inner("down", "switch")


def _reaches(node: Node, space: str, number: int) -> bool:
    argv = ["ip", "netns", "exec", space, "ping", "-c2", "-W2", f"10.7.0.{number}"]
    return node.run(argv, check=False).ok
