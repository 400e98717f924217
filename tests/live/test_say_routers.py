"""Routers and packages of nodes that a file asks for, on one lab of real FRR and BIRD."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from labs import brought_up

from testbed.errors import StepsFailed
from testbed.labs.live import LiveLab
from testbed.labs.status import status
from testbed.polling import until
from testbed.topology import load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

LATE = 60.0  # seconds; for hanging only
TEXT = """
name: say-routers
networks:
  left: {subnet: 172.16.1.0/24}
  between: {subnet: 10.0.0.0/30}
  right: {subnet: 172.16.2.0/24}
nodes:
  r1:
    networks: {between: 10.0.0.1, left: 172.16.1.1}
    roles: [frr]
    packages: [netcat-openbsd]
    frr:
      config:
        file: r1.conf
        content: |
          router bgp 65001
           no bgp ebgp-requires-policy
           neighbor 10.0.0.2 remote-as 65002
           neighbor 10.0.0.2 timers connect 1
           address-family ipv4 unicast
            network 172.16.1.0/24
           exit-address-family
  r2:
    networks: {between: 10.0.0.2, right: 172.16.2.1}
    roles: [bird]
    bird: {bgp: {asn: 65002, neighbors: [10.0.0.1: 65001], networks: [right]}}
  h1: {networks: {left: 172.16.1.2}, routes: [default via 172.16.1.1]}
  h2: {networks: {right: 172.16.2.2}, routes: [default via 172.16.2.1]}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    topology = load_text(TEXT, "say-routers.yaml")
    yield from brought_up(topology, tmp_path_factory.mktemp("state"))


@pytest.fixture
def lab(made: Lab) -> Iterator[LiveLab]:
    with LiveLab(made.context()) as live:
        yield live


def test_a_packet_passes_both_routers(lab: LiveLab) -> None:
    host = lab.node("h1")
    assert until(
        lambda: host.run(["ping", "-c1", "-W1", "172.16.2.2"], check=False).ok, LATE, pause=0.2
    )


def test_programs_of_a_package_are_on_its_node_alone(lab: LiveLab) -> None:
    assert "OpenBSD" in lab.node("r1").run(["nc", "-h"], check=False).stderr
    assert lab.node("r1").run(["vtysh", "-c", "show version"]).ok
    for name, program in (("r2", "vtysh"), ("r1", "birdc"), ("h1", "vtysh")):
        found = lab.node(name).run(["sh", "-c", f"command -v {program}"], check=False)
        assert found.ok == (shutil.which(program) is not None), (name, program)
    assert lab.node("r1").host.package("frr").is_installed
    assert lab.node("r1").run(["id", "-nG", "frr"]).stdout.split() == ["frr", "frrvty"]
    assert lab.node("r1").run(["touch", "/usr/lib/x"], check=False).status == 1


def test_status_has_the_daemons_and_the_neighbours(lab: LiveLab) -> None:
    seen = status(lab.context)
    parts = {node.name: node for node in seen.nodes}
    daemons = {"zebra", "staticd", "bgpd"}
    if int(lab.facts["frr"].partition(".")[0]) >= 9:
        daemons.add("mgmtd")
    assert {one.name for one in parts["r1"].services} == daemons
    assert [one.name for one in parts["r1"].more["neighbour"]] == ["BGP 10.0.0.2"]
    assert [one.name for one in parts["r2"].more["neighbour"]] == ["BGP peer1"]
    assert seen.ok
    assert lab.facts["frr"][0].isdigit()
    assert lab.facts["bird"][0].isdigit()


def test_a_daemon_that_is_started_again_has_its_configuration(lab: LiveLab) -> None:
    node = lab.node("r1")
    node.run(["systemctl", "restart", "bgpd"])

    def configured() -> bool:
        said = node.run(["vtysh", "-d", "bgpd", "-c", "show running-config"], check=False)
        return "router bgp 65001" in said.stdout

    assert until(configured, LATE, pause=0.1)


def test_a_refused_line_changes_nothing(made: Lab, lab: LiveLab) -> None:
    before = lab.node("r1").services()
    bad = load_text(TEXT.replace("remote-as 65002", "remote-az 65002"), "say-routers.yaml")
    with pytest.raises(StepsFailed) as caught:
        made.up(bad, replace=True)
    assert "r1.conf:3:" in str(caught.value)
    assert lab.node("r1").services() == before


def test_a_changed_configuration_is_applied_to_the_running_node(made: Lab, lab: LiveLab) -> None:
    def began() -> dict[str, bytes]:
        return {
            name: node.run(["stat", "-c", "%Z", "/proc/1"]).out for name, node in lab.nodes.items()
        }

    before = began()
    text = TEXT.replace("bird: {bgp", "bird: {router_id: 9.9.9.9, bgp")
    outcome = made.up(load_text(text, "say-routers.yaml"), replace=True)
    assert "bird r2" in [done.step.name for done in outcome.changed]
    assert "9.9.9.9" in lab.node("r2").run(["birdc", "show", "status"]).stdout
    assert began() == before
