"""Any valid topology comes up as planned, and every invariant of the plan holds (hypothesis)."""

from __future__ import annotations

import os
import tempfile
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from testbed.errors import TopologyError
from testbed.exports.base import dump
from testbed.labs import plan
from testbed.labs.lab import Lab
from testbed.labs.status import status
from testbed.roles.flannel.section import FlannelSection
from testbed.testing.fakes import Bench
from testbed.topology import Topology, load_data, load_text
from testbed.topology.variables import escaped

LONG = "TESTBED_LONG" in os.environ
#: A few examples, the same ones each time; the long form looks for others, and at many.
QUICK = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=100 if LONG else 15,
    derandomize=not LONG,
)
NAMES = st.from_regex(r"[a-z][a-z0-9]{1,6}", fullmatch=True)


#: Keys of a network of flannel by its backend.
OVERLAY = {
    "vxlan": {
        "port": st.just(4789),
        "vni": st.just(7),
        "mtu": st.integers(118, 1500),
        "direct-routing": st.booleans(),
    },
    "udp": {"port": st.just(8285)},
    "host-gw": {},
}


@st.composite
def overlays(draw: st.DrawFn, *, six: bool) -> dict[str, Any]:
    """flannel's section, with any of the keys that its backend has; ``six`` is for IPv6, too."""
    backend = draw(st.sampled_from([*OVERLAY]))
    found: dict[str, Any] = {"backend": backend}
    found |= draw(st.fixed_dictionaries({}, optional=OVERLAY[backend]))
    found |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "subnet-len": st.integers(20, 28),
                "subnet-lease-renew-margin": st.integers(1, 1439),
                "allow-direct-routing": st.booleans(),
            },
        )
    )
    if draw(st.booleans()):
        blue: dict[str, Any] = {"network": "10.20.0.0/16"}
        blue |= draw(st.sampled_from([{}, {"backend": "host-gw"}, {"vni": 9, "mtu": 1400}]))
        if six and draw(st.booleans()):
            blue["ipv6"] = {"network": "fd00:20::/48"}
        found["networks"] = {"blue": blue}
    if six and backend != "udp" and draw(st.booleans()):
        found["ipv6"] = draw(
            st.fixed_dictionaries(
                {}, optional={"network": st.just("fd00:96::/56"), "subnet-len": st.integers(60, 80)}
            )
        )
        if "mtu" in found:
            found["mtu"] = max(found["mtu"], 1330)  # IPv6 needs 1280 bytes in the tunnel
    return found


