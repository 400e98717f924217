"""VLANs of ports: what a file can say, and what the bridges of the fabric are told."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from topology_texts import problems

from testbed import kernel
from testbed.errors import MachineError
from testbed.labs import plan, preflight
from testbed.labs.preflight import kernel_features
from testbed.nodes.netns import provider as netns
from testbed.nodes.netns import vlans
from testbed.nodes.netns.provider import NetnsProvider
from testbed.requirement import Requirement
from testbed.topology import Topology, load_data, load_text
from testbed.topology.ports import Port

if TYPE_CHECKING:
    from collections.abc import Sequence

TEXT = """\
name: v
networks: {lan: {subnet: 10.1.0.0/24}, plain: {subnet: 10.2.0.0/24}}
nodes:
  a: {networks: {lan: {address: 10.1.0.1, vlan: 10}, plain: 10.2.0.1}}
  b: {networks: {lan: {trunk: [10, 20]}}}
  c: {networks: {lan: {address: 10.1.0.3, vlan: 30, trunk: [10]}}}
  d: {networks: {lan: 10.1.0.4, plain: 10.2.0.4}}
"""
#: What `bridge -j vlan show` of iproute2 6.1 prints: a range has one entry.
SHOWN: list[dict[str, Any]] = [
    {"ifname": "br-lan", "vlans": [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}]},
    {"ifname": "a", "vlans": [{"vlan": 10, "flags": ["PVID", "Egress Untagged"]}]},
    {"ifname": "b", "vlans": [{"vlan": 10}, {"vlan": 20}]},
    {"ifname": "c", "vlans": [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]},
                              {"vlan": 7, "vlanEnd": 9}]},
    {"ifname": "d", "vlans": [{"vlan": 1, "flags": ["PVID", "Egress Untagged"]}]},
]  # fmt: skip


def topology(text: str = TEXT) -> Topology:
    return load_text(text, "t.yaml")


def test_it_is_read_and_written_back() -> None:
    plain = topology().to_dict()
    assert plain["nodes"]["a"]["networks"]["lan"] == {"address": "10.1.0.1", "vlan": 10}
    assert plain["nodes"]["b"]["networks"]["lan"] == {"trunk": [10, 20]}
    assert plain["nodes"]["d"]["networks"]["lan"] == "10.1.0.4"
    assert load_data(plain, "t.yaml") == topology()


def test_only_its_own_vlan_changes_a_node() -> None:
    before, after = topology(), topology(TEXT.replace("vlan: 10", "vlan: 11"))
    changed = {n for n in after.nodes if after.node_digest(n) != before.node_digest(n)}
    assert changed == {"a"}


@pytest.mark.parametrize(
    ("old", "new", "line", "seen"),
    [
        ("vlan: 10", "vlan: 0", 4, "0"),
        ("vlan: 10", "vlan: 4095", 4, "4095"),
        ("vlan: 10", "vlan: red", 4, "'red'"),
        ("trunk: [10, 20]", "trunk: [10, 10]", 5, "10"),
        ("vlan: 30", "vlan: 10", 6, "both"),
        ("a: {", "a: {provider: containerlab, ", 4, "some"),
    ],
)
def test_what_cannot_be(old: str, new: str, line: int, seen: str) -> None:
    (problem,) = problems(TEXT.replace(old, new))
    assert (problem.line, seen in problem.seen, bool(problem.hint)) == (line, True, True)


def test_virtual_machines_are_on_the_same_bridges() -> None:
    assert topology(TEXT.replace("a: {", "a: {provider: qemu, ")).nodes["a"].ports[0].vlan == 10


def test_a_kernel_without_the_filter_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "bridge vlan" in kernel_features(topology())
    for key in ("vlan: 10", "trunk: [10, 20]", "vlan: 30, trunk: [10]"):
        assert key in TEXT
    without = TEXT.replace(", vlan: 10", "").replace("{trunk: [10, 20]}", "{}")
    without = without.replace(", vlan: 30, trunk: [10]", "")
    assert "bridge vlan" not in kernel_features(topology(without))
    found = [
        Requirement(
            one.name, one.name != "bridge vlan", "Operation not supported", "another kernel"
        )
        for one in kernel.FEATURES
    ]
    monkeypatch.setattr(kernel, "features", lambda: found)
    with pytest.raises(MachineError) as caught:
        preflight.check(topology(), tmp_path)
    assert [*caught.value.missing] == ["bridge vlan"]
    (feature,) = (one for one in kernel.FEATURES if one.name == "bridge vlan")
    assert "VLAN_8021Q" in feature.option


def test_networks_with_vlans_are_switches() -> None:
    assert vlans.networks(topology()) == {"lan"}
    ports = {node.name: node.first_on("lan") for node in topology().nodes.values()}
    assert {name: vlans.wanted(port) for name, port in ports.items()} == {
        "a": {10: True}, "b": {10: False, 20: False}, "c": {10: False, 30: True}, "d": {1: True},
    }  # fmt: skip


def test_they_are_told() -> None:
    about = {step.name: step.about for step in plan.make(topology()).steps.values()}
    assert "eth0 in VLAN 10" in about["node a"]
    assert "eth0 in VLAN 10 (tagged), VLAN 20 (tagged)" in about["node b"]
    assert "VLAN" not in about["node d"]


def test_only_what_differs_is_changed() -> None:
    seen = vlans.read(SHOWN)
    assert seen["c"] == {1: True, 7: False, 8: False, 9: False}
    ports = {node.name: node.first_on("lan") for node in topology().nodes.values()}
    assert {name: vlans.lines(name, port, seen[name]) for name, port in ports.items()} == {
        "a": [],
        "b": [],
        "c": [
            "vlan del dev c vid 1", "vlan del dev c vid 7", "vlan del dev c vid 8",
            "vlan del dev c vid 9", "vlan add dev c vid 10",
            "vlan add dev c vid 30 pvid untagged",
        ],
        "d": [],
    }  # fmt: skip
    # A tag that is to go.
    assert vlans.lines("a", Port("lan", "eth0", vlan=10), {10: False}) == [
        "vlan add dev a vid 10 pvid untagged"
    ]


class Fabric:
    """The fabric's namespace, which answers and notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.filters: dict[str, str] = {}
        self.init = SimpleNamespace(pid=1, alive=lambda: True)

    def run(self, argv: Sequence[str], *, input: bytes = b"") -> Any:
        if tuple(argv) == vlans.LOOK:
            return SimpleNamespace(json=lambda: SHOWN)
        self.told += input.decode().splitlines()
        return None


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> Fabric:
    found = Fabric()
    links = {
        name: {"state": "up", "master": "br-plain" if name.endswith(".1") else "br-lan"}
        for name in ("a", "a.1", "b", "c", "d", "d.1")
    }

    def shown(_: object) -> dict[str, dict[str, str]]:
        plain = {"state": "up", "master": ""}
        return links | {
            name: {**plain, "filters": found.filters.get(name, "")}
            for name in ("br-lan", "br-plain")
        }

    monkeypatch.setattr(netns, "_links", shown)
    monkeypatch.setattr(NetnsProvider, "fabric", lambda *_: found)
    monkeypatch.setattr(
        NetnsProvider, "_batch", lambda _self, _pid, _where, lines: found.told.extend(lines)
    )
    return found


