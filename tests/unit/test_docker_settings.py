"""Docker's settings of a lab and of its nodes: engines, packet filters, daemon.json."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from topology_texts import DOCKER, LAN, bad, problems

from testbed.claims.observation import Observation
from testbed.errors import UsageError
from testbed.labs import offers
from testbed.labs.lab import Lab, versions_of
from testbed.labs.live import LiveLab
from testbed.labs.preflight import kernel_features, programs
from testbed.nodes.fake import Answer
from testbed.registry import ROLES
from testbed.roles.docker import daemon
from testbed.roles.docker.section import engine_of, firewall_of
from testbed.suites import helpers
from testbed.topology import Overrides, load_data, load_text, vary

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

TWO = (
    LAN + "nodes:\n"
    "  old: {networks: {lan: 10.168.0.2}, roles: [docker]}\n"
    "  new: {networks: {lan: 10.168.0.3}, roles: [docker], "
    "docker: {engine: 29, firewall: nftables}}\n"
)
BOTH = load_text(TWO, "t.yaml")


def test_a_node_has_its_own_engine_and_packet_filter() -> None:
    assert [engine_of(BOTH, name) for name in BOTH.nodes] == ["20.10", "29"]
    assert [firewall_of(BOTH, name) for name in BOTH.nodes] == ["iptables", "nftables"]
    assert load_data(BOTH.to_dict(), "record") == BOTH
    assert ROLES["docker"].summary(BOTH) == "20.10 and 29 with nftables"


def test_a_setting_of_a_node_is_that_of_the_lab_for_its_digest() -> None:
    """Where the file has it does not matter: the node is the same."""
    of_lab = load_text(
        TWO.replace(", docker: {engine: 29, firewall: nftables}", "")
        + "docker: {engine: 29, firewall: nftables}\n",
        "t.yaml",
    )
    assert of_lab.node_digest("new") == BOTH.node_digest("new")
    assert of_lab.node_digest("old") != BOTH.node_digest("old")


def test_an_option_is_for_nodes_without_their_own_setting() -> None:
    changed = vary(BOTH, Overrides(firewall="iptables-nft"))
    assert [firewall_of(changed, name) for name in BOTH.nodes] == ["iptables-nft", "nftables"]
    alone = load_text(DOCKER.replace("[docker]", "[docker], docker: {engine: 29}"), "t.yaml")
    with pytest.raises(UsageError, match="no effect"):
        vary(alone, Overrides(docker="20.10"))


@pytest.mark.parametrize(
    ("node", "lab"),
    [
        ("{firewall: §nftables}", "{}"),
        ("{engine: §20.10}", "{engine: 29, firewall: nftables}"),
        ("{firewall: nftables, engine: 29}", "{}"),
        ("{engine: 29}", "{firewall: iptables-nft}"),
    ],
)
def test_nftables_needs_an_engine_that_has_it_on_each_node(node: str, lab: str) -> None:
    text = DOCKER.replace("[docker]", f"[docker], docker: {node}") + f"docker: {lab}\n"
    expected = bad(text, "nftables")
    assert [(p.line, p.column) for p in problems(expected.plain)] == expected.places


def test_a_node_without_the_role_has_no_settings_of_it() -> None:
    text = LAN + "nodes: {n1: {networks: {lan: 10.168.0.2}, docker: {engine: 29}}}\n"
    (problem,) = problems(text)
    assert "role docker" in problem.wanted


def test_the_programs_of_a_node_are_those_of_its_engine() -> None:
    parts = {
        node.name: {offer.name: of for offer, of in offers.offers_on(BOTH, node).values()}
        for node in BOTH.nodes.values()
    }
    assert parts["old"]["docker"][0] == "docker"
    assert parts["new"]["docker"][0] == "docker-29"


def test_a_lab_needs_what_any_of_its_nodes_needs() -> None:
    assert "nf_tables" in kernel_features(BOTH)
    assert {"nft", "iptables"} <= set(programs(BOTH))


def test_each_node_gets_its_own_engine(bench: Bench) -> None:
    bench.provider.script(["iptables", "--version"], Answer(out=b"iptables v1.8.9 (nf_tables)"))
    lab = Lab(BOTH.name, bench.settings)
    lab.up(BOTH)
    versions = versions_of(bench.store, BOTH)
    assert {"docker", "docker-29"} <= set(versions)
    config = {
        name: json.loads(lab.node(name).get("/etc/docker/daemon.json")) for name in BOTH.nodes
    }
    assert "firewall-backend" not in config["old"]
    assert config["new"]["firewall-backend"] == "nftables"
    live = LiveLab(lab.context())
    assert live.facts == {"provider": "netns", "docker": "mixed", "firewall": "mixed"}
    assert daemon.facts_of(lab.context(), "old")["firewall"] == "iptables-nft"
    assert daemon.facts_of(lab.context(), "new")["firewall"] == "nftables"
    # A suite reads the rules of each node where its own packet filter has them.
    bench.provider.script(["iptables-save"], Answer(out=b"*nat\nCOMMIT\n"))
    bench.provider.script(["nft", "-j", "list"], Answer(out=b'{"nftables": []}'))
    for name, tables in (("old", 0), ("new", 1)):
        helpers.docker_rules(live, Observation(), lab.node(name), "nat")
        asked = [words for words in bench.provider.asked("run", name) if words[:2] == ("nft", "-j")]
        assert len(asked) == tables
