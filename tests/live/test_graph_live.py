"""The graph of a lab and its picture, read off labs that are up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.observe.graph import graph
from testbed.report.picture import draw
from testbed.settings import settings
from testbed.topology.load import load


def seen(name: str) -> Iterator[dict[str, Any]]:
    topology = load(name)
    lab = Lab(topology.name, settings())
    try:
        lab.up(topology)
        live = LiveLab(lab.context())
        found = graph(live)
        live.close()
        yield found
    finally:
        lab.down()


@pytest.fixture
def docker_single() -> Iterator[dict[str, Any]]:
    yield from seen("docker-single")


@pytest.fixture
def netns_experiments() -> Iterator[dict[str, Any]]:
    yield from seen("netns-experiments")


def peers(node: dict[str, Any]) -> dict[str, str]:
    """Namespace and interface to the namespace of its peer, both ways."""
    found = {}
    for one, other in node["pairs"]:
        found["/".join(one)] = other[0]
        found["/".join(other)] = one[0]
    return found


def test_containers_and_their_ports(docker_single: dict[str, Any]) -> None:
    host = docker_single["nodes"][0]
    assert host["error"] == ""
    spaces = {space["name"]: space for space in host["spaces"]}
    assert spaces["nginx-1"]["links"][0]["addresses"] == ["172.17.0.2/16"]
    assert spaces["web"]["published"] == ["8080:80/tcp"]
    assert spaces["sidecar"]["shares"] == "nginx-1"
    assert (spaces["in-host-mode"]["mode"], spaces["in-none-mode"]["links"]) == ("host", [])
    joined = peers(host)
    for name in ("nginx-1", "nginx-2", "web"):
        assert joined[f"{name}/eth0"] == "", name
    ports = [link for link in host["links"] if link["master"] == "docker0"]
    assert sorted(f"/{port['name']}" for port in ports) == sorted(
        end for end, space in joined.items() if space
    )
    picture = draw(json.loads(json.dumps(docker_single)), id="p", title="docker-single")
    for port in ports:
        assert f">{port['name']}<" in picture


def test_namespaces_joined_directly_and_by_a_bridge(netns_experiments: dict[str, Any]) -> None:
    (host,) = netns_experiments["nodes"]
    assert peers(host) == {
        "ns1/veth0": "ns2",
        "ns2/veth1": "ns1",
        "ns1/br-veth0": "",
        "ns2/br-veth1": "",
        "/brvethotherend0": "ns1",
        "/brvethotherend1": "ns2",
    }