@st.composite
def node_settings(
    draw: st.DrawFn, addresses: dict[str, str], subnets: dict[str, IPv4Network]
) -> dict[str, Any]:
    """Settings of a node on these networks: any of them, or none."""
    found: dict[str, Any] = {}
    if draw(st.booleans()):
        found["forward"] = True
    if draw(st.booleans()):
        found["sysctls"] = {"net.ipv4.conf.all.rp_filter": draw(st.integers(0, 2))}
    if draw(st.booleans()):
        content = draw(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0$")))
        found["files"] = {"/etc/app.conf": {"content": content, "mode": "0640"}}
    if draw(st.booleans()):
        found["env"] = {"WHO": "me"}
        found["run"] = draw(st.lists(st.sampled_from(["make it", ["make", "it"]]), max_size=3))
        found["services"] = {"web": {"command": ["serve"], "restart": "always"}}
    if draw(st.booleans()):
        found["packages"] = draw(st.lists(st.sampled_from(["frr", "libc++1"]), unique=True))
    if draw(st.booleans()) and addresses:
        network = draw(st.sampled_from(sorted(addresses)))
        hop = subnets[network][200]
        found["routes"] = draw(
            st.lists(
                st.sampled_from([f"10.99.0.0/16 via {hop}", "blackhole 10.98.0.0/16"]), unique=True
            )
        )
        found["rules"] = [f"from {hop} lookup {draw(st.integers(1, 252))}"]
    return found


@st.composite
def routing(draw: st.DrawFn, networks: list[str]) -> dict[str, Any]:
    """Settings of a router on these networks."""
    some = st.lists(st.sampled_from(networks), unique=True)
    return draw(
        st.one_of(
            st.just({"config": {"content": "router ospf\n", "file": "r.conf"}}),
            st.fixed_dictionaries(
                {"ospf": st.fixed_dictionaries({"passive": some, "area": st.integers(0, 9)})},
                optional={"bgp": st.fixed_dictionaries({"asn": st.just(1), "networks": some})},
            ),
        )
    )


@st.composite
def with_router(draw: st.DrawFn, roles: list[str], networks: list[str]) -> dict[str, Any]:
    """These roles, and perhaps a router with its settings."""
    found: dict[str, Any] = {}
    if bool(networks) and draw(st.booleans()):
        kind = draw(st.sampled_from(["frr", "bird"]))
        found[kind] = draw(routing(networks))
        return found | {"roles": [*roles, kind]}
    return {"roles": roles} if roles else found


#: Keys of networks, each of which may be missing; N stands for the number of the network.
SHAPES = st.fixed_dictionaries(
    {},
    optional={
        "subnet6": st.just("fd00:N::/64"),
        "mtu": st.sampled_from([1500, 9000]),  # not below that of flannel
        "rate": st.just("100mbit"),
        "delay": st.just("5ms 1ms"),
        "loss": st.just("0.5%"),
        "uplink": st.just(True),
    },
)


@st.composite
def ports(draw: st.DrawFn, address: str, number: int) -> Any:
    """A node's ports on a network: its address, or more about one port or two."""
    form = draw(st.sampled_from(["address", "port", "ports"]))
    if form == "address":
        return address
    port = {"mac": f"02:00:00:00:01:{number:02x}", "mtu": 1500}
    if form == "port":
        return {"address": address, **port}
    other = IPv4Address(address) + 100
    return [address, {"addresses": [str(other), f"{other + 50}/32"], **port}]


@st.composite
def links(draw: st.DrawFn, nodes: list[str]) -> list[Any]:
    """Links between some of these nodes, in any of their forms."""
    found: list[Any] = []
    pairs = [(one, other) for one in nodes for other in nodes if one < other]
    for index, pair in enumerate(draw(st.lists(st.sampled_from(pairs), max_size=3))):
        ends = [f"{name}:p{index}" for name in pair]
        kind = draw(st.sampled_from(["bare", "subnet", "addresses"]))
        if kind == "bare":
            found.append(ends)
        elif kind == "subnet":
            subnets = {"subnet": f"10.80.{index}.0/31", "subnet6": f"fd00:80:{index}::/127"}
            found.append({"ends": ends, **subnets})
        else:
            addresses: list[Any] = [f"10.81.{index}.{last}/30" for last in (1, 2)]
            addresses[1] = draw(st.sampled_from([addresses[1], [], [addresses[1], "fd00::2/64"]]))
            found.append({"ends": ends, "addresses": addresses, "mtu": 1400})
    return found


#: Keys of containers, each of which may be missing.
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "cap_add": st.lists(st.sampled_from(["NET_ADMIN", "ALL"]), unique=True),
        "sysctls": st.builds(lambda: {"kernel.msgmax": 4096}),
        "ulimits": st.builds(lambda: {"nofile": {"soft": 1, "hard": 2}}),
        "cpus": st.sampled_from([0.5, 2]),
        "mem_limit": st.sampled_from(["64m", "1gb", "512M", 6 << 20]),
        "volumes": st.builds(lambda: ["data:/data:ro"]),
        "tmpfs": st.builds(lambda: ["/run"]),
        "restart": st.sampled_from(["always", "on-failure:3"]),
        "user": st.sampled_from([0, "www-data", "1:2"]),
        "stop_grace_period": st.just("3s"),
        "pids_limit": st.just(50),
    },
)


@st.composite
def docker_networks(draw: st.DrawFn) -> dict[str, Any]:
    """Docker networks, with one or two subnets or none."""
    found: dict[str, Any] = {}
    for number in range(draw(st.integers(0, 3))):
        four, six = f"172.{20 + number}.0.0/24", f"fd00:{number}::/64"
        subnet = draw(
            st.one_of(st.none(), st.just(four), st.tuples(st.just(four), st.just(six)).map(list))
        )
        found[f"Net_{number}"] = {
            **({"subnet": subnet} if subnet else {}),
            **dict(draw(st.sampled_from([{}, {"internal": True}, {"driver": "macvlan"}]))),
        }
    return found


