"""Parsing of files and output by the suites about CNI and flannel's Pod."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from testbed.catalogues.shipped import test_flannel_pod
from testbed.catalogues.shipped.test_cni import calls, flannels_way
from testbed.claims.observation import Observation
from testbed.nodes.fake import Answer, FakeNode, FakeProvider
from testbed.roles.kubernetes import config
from testbed.suites.cluster import SECOND
from testbed.testing.provider import spec

NETWORK = {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "bridge"}]}


def cached(interface: str, **more: Any) -> str:
    """A file of libcni's cache, as it writes it: one line without its end."""
    return json.dumps(
        {
            "kind": "cniCacheV1",
            "containerId": "c0",
            "config": base64.b64encode(json.dumps(NETWORK).encode()).decode(),
            "ifName": interface,
            "networkName": NETWORK["name"],
            "cniArgs": [["K8S_POD_NAMESPACE", "checks"], ["K8S_POD_NAME", "web-1"]],
            "result": {"ips": [{"address": "100.96.1.7/24"}, {"address": "100.96.1.7/24"}]},
            **more,
        }
    )


def node_with(program: str, text: str) -> FakeNode:
    provider = FakeProvider()
    provider.script([program], Answer(out=text.encode()))
    return provider.create_one("lab", spec("node1"))


def test_a_call_of_containerd_is_read_and_the_loopbacks_is_not() -> None:
    text = f"{cached('lo')}\n{cached('eth0')}\n{cached('eth0')[:40]}\n"
    (found,) = calls(node_with("sh", text))
    assert (found.container, found.network, found.interface) == ("c0", "pods", "eth0")
    assert found.pod == ("checks", "web-1")
    assert found.addresses == ["100.96.1.7"]
    assert found.plugins == NETWORK


def test_a_call_that_names_no_pod_is_nobodys() -> None:
    (found,) = calls(node_with("sh", cached("eth0", cniArgs=None, result={})))
    assert found.pod == ("", "")
    assert found.addresses == []


@pytest.mark.parametrize(
    ("lines", "way"),
    [
        (
            "default via 10.168.0.1 dev eth0 \n"
            "100.96.2.0/24 via 100.96.2.0 dev flannel.1 onlink \n",
            "100.96.2.0/24 via 100.96.2.0 dev flannel.1 onlink",
        ),
        (
            "100.96.0.0/16 dev flannel0 scope link \n100.96.2.0/24 via 10.168.0.3 dev eth0 \n",
            "100.96.2.0/24 via 10.168.0.3 dev eth0",
        ),
    ],
)
def test_the_route_that_is_taken_is_the_longest(lines: str, way: str) -> None:
    assert flannels_way(Observation(), node_with("ip", lines), "100.96.2.5") == way


def test_the_subnet_is_the_network_of_the_first_address() -> None:
    text = "FLANNEL_NETWORK=100.96.0.0/16\nFLANNEL_SUBNET=100.96.2.1/24\nFLANNEL_MTU=1450\n"
    assert test_flannel_pod.leased(text) == "100.96.2.0/24"
    assert test_flannel_pod.leased("") == ""


def test_the_second_networks_file_comes_before_the_first() -> None:
    """A runtime takes the first by name (containerd, max_conf_num)."""
    assert f"{config.CNI}/10-pods.conflist" > SECOND
