"""Whole labs as Pods of a cluster, which is a lab of ours: their verdicts, and what they leave."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from crash.means import Bed, Watch
from verdicts import verdicts_hold

from k8s.conftest import Cluster, gone, reached
from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.settings import settings

PROVIDER = "kubernetes"
ROUTER = "r"
#: Nodes of both networks, and their addresses.
LAN = {f"a{number}": f"10.50.0.{number + 1}" for number in range(1, 10)}
BACK = {f"b{number}": f"10.51.0.{number + 1}" for number in range(1, 11)}
#: Pings each argument, and prints those that do not answer.
PINGS = 'for to; do ping -n -q -c1 -W10 "$to" > /dev/null || echo "$to"; done'


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    """A state folder, from which nothing may be left at the end."""
    made = Bed(tmp_path / "state")
    yield made
    made.must("down", "--all")
    assert made.leftovers() == []


def twenty() -> str:
    """Two networks that a router joins, with twenty nodes."""
    lines = [
        "name: twenty",
        f"provider: {PROVIDER}",
        "networks: {lan: {subnet: 10.50.0.0/24}, back: {subnet: 10.51.0.0/24}}",
        "nodes:",
        f"  {ROUTER}: {{networks: {{lan: 10.50.0.1, back: 10.51.0.1}}, forward: true}}",
    ]
    for network, nodes, way in (("lan", LAN, "10.50.0.1"), ("back", BACK, "10.51.0.1")):
        for name, address in nodes.items():
            place = f"networks: {{{network}: {address}}}, routes: [default via {way}]"
            lines.append(f"  {name}: {{{place}}}")
    return "\n".join([*lines, ""])


def all_reach_each_other(bed: Bed) -> None:
    """Ping from each node of the lab ``twenty`` to all others."""
    addresses = {**LAN, **BACK}
    with LiveLab(Lab("twenty", settings(state_folder=bed.state)).context()) as lab:
        assert lab.nodes.keys() == {*addresses, ROUTER}

        def silent(node: str) -> str:
            others = [address for name, address in addresses.items() if name != node]
            return lab.node(node).run(["sh", "-c", PINGS, "sh", *others], timeout=600).stdout

        with ThreadPoolExecutor() as pool:
            assert dict(zip(lab.nodes, pool.map(silent, lab.nodes), strict=True)) == dict.fromkeys(
                lab.nodes, ""
            )


@pytest.mark.seconds(60)
@pytest.mark.parametrize(
    ("topology", "options"),
    [
        pytest.param("two-node", (), id="vxlan"),
        pytest.param("two-node", ("--backend", "udp"), id="udp", marks=pytest.mark.long),
        pytest.param("two-node", ("--backend", "host-gw"), id="host-gw", marks=pytest.mark.long),
        pytest.param("docker-single", (), id="docker", marks=pytest.mark.long),
        pytest.param("netns-experiments", (), id="namespaces"),
    ],
)
def test_a_lab_has_the_verdicts_that_are_known(
    cluster: Cluster,
    kubeconfig: Path,
    bed: Bed,
    tmp_path: Path,
    topology: str,
    options: tuple[str, ...],
) -> None:
    bed.env["KUBECONFIG"] = str(kubeconfig)
    verdicts_hold(bed, tmp_path, topology, PROVIDER, *options)
    assert gone(cluster, topology)


@pytest.mark.seconds(20)
def test_twenty_nodes_reach_each_other_along_the_routes(
    cluster: Cluster, kubeconfig: Path, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    file = tmp_path / "twenty.yaml"
    file.write_text(twenty())
    bed.must("up", str(file), "-q")
    pods = cluster.get("pods", "-A", "-l", "testbed.lab=twenty,testbed.node")["items"]
    assert len(pods) == len(LAN) + len(BACK) + 1
    assert {pod["spec"]["nodeName"] for pod in pods} == {"node1", "node2"}
    all_reach_each_other(bed)
    bed.must("down", "twenty", "-q")
    assert gone(cluster, "twenty")


@pytest.mark.seconds(60)
@pytest.mark.parametrize(
    ("topology", "options", "mtu"),
    [
        # Pods joined by routes have the MTU of the wire, and VXLAN takes 50 of it.
        pytest.param("k8s-two-node", ("--cni", "kube-router"), 1450, id="kube-router"),
        pytest.param("k8s-three-node", (), 1450, id="three-nodes", marks=pytest.mark.long),
    ],
)
def test_other_clusters_carry_labs(
    bed: Bed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    topology: str,
    options: tuple[str, ...],
    mtu: int,
) -> None:
    watch = Watch(tmp_path)
    bed.must("up", topology, *options, "-q")
    cluster, pods = Cluster(bed, topology), Bed(tmp_path / "pods")
    workers = {node["metadata"]["name"] for node in cluster.get("nodes")["items"]}
    with reached(cluster, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        file = tmp_path / "twenty.yaml"
        file.write_text(twenty())
        assert f"MTU {mtu}" in pods.must("up", str(file)).stdout
        found = cluster.get("pods", "-A", "-l", "testbed.lab=twenty,testbed.node")["items"]
        assert {pod["spec"]["nodeName"] for pod in found} == workers
        all_reach_each_other(pods)
        pods.must("down", "twenty", "-q")
        pods.must("up", "two-node", "--provider", PROVIDER, "-q")
        page = ["curl", "-s", "-m", "10", "http://100.96.2.2/"]
        said = pods.must("exec", "-l", "two-node", "node1/container-1", "--", *page).stdout
        assert "container-2" in said
        pods.must("down", "two-node", "-q")
        assert gone(cluster, "two-node")
        assert gone(cluster, "twenty")
    bed.must("down", topology, "-q")
    watch.check()
