"""A present-day engine on real labs: what it is, what it writes its rules to, what gets through."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.labs.lab import Lab
from testbed.labs.live import LiveLab
from testbed.process import run
from testbed.settings import settings
from testbed.topology import Overrides, load

pytestmark = pytest.mark.usefixtures("state")


def up(name: str, engine: str, firewall: str) -> LiveLab:
    topology = load(name, Overrides(docker=engine, firewall=firewall, name="today"))
    lab = Lab("today", settings())
    lab.up(topology)
    return LiveLab(lab.context())


@pytest.fixture(autouse=True)
def _down(state: Path) -> Iterator[None]:
    assert state
    yield
    Lab("today", settings()).down()


def tables(live: LiveLab, node: str) -> set[str]:
    """The tables of a node's nftables; those of iptables-nft are among them."""
    listed = live.node(node).run(["nft", "-j", "list", "tables"]).json()["nftables"]
    return {item["table"]["name"] for item in listed if "table" in item}


@pytest.mark.parametrize("firewall", ["iptables-nft", "nftables"])
def test_containers_of_two_nodes_reach_each_other(firewall: str) -> None:
    live = up("two-node", "29", firewall)
    try:
        assert live.facts["docker"].startswith("29.")
        assert live.facts["firewall"] == firewall
        assert ("docker-bridges" in tables(live, "node1")) == (firewall == "nftables")
        assert all(live.engine(name).version["Version"] for name in ("node1", "node2"))
        one, other = live.container("container-1"), live.container("container-2")
        for client, server in ((one, other), (other, one)):
            argv = ["curl", "-sS", "--max-time", "5", f"http://{server.address}/"]
            page = client.run(argv).json()
            assert page["name"] == server.name
            assert page["client"].rpartition(":")[0] == client.address  # nothing translated
        # The overlay is let in, nobody else: a stranger with a route is still kept out.
        outside, node1 = live.node("outside"), str(live.topology.address("node1"))
        outside.run(["ip", "route", "add", "172.30.0.0/24", "via", node1])
        live.engine("node1").api.create_network("apart", ipam=pool("172.30.0.0/24"))
        engine = live.engine("node1").api
        made = engine.create_container(
            "nginx", name="apart", host_config=engine.create_host_config(network_mode="apart")
        )
        engine.start(made)
        address = engine.inspect_container(made)["NetworkSettings"]["Networks"]["apart"]
        argv = ["curl", "-sS", "--max-time", "0.5", f"http://{address['IPAddress']}/"]
        assert live.node("node1").run([*argv, "--retry", "20", "--retry-connrefused"]).ok
        assert not outside.run(argv, check=False).ok
    finally:
        live.close()


def pool(subnet: str) -> dict[str, object]:
    return {"Config": [{"Subnet": subnet}]}


@pytest.mark.parametrize("engine", ["20.10", "29"])
def test_iptables_legacy_is_the_nodes_own(engine: str) -> None:
    live = up("docker-single", engine, "iptables-legacy")
    try:
        host = live.node("host")
        assert live.facts["firewall"] == "iptables-legacy"
        for program in ("iptables", "ip6tables", "iptables-save", "iptables-restore"):
            assert "(legacy)" in host.run([program, "--version"]).stdout
        assert "DOCKER" in host.run(["iptables-legacy-save", "-t", "nat"]).stdout
        assert tables(live, "host") == set()
        # The other node, and this machine, have what they had.
        outside = live.node("outside").run(["iptables", "--version"]).stdout
        assert outside == run(["iptables", "--version"]).stdout
        web = live.topology.address("host")
        argv = ["curl", "-sS", "--max-time", "5", f"http://{web}:8080/"]
        assert json.loads(live.node("outside").run(argv).stdout)["name"] == "web"
    finally:
        live.close()