@st.composite
def placed(draw: st.DrawFn, networks: dict[str, Any], number: int) -> dict[str, Any]:
    """The networks of a container: a mode, names, or names with fixed addresses."""
    names = draw(st.lists(st.sampled_from([*networks, "bridge"]), unique=True))
    form = draw(st.sampled_from(["mode", "list", "mapping"]))
    if form == "mode" or not names:
        return {"network": draw(st.sampled_from(["bridge", "none"]))}
    if form == "list":
        return {"networks": names}
    fixed: dict[str, Any] = {name: {} for name in names}
    for name in names:
        subnet = networks.get(name, {}).get("subnet")
        if isinstance(subnet, list):
            fixed[name] = {"ipv6_address": str(IPv6Network(subnet[1])[number + 9])}
        elif subnet:
            fixed[name] = {"ipv4_address": str(IPv4Network(subnet)[number + 9])}
    return {"networks": fixed}


#: Keys of Docker on a node, and of the lab's daemons.
DAEMON = st.dictionaries(
    st.sampled_from(["icc", "userland-proxy", "debug", "labels", "default-address-pools"]),
    st.sampled_from([None, True, False, ["a=b"], [{"base": "10.50.0.0/16", "size": 24}], {"x": 1}]),
)
OF_NODE = st.one_of(
    st.fixed_dictionaries({}, optional={"daemon": DAEMON, "engine": st.sampled_from([29, 20.10])}),
    st.fixed_dictionaries(
        {"engine": st.just("29"), "firewall": st.just("nftables")}, optional={"daemon": DAEMON}
    ),
)


@st.composite
def wired(draw: st.DrawFn, data: dict[str, Any]) -> None:
    """Add to data settings of networks and ports, a network without a subnet, and links."""
    nodes = data["nodes"]
    for index, network in enumerate(data.get("networks", {}).values()):
        network.update(_numbered(draw(SHAPES), index))
    for number, node in enumerate(nodes.values()):
        given = node.get("networks", {})
        if given:
            node["networks"] = {net: draw(ports(one, number)) for net, one in given.items()}
    if draw(st.booleans()):
        data.setdefault("networks", {})["wire"] = {}
        for node in nodes.values():
            node.setdefault("networks", {})["wire"] = {"name": "wire"}
    if len(nodes) > 1 and (joined := draw(links(sorted(nodes)))):
        data["links"] = joined


def _numbered(keys: dict[str, Any], number: int) -> dict[str, Any]:
    return {
        key: value.replace("N", str(number)) if isinstance(value, str) else value
        for key, value in keys.items()
    }


@st.composite
def topologies(draw: st.DrawFn) -> dict[str, Any]:
    """Plain data of a valid topology: with or without networks, Docker, flannel, containers."""
    networks = [f"lan{i}" for i in range(draw(st.integers(0, 2)))]
    subnets = {name: IPv4Network(f"10.{60 + i}.0.0/24") for i, name in enumerate(networks)}
    nodes: dict[str, Any] = {}
    flannel = bool(networks) and draw(st.booleans())
    for number in range(draw(st.integers(1, 5))):
        name = f"n{draw(NAMES)}-{number}"
        node: dict[str, Any] = {}
        if networks:
            # flannel's nodes are on its network, the first; others where they like.
            chosen = networks if flannel else draw(st.lists(st.sampled_from(networks), unique=True))
            node["networks"] = {net: str(subnets[net][number + 2]) for net in chosen}
        able = [[], ["docker"], ["namespaces"]] if node.get("networks") else [[], ["namespaces"]]
        roles = draw(st.sampled_from(able))
        if flannel and "namespaces" not in roles:
            roles = [*(["etcd"] if number == 0 else []), *roles, "flannel"]
        elif flannel and number == 0:
            roles = ["etcd", "docker", "flannel"]
        node |= draw(with_router(roles, sorted(node.get("networks", {}))))
        node |= draw(node_settings(node.get("networks", {}), subnets))
        if "docker" in roles and draw(st.booleans()):
            node["docker"] = draw(OF_NODE)
        nodes[name] = node
    data: dict[str, Any] = {"name": draw(NAMES), "nodes": nodes}
    if networks:
        data["networks"] = {name: {"subnet": str(net)} for name, net in subnets.items()}
    draw(wired(data))
    if flannel:
        data["flannel"] = draw(overlays(six="subnet6" in data["networks"][networks[0]]))
    with_docker = [name for name, node in nodes.items() if "docker" in node.get("roles", ())]
    if with_docker:
        names = [f"c{draw(NAMES)}-{i}" for i in range(draw(st.integers(0, 4)))]
        own = draw(docker_networks())
        daemon = draw(DAEMON)
        if own or daemon:
            data["docker"] = {"networks": own, "daemon": daemon}
        data["containers"] = {
            name: {
                "node": draw(st.sampled_from(with_docker)),
                "image": "nginx",
                **draw(placed(own, number)),
                **draw(OPTIONS),
            }
            for number, name in enumerate(names)
        }
        if not names:
            del data["containers"]
    return data


