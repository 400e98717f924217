"""Two virtual machines, flannel over them, the design's claims; and nothing left."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from crash.means import Bed
from verdicts import compare, skipped, verdicts_hold

from testbed.process import run
from testbed.walk.model import Walk

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


@pytest.mark.seconds(90)
@pytest.mark.parametrize(
    ("provider", "backend"),
    [
        ("qemu", "vxlan"),
        *(
            pytest.param(*labs, marks=pytest.mark.long)
            for labs in (("qemu", "udp"), ("vagrant", "vxlan"), ("vagrant", "udp"))
        ),
    ],
)
def test_two_node(state: Path, tmp_path: Path, provider: str, backend: str) -> None:
    env = {**os.environ, "TESTBED_STATE": str(state)}

    def testbed(*words: str, seconds: float, check: bool = True) -> str:
        argv = [sys.executable, "-m", "testbed", *words]
        return run(argv, env=env, timeout=seconds, check=check).stdout

    try:
        out = testbed("up", "two-node", "--provider", provider, "--backend", backend, seconds=600)
        assert "two-node is up" in out
        data = tmp_path / "verify.json"
        claims = (*CLAIMS, *OF_BACKEND[backend])
        chosen = [word for claim in claims for word in ("--claim", claim)]
        testbed("verify", "two-node", "-q", *chosen, "--json", str(data), seconds=900)
        (lab,) = json.loads(data.read_text())["labs"]
        assert {finding["claim"] for finding in lab["findings"]} == set(claims)
        assert skipped(lab) == compare(lab, provider) == set()
        words = ("-l", "two-node", "container-1", "node2/container-2", "--tcp", "80", "--json")
        walk = Walk.from_dict(json.loads(testbed("walk", *words, seconds=120)))
        passed = [str(hop.spot) for hop in walk.legs[0].hops if hop.kind == "device"]
        assert passed[0] == "node1/container-1:eth0"
        assert passed[-1] == "node2/container-2:eth0"
        fabric = [
            passed.index(name) for name in ("node1:eth0", "lan:node1", "lan:node2", "node2:eth0")
        ]
        assert fabric == [*range(fabric[0], fabric[0] + 4)]
    finally:
        testbed("down", "two-node", seconds=60)
    assert "two-node" not in testbed("ls", seconds=30)


@pytest.mark.long
@pytest.mark.seconds(600)
@pytest.mark.parametrize("provider", ["qemu", "vagrant"])
@pytest.mark.parametrize("topology", ["two-node", "docker-single", "netns-experiments"])
def test_every_claim(state: Path, tmp_path: Path, provider: str, topology: str) -> None:
    bed = Bed(state)
    try:
        verdicts_hold(bed, tmp_path, topology, provider)
    finally:
        bed.must("down", "--all")
    assert bed.leftovers() == []
