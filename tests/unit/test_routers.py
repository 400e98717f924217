"""The roles frr and bird: what a file can say, the configurations written from it, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from testbed.artifacts import debian, release
from testbed.errors import StepsFailed, TopologyError
from testbed.labs import plan
from testbed.labs.lab import Lab
from testbed.labs.status import status
from testbed.nodes.fake import Answer
from testbed.registry import ROLES
from testbed.roles import bird, frr
from testbed.roles.router import RouterRole
from testbed.testing import Bench, RoleContract
from testbed.topology import Topology, load, load_data, load_text

HEAD = """
name: routers
networks:
  {bare: {}, left: {subnet: 10.1.0.0/24}, wire: {subnet: 10.0.0.0/30}, right: {subnet: 10.2.0.0/24}}
nodes:
"""


def lab_with(settings: str, role: str = "frr") -> Topology:
    """Return a lab whose node r1 has these settings of a router."""
    node = f"networks: {{left: 10.1.0.1, wire: 10.0.0.1}}, roles: [{role}], {role}: {settings}"
    other = "networks: {wire: 10.0.0.2, right: 10.2.0.1}"
    return load_text(f"{HEAD}  r1: {{{node}}}\n  r2: {{{other}}}\n", "routers.yaml")


def text_of(topology: Topology, role: str = "frr") -> str:
    found = ROLES[role]
    assert isinstance(found, RouterRole)
    return found.text(topology, topology.nodes["r1"])


def block(text: str, first: str) -> list[str]:
    """Return the lines of a block of frr.conf after its first one."""
    lines = text.splitlines()
    start = lines.index(first)
    return [line.strip() for line in lines[start + 1 : lines.index("exit", start)]]


class TestFrr(RoleContract):
    role = "frr"
    topology = HEAD + (
        "  r1: {networks: {left: 10.1.0.1, wire: 10.0.0.1}, roles: [frr], frr: {ospf: {}}}\n"
        "  r2: {networks: {wire: 10.0.0.2}, roles: [frr], frr: {bgp: {asn: 65002}}}\n"
        "  r3: {networks: {left: 10.1.0.3}, roles: [frr]}\n"
    )


class TestBird(RoleContract):
    role = "bird"
    topology = HEAD + (
        "  r1: {networks: {left: 10.1.0.1}, roles: [bird], bird: {ospf: {}, bgp: {asn: 1}}}\n"
    )


@pytest.fixture(autouse=True)
def _debian_12(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release, "this", lambda: release.RELEASES["12"])


# -- FRR ------------------------------------------------------------------------


def test_a_later_frr_has_a_daemon_for_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """From FRR 9 on, as Debian 13 has it, mgmtd starts before the others."""
    monkeypatch.setattr(release, "this", lambda: release.RELEASES["13"])
    assert frr.daemons("router ospf") == ("mgmtd", "zebra", "staticd", "ospfd")


def test_ospf_in_a_few_lines() -> None:
    topology = lab_with(
        "{ospf: {area: 1, passive: [left], hello: 1, dead: 4, type: point-to-point}}"
    )
    text = text_of(topology)
    assert block(text, "interface eth1") == [
        "ip ospf area 1",
        "ip ospf network point-to-point",
        "ip ospf hello-interval 1",
        "ip ospf dead-interval 4",
    ]
    assert block(text, "interface eth0") == ["ip ospf area 1", "ip ospf passive"]
    assert "ospf router-id 10.1.0.1" in block(text, "router ospf")
    assert frr.daemons(text) == ("zebra", "staticd", "ospfd")


#: Networks and links between the routers r1 and r2, and whether they are point-to-point.
PAIRS = {
    "a /30": ("networks: {n: {subnet: 10.0.0.0/30}}", "n: 10.0.0.1", "n: 10.0.0.2", True),
    "a /31": ("networks: {n: {subnet: 10.0.0.0/31}}", "n: 10.0.0.0", "n: 10.0.0.1", True),
    "a /29": ("networks: {n: {subnet: 10.0.0.0/29}}", "n: 10.0.0.1", "n: 10.0.0.2", False),
    "no subnet": ("networks: {n: {}}", "n: 10.0.0.1/30", "n: 10.0.0.2/30", False),
    "a link": ('links: [{ends: ["r1:eth0", "r2:eth0"], subnet: 10.0.0.0/24}]', "", "", True),
    "three ports": (
        "networks: {n: {subnet: 10.0.0.0/30}}",
        "n: 10.0.0.1",
        "n: [10.0.0.2, {}]",
        False,
    ),
}  # fmt: skip


def pair(
    between: str, first: str, second: str, mine: str = "ospf: {}", other: str = "ospf: {}"
) -> Topology:
    """Return a lab with an FRR router and one with BIRD on one link."""
    return load_text(
        f"name: pair\n{between}\nnodes:\n"
        f"  r1: {{networks: {{{first}}}, roles: [frr], frr: {{router_id: 1.1.1.1, {mine}}}}}\n"
        f"  r2: {{networks: {{{second}}}, roles: [bird], bird: {{{other}}}}}\n",
        "pair.yaml",
    )


def types(topology: Topology) -> tuple[str, str]:
    """Return the network types that the routers of a pair are configured with."""
    (frr_type,) = (
        line.split()[-1]
        for line in text_of(topology).splitlines()
        if line.startswith(" ip ospf network ")
    )
    found = ROLES["bird"]
    assert isinstance(found, RouterRole)
    text = found.text(topology, topology.nodes["r2"])
    return frr_type, "ptp" if "type ptp;" in text else "bcast" if "type bcast;" in text else ""


@pytest.mark.parametrize("case", PAIRS)
def test_a_link_of_two_routers_is_point_to_point(case: str) -> None:
    between, first, second, is_pair = PAIRS[case]
    topology = pair(between, first, second)
    assert types(topology) == (("point-to-point", "ptp") if is_pair else ("broadcast", "bcast"))
    about = plan.make(topology).steps["frr r1"].about
    assert ("point-to-point on eth0" in about) == is_pair


def test_the_type_of_a_link_is_the_same_on_both_routers() -> None:
    between, first, second, _ = PAIRS["a /30"]
    one = pair(between, first, second, mine="ospf: {type: broadcast}")
    assert types(one) == ("broadcast", "bcast")
    other = pair(between, first, second, other="ospf: {type: broadcast}")
    assert types(other) == ("broadcast", "bcast")
    # A daemon with a configuration of its own has every Ethernet link as broadcast by default.
    own = pair(between, first, second, other='config: {content: "protocol ospf v2 {}\\n"}')
    assert types(own)[0] == "broadcast"
    both = pair(between, first, second, mine="ospf: {type: point-to-point}")
    assert types(both) == ("point-to-point", "ptp")


@pytest.mark.parametrize(
    ("settings", "links"),
    [
        ("{ospf: {}}", ["eth0", "eth1"]),
        ("{ospf: {interfaces: [wire]}}", ["eth1"]),
        ("{ospf: {interfaces: [eth1], passive: [left]}}", ["eth0", "eth1"]),
        ("{ospf: {networks: [10.0.0.0/16]}}", ["eth1"]),
    ],
)
def test_links_with_ospf(settings: str, links: list[str]) -> None:
    lines = text_of(lab_with(settings)).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("interface ")] == links


def test_a_prefix_says_which_links_have_ospf() -> None:
    text = text_of(lab_with("{ospf: {networks: [10.0.0.0/16], area: 0.0.0.2}}"))
    assert "network 10.0.0.0/16 area 0.0.0.2" in block(text, "router ospf")
    assert "ip ospf area" not in text  # FRR refuses both


def test_bgp_in_a_few_lines() -> None:
    bgp = "asn: 65001, neighbors: [wire, 10.0.0.2: 65002, left: 65001]"
    more = "networks: [left, 10.9.0.0/16]"
    text = text_of(lab_with(f"{{router_id: 9.9.9.9, bgp: {{{bgp}, {more}}}}}"))
    lines = block(text, "router bgp 65001")
    assert [line for line in lines if "remote-as" in line] == [
        "neighbor eth1 interface remote-as external",
        "neighbor 10.0.0.2 remote-as 65002",
        "neighbor eth0 interface remote-as 65001",
    ]
    assert "bgp router-id 9.9.9.9" in lines
    announced = [line for line in lines if line.startswith("network ")]
    assert announced == ["network 10.1.0.0/24", "network 10.9.0.0/16"]
    assert frr.daemons(text) == ("zebra", "staticd", "bgpd")


@pytest.mark.parametrize(
    ("line", "daemon"),
    [
        ("router ospf", "ospfd"),
        (" ip ospf area 0", "ospfd"),
        ("router ospf6", "ospf6d"),
        ("router bgp 65001 vrf red", "bgpd"),
        ("router rip", "ripd"),
        ("router ripng", "ripngd"),
        ("router isis one", "isisd"),
        ("bfd", "bfdd"),
        (" ip pim", "pimd"),
    ],
)
def test_a_configuration_says_which_daemons_it_needs(line: str, daemon: str) -> None:
    assert frr.daemons(f"hostname x\n{line}\n")[2:] == (daemon,)
    assert frr.daemons(f"hostname x\n! {line}\n")[2:] == ()


# -- BIRD -----------------------------------------------------------------------


def test_bird_gets_the_same_settings() -> None:
    bgp = "{asn: 65001, neighbors: [10.0.0.2: 65002], networks: [left], keepalive: 1, hold: 3}"
    topology = lab_with(f"{{ospf: {{passive: [left], hello: 1, dead: 3}}, bgp: {bgp}}}", "bird")
    text = text_of(topology, "bird")
    assert 'interface "eth0" { stub; };' in text
    assert 'interface "eth1" { type ptp; hello 1; dead 3; };' in text
    assert "local as 65001;" in text
    assert "neighbor 10.0.0.2 as 65002;" in text
    assert "export where net ~ [ 10.1.0.0/24 ] || source = RTS_BGP;" in text
    assert ROLES["bird"].features(topology) == {"bird", "ospf", "bgp"}


# -- configurations of users --------------------------------------------------------


def test_a_file_beside_the_topology_is_in_the_record(tmp_path: Path) -> None:
    (tmp_path / "r1.conf").write_text("router ospf\n network 10.0.0.0/8 area 0\n")
    node = "networks: {left: 10.1.0.1}, roles: [frr], frr: {config: r1.conf}"
    (tmp_path / "lab.yaml").write_text(f"{HEAD}  r1: {{{node}}}\n")
    topology = load(tmp_path / "lab.yaml")
    (tmp_path / "r1.conf").unlink()
    again = load_data(topology.to_dict(), "record")
    assert text_of(again) == "router ospf\n network 10.0.0.0/8 area 0\n"
    assert again.to_dict() == topology.to_dict()
    assert ROLES["frr"].features(topology) == {"frr", "ospf"}


def test_the_text_can_be_in_the_topology() -> None:
    topology = lab_with('{config: {content: "router bgp 1\\n"}}')
    assert text_of(topology) == "router bgp 1\n"
    assert ROLES["frr"].features(topology) == {"frr", "bgp"}


def test_a_node_with_another_configuration_is_not_created_again() -> None:
    one, other = lab_with("{ospf: {}}"), lab_with("{ospf: {area: 1}}")
    assert one.node_digest("r1") == other.node_digest("r1")
    assert plan.make(one) != plan.make(other)


def test_plan_shows_the_configuration() -> None:
    step = plan.make(lab_with("{ospf: {}}")).steps["frr r1"]
    assert dict(step.files)[frr.CONFIG].startswith("hostname r1\n")
    shown = plan.make(lab_with("{ospf: {}}")).to_dict()["steps"]
    assert [one["name"] for one in shown if "files" in one] == ["frr r1"]


def test_routers_forward_packets() -> None:
    topology = lab_with("{}")
    assert topology.nodes["r1"].forwards
    assert not topology.nodes["r2"].forwards


def test_an_abbreviation_keeps_its_capitals_in_a_hint() -> None:
    with pytest.raises(TopologyError) as caught:
        lab_with("{bgp: {neighbors: []}}")
    assert "AS number" in caught.value.problems[0].hint


BAD: dict[str, tuple[str, str]] = {
    "missing file": ("{config: no.conf}", "no.conf"),
    "a folder": ("{config: .}", "readable text"),
    "no content": ("{config: {}}", "content"),
    "a missing file in a mapping": ("{config: {file: no.conf}}", "no.conf"),
    "both ways": ("{config: {content: x}, ospf: {}}", "either"),
    "links and prefixes": ("{ospf: {interfaces: [left], networks: [10.0.0.0/8]}}", "either"),
    "an unknown link": ("{ospf: {passive: [eth7]}}", "'eth7'"),
    "a network of another node": ("{bgp: {asn: 1, neighbors: [right]}}", "'right'"),
    "an unknown network": ("{bgp: {asn: 1, networks: [lefd]}}", "'lefd'"),
    "a network without a subnet": ("{bgp: {asn: 1, networks: [bare]}}", "bare"),
    "no AS number": ("{bgp: {neighbors: [wire]}}", "asn"),
    "a large AS number": ("{bgp: {asn: 4294967296}}", "4294967295"),
    "an address alone": ("{bgp: {asn: 1, neighbors: [10.0.0.2]}}", "AS number"),
    "a neighbour twice": ("{bgp: {asn: 1, neighbors: [wire, wire]}}", "again"),
    "two in a mapping": ("{bgp: {asn: 1, neighbors: [{wire: 2, left: 3}]}}", "2 entries"),
    "a long hello": ("{ospf: {hello: 40}}", "shorter"),
    "a short hold": ("{bgp: {asn: 1, hold: 9}}", "shorter"),
    "a bad prefix": ("{bgp: {asn: 1, networks: [10.0.0.1/8]}}", "10.0.0.1/8"),
    "a bad area": ("{ospf: {area: backbone}}", "area"),
    "itself as neighbour": ("{bgp: {asn: 1, neighbors: [10.1.0.1: 2]}}", "itself"),
    "a bad type": ("{ospf: {type: bus}}", "bus"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_file_cannot_say(case: str) -> None:
    settings, word = BAD[case]
    with pytest.raises(TopologyError) as caught:
        lab_with(settings)
    (problem,) = caught.value.problems
    assert word in problem.wanted + problem.seen
    assert problem.line == 6
    assert problem.hint


@pytest.mark.parametrize("roles", ["frr, bird", "bird, docker, frr"])
def test_a_node_has_one_router(roles: str) -> None:
    text = HEAD + f"  r1: {{networks: {{left: 10.1.0.1}}, roles: [{roles}]}}\n"
    with pytest.raises(TopologyError) as caught:
        load_text(text, "r.yaml")
    (problem,) = caught.value.problems
    assert "ports" in problem.wanted
    assert "routes" in problem.wanted
    assert problem.column > 40, "the second of them"
    load_text(text.replace(roles, roles.rpartition(", ")[2]), "r.yaml")


def test_a_router_needs_no_addresses_but_a_router_id() -> None:
    bgp = "bgp: {asn: 1, neighbors: [bare, eth1]}"
    lab = HEAD + "  r1: {networks: {bare: [{}, {}]}, roles: [frr], frr: {router_id: 1.1.1.1, %s}}\n"
    text = text_of(load_text(lab % bgp, "r.yaml"))
    assert "neighbor eth0 interface remote-as external" in text
    assert "neighbor eth1 interface remote-as external" in text
    with pytest.raises(TopologyError) as caught:
        load_text(lab.replace("router_id: 1.1.1.1, ", "") % bgp, "r.yaml")
    (problem,) = caught.value.problems
    assert "router_id" in problem.hint
    assert problem.line == 6


def test_links_of_two_ends_have_neighbours() -> None:
    text = HEAD.replace("nodes:", 'links: [["r1:eth1", "r2:eth1"]]\nnodes:')
    bgp = "frr: {router_id: %s, bgp: {asn: %s, neighbors: [eth1]}}"
    text += f"  r1: {{roles: [frr], {bgp % ('1.1.1.1', 1)}}}\n"
    text += f"  r2: {{roles: [frr], {bgp % ('2.2.2.2', 2)}}}\n"
    assert "neighbor eth1 interface remote-as external" in text_of(load_text(text, "r.yaml"))


def test_bird_has_no_unnumbered_sessions() -> None:
    with pytest.raises(TopologyError) as caught:
        lab_with("{bgp: {asn: 1, neighbors: [wire]}}", "bird")
    assert "frr" in caught.value.problems[0].hint


def test_other_providers_are_refused_by_name() -> None:
    text = HEAD + "  r1: {networks: {left: 10.1.0.1}, roles: [frr], provider: qemu}\n"
    with pytest.raises(TopologyError) as caught:
        load_text(text, "r.yaml")
    assert "qemu" in caught.value.problems[0].seen


# -- on nodes -------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path / "state")
    made.install(monkeypatch)
    return made


def test_a_refused_line_is_told_with_its_file_before_a_daemon_starts(
    bench: Bench, tmp_path: Path
) -> None:
    (tmp_path / "r1.conf").write_text("router ospf\n networg 10.0.0.0/8 area 0\n")
    node = "networks: {left: 10.1.0.1}, roles: [frr], frr: {config: r1.conf}"
    (tmp_path / "lab.yaml").write_text(f"{HEAD}  r1: {{{node}}}\n")
    said = b"line 2: % Unknown command[41]:  networg 10.0.0.0/8 area 0\n"
    bench.provider.script(["vtysh", "-C"], Answer(2, b"", said))
    with pytest.raises(StepsFailed) as caught:
        Lab("routers", bench.settings).up(load(tmp_path / "lab.yaml"))
    ((step, error),) = caught.value.failures
    assert step == "frr r1"
    assert "r1.conf:2:" in str(error)
    assert "networg" in str(error)
    assert not bench.provider.asked("start")


def test_a_line_that_a_daemon_refuses_is_told_again(bench: Bench) -> None:
    lab = Lab("routers", bench.settings)
    lab.up(lab_with("{ospf: {}}"))
    said = b"line 8: Failure to communicate[13] to bgpd, line:  neighbor 10.0.0.9\nexit status 13\n"
    bench.provider.script(["sh", "-c", frr.LOOK], Answer(out=said))
    for _ in range(2):
        with pytest.raises(StepsFailed) as caught:
            lab.up(lab_with("{bgp: {asn: 1}}"), replace=True)
        assert "not accepted by" in str(caught.value.failures[0][1])
    bench.provider.script(["sh", "-c", frr.LOOK], Answer())
    assert lab.up(lab_with("{bgp: {asn: 1}}"), replace=True).changed
    assert not lab.up(lab_with("{bgp: {asn: 1}}"), replace=True).changed


def test_a_line_that_a_daemon_refuses_is_told_too(bench: Bench) -> None:
    said = b"line 3: % Malformed address: neighbor\nexit status 13\n"
    bench.provider.script(["sh", "-c", frr.LOOK], Answer(out=said))
    with pytest.raises(StepsFailed) as caught:
        Lab("routers", bench.settings).up(lab_with("{ospf: {}}"))
    assert "frr configuration of r1:3:" in str(caught.value)


def test_a_line_that_bird_refuses_is_told_with_its_number(bench: Bench) -> None:
    said = b"bird: /run/bird/testbed-check.conf:2:9 syntax error, unexpected CF_SYM_UNDEFINED\n"
    bench.provider.script([bird.PROGRAM, "-p"], Answer(1, b"", said))
    with pytest.raises(StepsFailed) as caught:
        Lab("routers", bench.settings).up(lab_with('{config: {content: "x\\ny\\n"}}', "bird"))
    assert "bird configuration of r1:2: syntax error" in str(caught.value)
    assert not bench.provider.asked("start")


def test_a_changed_configuration_starts_the_daemons_again(bench: Bench) -> None:
    lab = Lab("routers", bench.settings)
    lab.up(lab_with("{ospf: {}}"))
    assert not lab.up(lab_with("{ospf: {}}")).changed
    bench.forget()
    changed = lab.up(lab_with("{bgp: {asn: 1}}"), replace=True).changed
    assert [done.step.name for done in changed] == ["frr r1"]
    assert {words[0] for words in bench.provider.asked("stop")} >= {"ospfd"}
    states = {name: one.state for name, one in lab.node("r1").services().items()}
    assert states == {"zebra": "ready", "staticd": "ready", "ospfd": "dead", "bgpd": "ready"}


@pytest.mark.parametrize("role", ["frr", "bird"])
def test_the_same_daemons_start_again_with_another_text(bench: Bench, role: str) -> None:
    lab = Lab("routers", bench.settings)
    lab.up(lab_with("{ospf: {}}", role))
    changed = lab.up(lab_with("{ospf: {area: 1}}", role), replace=True).changed
    assert [done.step.name for done in changed] == [f"{role} r1"]
    assert not lab.up(lab_with("{ospf: {area: 1}}", role)).changed


def test_all_daemons_start_again_with_zebra(bench: Bench) -> None:
    lab = Lab("routers", bench.settings)
    lab.up(lab_with("{ospf: {}}"))
    lab.node("r1").stop("zebra")
    bench.forget()
    lab.up(lab_with("{ospf: {}}"))
    assert [words[0] for words in bench.provider.asked("start")][:3] == [
        "zebra",
        "staticd",
        "ospfd",
    ]


def test_a_machine_without_apt_skips_such_labs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = lab_with("{}")
    monkeypatch.setattr(debian, "which", lambda name: f"/usr/bin/{name}")
    assert ROLES["frr"].lacking(bench.store, topology) == ""
    monkeypatch.setattr(debian, "which", lambda _: None)
    assert "apt-get" in ROLES["frr"].lacking(bench.store, topology)


def test_status_lists_the_neighbours() -> None:
    said: dict[str, Any] = {
        "neighbors": {"1.1.1.1": [{"nbrState": "Full/DR", "ifaceName": "eth0:10.0.0.1"}]}
    }
    assert frr._ospf_neighbors(said) == [("OSPF 1.1.1.1 on eth0:10.0.0.1", "Full/DR")]
    said = {"ipv4Unicast": {"peers": {"eth1": {"state": "Established", "remoteAs": 65011}}}}
    assert frr._bgp_neighbors(said) == [("BGP eth1", "Established, AS 65011")]


def test_a_neighbour_in_any_state_is_no_failure_of_its_router(bench: Bench) -> None:
    """birdc(8) prints name, protocol, table, state, since and information."""
    lab = Lab("routers", bench.settings)
    lab.up(lab_with("{ospf: {}}", "bird"))
    said = b"lan OSPF --- up 12:00:00.000 Alone\npeer1 BGP --- start 12:00:00.000 Connect\n"
    bench.provider.script(["birdc"], Answer(out=said))
    (node,) = (one for one in status(lab.context()).nodes if one.name == "r1")
    assert [(one.name, one.state, one.ok) for one in node.more["neighbour"]] == [
        ("OSPF lan", "Alone", True),
        ("BGP peer1", "Connect", True),
    ]