def loaded(data: dict[str, Any]) -> Topology:
    return load_text(dump(escaped(data)), "t.yaml")


@QUICK
@given(topologies())
def test_what_is_generated_is_valid_and_planned(data: dict[str, Any]) -> None:
    topology = loaded(data)  # else the tests below would hold of nothing
    assert load_data(topology.to_dict(), "t.yaml") == topology
    steps = plan.make(topology).steps
    assert plan.make(topology).steps == steps, "the same topology has the same plan"
    seen: set[str] = set()
    for name, step in steps.items():
        assert name == step.name
        assert seen.issuperset(step.needs), "each comes after what it needs"
        seen.add(name)
    expected = {"fabric", *(f"node {name}" for name in topology.nodes)}
    for node in topology.nodes.values():
        expected |= {f"docker {node.name}"} if "docker" in node.roles else set()
        expected |= {f"etcd {node.name}"} if "etcd" in node.roles else set()
        expected |= {f"flannel {node.name}"} if "flannel" in node.roles else set()
    expected |= {f"container {c.node}/{c.name}" for c in topology.containers.values()}
    assert expected <= seen

    def below(name: str) -> set[str]:
        return {name, *(n for need in steps[name].needs for n in below(need))}

    for node in topology.nodes.values():
        for role in ("docker", "etcd", "flannel"):
            if f"{role} {node.name}" in steps:
                assert f"node {node.name}" in below(f"{role} {node.name}"), "no node, no daemon"
    for container in topology.containers.values():
        assert f"docker {container.node}" in below(f"container {container.node}/{container.name}")


@pytest.mark.thorough
@QUICK
@given(topologies())
def test_it_comes_up_as_planned(data: dict[str, Any]) -> None:
    topology = loaded(data)
    # Nobody answers for the pages of real containers; flannel's keys are etcd's to know.
    assume(FlannelSection.find(topology) is None)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        bench = Bench(Path(folder))
        bench.install(patch)
        lab = Lab(topology.name, bench.settings)
        first = lab.up(topology)
        assert {done.step.name for done in first.steps} == set(plan.make(topology).steps)
        order = [done.step.name for done in first.steps]
        for done in first.steps:
            assert all(order.index(need) < order.index(done.step.name) for need in done.step.needs)
        nodes = lab.context().nodes
        assert set(nodes) == set(topology.nodes)
        assert all(nodes[name].digest == topology.node_digest(name) for name in nodes)
        assert {node.name: node.state for node in status(lab.context()).nodes} == dict.fromkeys(
            topology.nodes, "up"
        )
        assert lab.topology() == topology
        assert lab.up(topology).changed == [], "a second up does nothing"
        assert lab.down()
        assert bench.state.labs() == []
        assert bench.provider.labs() == []


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=12),
    st.sampled_from(["10.60.0.2", "10.60.0.0/24", "container:x", "docker", "0.0.0.0/0", "::1/64"]),
    st.just([]), st.just({}), st.lists(st.text(max_size=4), max_size=2),
)  # fmt: skip


def paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    if isinstance(data, dict):
        found += [one for key in data for one in paths(data[key], (*path, key))]
    elif isinstance(data, list):
        found += [one for i, item in enumerate(data) for one in paths(item, (*path, i))]
    return found


@settings(QUICK, max_examples=500 if LONG else 25)
@given(topologies(), st.data())
def test_any_change_gives_a_topology_or_errors_with_a_place(
    data: dict[str, Any], draw: st.DataObject
) -> None:
    path = draw.draw(st.sampled_from(paths(data)))
    place = data
    for key in path[:-1]:
        place = place[key]
    how = draw.draw(st.sampled_from(["replace", "remove", "add"]))
    if how == "remove":
        del place[path[-1]]
    elif how == "add" and isinstance(place, dict):
        place[draw.draw(st.text(max_size=8))] = draw.draw(JUNK)
    else:
        place[path[-1]] = draw.draw(JUNK)
    try:
        topology = load_text(yaml.safe_dump(data, sort_keys=False), "t.yaml")
    except TopologyError as error:
        problems = error.problems
    else:
        plan.make(topology)
        return
    assert problems
    for problem in problems:
        assert problem.line > 0, problem
        assert problem.wanted
        assert problem.seen
        assert problem.hint