def test_a_port_in_other_vlans_is_a_difference(fabric: Fabric, tmp_path: Path) -> None:
    provider = NetnsProvider(tmp_path, lambda: tmp_path)
    found = provider.differences("v", topology())
    assert found.keys() == {"c"}
    (one,) = found["c"]
    assert (one.kind, one.index) == ("port", 0)
    assert "30 untagged" in one.seen
    # And nobody looks at VLANs where the file has none.
    assert not provider.differences("v", topology(TEXT.partition("  a:")[0] + "  d: {}\n"))
    assert not fabric.told


def test_the_bridge_filters_and_ports_are_restored(fabric: Fabric, tmp_path: Path) -> None:
    provider = NetnsProvider(tmp_path, lambda: tmp_path)
    provider.create_fabric("v", topology())
    assert fabric.told == ["link set dev br-lan type bridge vlan_filtering 1"]
    differences = provider.differences("v", topology())["c"]
    node: Any = SimpleNamespace(name="c")
    assert provider.plug_in_again("v", topology(), node, differences) == set()
    assert fabric.told[1:] == [
        "link set dev c master br-lan up",
        *vlans.lines("c", topology().nodes["c"].ports[0], vlans.read(SHOWN)["c"]),
    ]


def test_a_bridge_filters_as_long_as_the_file_has_vlans(fabric: Fabric, tmp_path: Path) -> None:
    provider = NetnsProvider(tmp_path, lambda: tmp_path)
    fabric.filters["br-lan"] = vlans.FILTERS
    provider.create_fabric("v", topology())
    assert fabric.told == [], "it does already"
    text = TEXT.replace(", vlan: 10", "").replace("{trunk: [10, 20]}", "{}")
    text = text.replace(", vlan: 30, trunk: [10]", "")
    provider.create_fabric("v", topology(text))
    # Frames with tags pass again.
    assert fabric.told == ["link set dev br-lan type bridge vlan_filtering 0"]


@pytest.mark.parametrize(("value", "words"), [(0, ""), (1, "vlan_filtering 1")])
def test_the_filter_is_read(value: int, words: str) -> None:
    data = {"stp_state": 0, "vlan_filtering": value}
    assert vlans.filters({"linkinfo": {"info_kind": "bridge", "info_data": data}}) == words
    assert vlans.filters({"linkinfo": {"info_kind": "veth"}}) == ""
    assert vlans.filters({}) == ""
