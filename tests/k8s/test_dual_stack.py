"""A cluster of both IP families, with Pods on two nodes and Services."""

from __future__ import annotations

from ipaddress import IPv6Address, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any

import pytest
from crash.means import Bed, Watch

from k8s.conftest import PODS, Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

LAB = """\
name: k8s-dual-stack
networks: {lan: {subnet: 10.168.0.0/24, subnet6: "fd00:1::/64"}}
nodes:
  node1: {networks: {lan: 10.168.0.2}, roles: [kubernetes]}
  node2: {networks: {lan: 10.168.0.3}, roles: [kubernetes]}
kubernetes: {ipv6: {pods: "fd00:244::/56", services: "fd00:245::/112"}}
"""
SERVICE = """
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: web}, ports: [{port: 80}]}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("dual")
    watch, bed = Watch(folder), Bed(folder / "state")
    (folder / "lab.yaml").write_text(LAB, encoding="utf-8")
    try:
        bed.must("up", str(folder / "lab.yaml"), "-q")
        made = Cluster(bed, "k8s-dual-stack")
        made.kubectl("apply", "-f", "-", input=PODS + SERVICE)
        made.kubectl("wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s")
        yield made
    finally:
        bed.must("down", "--all")
    assert bed.leftovers() == []
    watch.check()


def addresses(cluster: Cluster, pod: str) -> list[str]:
    return [one["ip"] for one in cluster.get("pod", pod)["status"]["podIPs"]]


def test_a_pod_has_two_addresses(cluster: Cluster) -> None:
    """They are in the ranges of its node, which has both of them in the API."""
    node: dict[str, Any] = cluster.get("node", "node2")
    internal = [a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"]
    assert internal == ["10.168.0.3", "fd00:1::3"]
    assert node["spec"]["podCIDRs"] == ["100.96.2.0/24", "fd00:244:0:2::/64"]
    found = addresses(cluster, "web-2")
    assert [str(ip_network(one).version) for one in found] == ["4", "6"]
    assert IPv6Address(found[1]) in IPv6Network("fd00:244:0:2::/64")


def test_pods_of_two_nodes_reach_each_other_over_ipv6(cluster: Cluster) -> None:
    mine, theirs = (addresses(cluster, pod)[1] for pod in ("client", "web-2"))
    answer = cluster.fetch("client", f"http://[{theirs}]/")
    assert (answer["name"], answer["client"].rpartition(":")[0]) == ("web-2", mine)
    assert "flannel-v6.1" in cluster.on("node1", "ip", "-6", "route", "get", theirs)


def test_a_service_of_both_families_answers_on_both(cluster: Cluster) -> None:
    spec = cluster.get("service", "both")["spec"]
    four, six = spec["clusterIPs"]
    assert spec["ipFamilies"] == ["IPv4", "IPv6"]
    assert IPv6Address(six) in IPv6Network("fd00:245::/112")
    for host in (four, f"[{six}]"):
        assert cluster.fetch("client", f"http://{host}/")["name"].startswith("web-")
    # CoreDNS has both addresses of the name.
    said = cluster.kubectl("exec", "client", "--", "getent", "ahosts", "both.default")
    assert {four, six} <= {line.split()[0] for line in said.splitlines()}
    # A Service that asks for no policy has one address (kubernetes.io, "IPv4/IPv6 dual-stack").
    assert len(cluster.get("service", "web")["spec"]["clusterIPs"]) == 1


def test_a_second_up_of_it_changes_nothing(cluster: Cluster) -> None:
    assert "unchanged" in cluster.bed.must("up", "-l", "k8s-dual-stack").stdout
