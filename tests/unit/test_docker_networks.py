"""Docker networks of the file, and the containers on them: rules, requests, steps, status."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from test_engine_calls import engine
from topology_texts import DOCKER, LAN, MARK, Bad, bad, problems

from testbed.errors import LabError
from testbed.labs import plan
from testbed.labs.lab import Lab
from testbed.observe import graph
from testbed.observe.inventory import machine
from testbed.report.picture import draw
from testbed.roles.docker import glance, network_steps, status
from testbed.roles.docker.drawn import bridges
from testbed.roles.docker.engine import Endpoint, NetworkState
from testbed.roles.docker.glance import Glance
from testbed.roles.docker.networks import networks_of, on_node, on_nodes
from testbed.roles.docker.role import Docker
from testbed.suites import helpers
from testbed.testing.fakes import Bench, FakeEngine
from testbed.topology import load_data, load_text
from testbed.topology.containers import Publish

if TYPE_CHECKING:
    from testbed.topology import Topology

TWO = (
    LAN + "nodes:\n"
    "  n1: {networks: {lan: 10.168.0.2}, roles: [docker]}\n"
    "  n2: {networks: {lan: 10.168.0.3}, roles: [docker]}\n"
    "  other: {}\n"
)


def nets(networks: str, containers: str = "", head: str = DOCKER, more: str = "") -> str:
    text = f"{head}docker:\n{more}  networks:\n    {networks}\n"
    return text + (f"containers:\n  {containers}\n" if containers else "")


def topology(*args: str, **kwargs: str) -> Topology:
    return load_text(nets(*args, **kwargs), "t.yaml")


FRONT = "front: {subnet: 172.30.0.0/24}"
BOTH = 'front: {subnet: [172.30.0.0/24, "fd00:30::/64"]}'

BAD: dict[str, Bad] = {
    "unknown driver": bad(nets("front: {driver: §bridg}"), "a driver: bridge|'bridge'"),
    "own name": bad(nets("§bridge: {}"), "other meaning|Docker's own"),
    "two of a family": bad(
        nets("front: {subnet: §[172.30.0.0/24, 172.31.0.0/24]}"), "one subnet of IPv4"
    ),
    "host bits": bad(nets("front: {subnet: §172.30.0.1/24}"), "write 172.30.0.0/24"),
    "host bits of IPv6": bad(nets('front: {subnet: §"fd00::1/64"}'), "write fd00::/64"),
    "no prefix": bad(nets('front: {subnet: §"fd00::"}'), "an IPv6 network|add the prefix"),
    "empty list": bad(nets("front: {subnet: §[]}"), "an empty list"),
    "gateway elsewhere": bad(
        nets("front: {subnet: 172.30.0.0/24, gateway: §172.31.0.1}"), "a subnet of front"
    ),
    "gateway without a subnet": bad(nets("front: {gateway: §172.31.0.1}"), "the subnets are: none"),
    "gateway is the network": bad(
        nets("front: {subnet: 172.30.0.0/24, gateway: §172.30.0.0}"), "a host's address"
    ),
    "second gateway elsewhere": bad(
        nets(f'{BOTH[:-1]}, gateway: [172.30.0.1, §"fd00:31::1"]}}'), "fd00:31::1"
    ),
    "range elsewhere": bad(
        nets("front: {subnet: 172.30.0.0/24, ip_range: §172.30.1.0/25}"), "a part of a subnet"
    ),
    "IPv6 turned off": bad(nets(f"{BOTH[:-1]}, enable_ipv6: §false}}"), "IPv6 subnet|remove it"),
    "IPv6 on 20.10": bad(nets("front: {enable_ipv6: §true}"), "engine 20.10|engine: 29"),
    "unknown node": bad(nets("front: {nodes: [§n2]}"), "the name of a node|n1"),
    "node without Docker": bad(nets("front: {nodes: [§other]}", head=TWO), "role docker"),
    "parent of a bridge": bad(
        nets("front: {driver_opts: {parent: §eth0}}"), "no parent|driver: macvlan"
    ),
    "parent that is no link": bad(
        nets("front: {driver: macvlan, driver_opts: {parent: §eth1}}"), "a link of n1|eth0"
    ),
    "VLAN of no link": bad(
        nets("front: {driver: macvlan, driver_opts: {parent: §eth7.10}}"), "a link of n1|eth0"
    ),
    "overlap with each other": bad(
        nets("front: {subnet: 172.30.0.0/16}\n    back: {subnet: §172.30.5.0/24}"),
        "apart|172.30.0.0/16 of front",
    ),
    "overlap with docker0": bad(nets("front: {subnet: §172.17.5.0/24}"), "of docker0"),
    "overlap with the lab": bad(nets("front: {subnet: §10.168.0.0/16}"), "10.168.0.0/24 of lan"),
    "unknown network": bad(
        nets(FRONT, "web: {node: n1, networks: [§fromt]}"), "a Docker network|'fromt'|'front'"
    ),
    "unknown network in a mapping": bad(
        nets(FRONT, "web: {node: n1, networks: {front: {}, §fromt: {}}}"), "'front'"
    ),
    "no networks at all": bad(
        DOCKER + "containers: {web: {node: n1, networks: [§front]}}\n", "docker: {networks: {front"
    ),
    "a network of the lab": bad(
        nets(FRONT, "web: {node: n1, networks: [§lan]}"), "joins nodes|macvlan"
    ),
    "a mode": bad(nets(FRONT, "web: {node: n1, networks: [§host]}"), "'network: host'"),
    "a network as a mode": bad(nets(FRONT, "web: {node: n1, network: §front}"), "networks: [NAME]"),
    "both keys": bad(
        nets(FRONT, "web: {node: n1, §network: bridge, networks: [front]}"), "network or networks"
    ),
    "the same twice": bad(nets(FRONT, "web: {node: n1, networks: [front, §front]}"), "again"),
    "none": bad(nets(FRONT, "web: {node: n1, networks: §[]}"), "at least one network"),
    "none in a mapping": bad(nets(FRONT, "web: {node: n1, networks: §{}}"), "at least one"),
    "text": bad(nets(FRONT, "web: {node: n1, networks: §front}"), "a list of names"),
    "on another node": bad(
        nets("front: {nodes: [n1]}", "web: {node: n2, networks: [§front]}", head=TWO),
        "a network that n2 has|add n2",
    ),
    "address elsewhere": bad(
        nets(FRONT, "web: {node: n1, networks: {front: {ipv4_address: §172.31.0.9}}}"),
        "in a subnet of front|172.30.0.0/24",
    ),
    "address without a subnet": bad(
        nets("front: {}", "web: {node: n1, networks: {front: {ipv4_address: §172.31.0.9}}}"),
        "a subnet of front",
    ),
    "IPv6 address without a subnet": bad(
        nets(FRONT, 'web: {node: n1, networks: {front: {ipv6_address: §"fd00:30::9"}}}'),
        "in a subnet of front",
    ),
    "address of the gateway": bad(
        nets(
            "front: {subnet: 172.30.0.0/24, gateway: 172.30.0.9}",
            "web: {node: n1, networks: {front: {ipv4_address: §172.30.0.9}}}",
        ),
        "the gateway of front",
    ),
    "address of Docker's gateway": bad(
        nets(FRONT, "web: {node: n1, networks: {front: {ipv4_address: §172.30.0.1}}}"),
        "the gateway of front",
    ),
    "IPv6 address of Docker's gateway": bad(
        nets(BOTH, 'web: {node: n1, networks: {front: {ipv6_address: §"fd00:30::1"}}}'),
        "the gateway of front",
    ),
    "broadcast address": bad(
        nets(FRONT, "web: {node: n1, networks: {front: {ipv4_address: §172.30.0.255}}}"),
        "a host's address",
    ),
    "address twice": bad(
        nets(
            FRONT,
            "web: {node: n1, networks: {front: {ipv4_address: 172.30.0.9}}}\n"
            "  db: {node: n1, networks: {front: {ipv4_address: §172.30.0.9}}}",
        ),
        "again, of web",
    ),
    "MAC address twice": bad(
        nets(
            FRONT,
            'web: {node: n1, networks: {front: {mac_address: "02:00:00:00:00:0A"}}}\n'
            '  db: {node: n1, networks: {front: {mac_address: §"02:00:00:00:00:0a"}}}',
        ),
        "again, of web",
    ),
    "address of a node": bad(
        nets(
            "mac: {driver: macvlan, subnet: 10.168.0.0/24, driver_opts: {parent: eth0}}",
            "web: {node: n1, networks: {mac: {ipv4_address: §10.168.0.3}}}",
            head=TWO,
        ),
        "again, of n2",
    ),
    "address on another node's macvlan": bad(
        nets(
            "mac: {driver: macvlan, subnet: 10.168.0.0/24, driver_opts: {parent: eth0}}",
            "web: {node: n1, networks: {mac: {ipv4_address: 10.168.0.9}}}\n"
            "  db: {node: n2, networks: {mac: {ipv4_address: §10.168.0.9}}}",
            head=TWO,
        ),
        "again, of web",
    ),
    "multicast MAC address": bad(
        nets(FRONT, 'web: {node: n1, networks: {front: {mac_address: §"01:00:00:00:00:01"}}}'),
        "of one interface",
    ),
    "priority on 20.10": bad(
        nets(FRONT, "web: {node: n1, networks: {front: {gw_priority: §1}}}"), "engine 28 or later"
    ),
    "name of an interface on 20.10": bad(
        nets(FRONT, "web: {node: n1, networks: {front: {interface_name: §web0}}}"),
        "engine 28 or later",
    ),
    "name that an unnamed interface may get": bad(
        nets(
            f"{FRONT}\n    back: {{}}",
            "web: {node: n1, networks: {front: {interface_name: §eth0}, back: }}",
            more="  engine: 29\n",
        ),
        "gets by default|eth1",
    ),
    "name that one of two unnamed interfaces may get": bad(
        nets(
            f"{FRONT}\n    back: {{}}",
            "web: {node: n1, networks: {front: {interface_name: §eth1}, back: , bridge: }}",
            more="  engine: 29\n",
        ),
        "gets by default|eth2",
    ),
    "name that an interface with another prefix may get": bad(
        nets(
            f"{FRONT}\n"
            "    back: {driver_opts: {com.docker.network.container_iface_prefix: net}}",
            "web: {node: n1, networks: {front: {interface_name: §net0}, back: }}",
            more="  engine: 29\n",
        ),
        "gets by default|net1",
    ),
    "name that the way out of an overlay may get": bad(
        nets(
            "over: {driver: overlay, attachable: true}\n    front: {}",
            "web: {node: n1, networks: {front: {interface_name: §eth1}, over: }}",
            more="  engine: 29\n  swarm: [n1]\n",
        ),
        "gets by default|eth2",
    ),
    "reserved address outside of the subnet": bad(
        nets("front: {subnet: 172.30.0.0/24, aux_addresses: {printer: §172.31.0.3}}", ""),
        "an address in a subnet of front",
    ),
    "reserved address of the subnet itself": bad(
        nets("front: {subnet: 172.30.0.0/24, aux_addresses: {printer: §172.30.0.0}}", ""),
        "a host's address",
    ),
    "reserved address for all": bad(
        nets("front: {subnet: 172.30.0.0/24, aux_addresses: {printer: §172.30.0.255}}", ""),
        "broadcast",
    ),
    "reserved address of the usual gateway": bad(
        nets("front: {subnet: 172.30.0.0/24, aux_addresses: {printer: §172.30.0.1}}", ""),
        "than the gateway",
    ),
    "reserved address of the gateway": bad(
        nets(
            "front: {subnet: 172.30.0.0/24, gateway: 172.30.0.9, "
            "aux_addresses: {printer: §172.30.0.9}}",
            "",
        ),
        "than the gateway",
    ),
    "reserved address twice": bad(
        nets(
            "front: {subnet: 172.30.0.0/24, aux_addresses: {one: 172.30.0.9, other: §172.30.0.9}}",
            "",
        ),
        "once|again",
    ),
    "reserved address of a container": bad(
        nets(
            "front: {subnet: 172.30.0.0/24, aux_addresses: {printer: 172.30.0.3}}",
            "web: {node: n1, networks: {front: {ipv4_address: §172.30.0.3}}}",
        ),
        "does not reserve",
    ),
    "MAC address of a second network on 20.10": bad(
        nets(
            f"{FRONT}\n    back: {{}}",
            'web: {node: n1, networks: {front: , back: {mac_address: §"02:00:00:00:00:01"}}}',
        ),
        "engine 25 or later",
    ),
    "MAC address of a second network on 24": bad(
        nets(
            f"{FRONT}\n    back: {{}}",
            'web: {node: n1, networks: {front: , back: {mac_address: §"02:00:00:00:00:01"}}}',
            more="  engine: 24\n",
        ),
        "engine 25 or later",
    ),
    "priority on 26": bad(
        nets(FRONT, "web: {node: n1, networks: {front: {gw_priority: §1}}}", more="  engine: 26\n"),
        "engine 28 or later",
    ),
    "MAC address of the container": bad(
        nets(FRONT, 'web: {node: n1, networks: [front], §mac_address: "02:00:00:00:00:01"}'),
        "in networks|front: {mac_address",
    ),
    "address on Docker's bridge": bad(
        nets(FRONT, "web: {node: n1, networks: {front: , bridge: {ipv4_address: §172.17.0.9}}}"),
        "Docker's bridge",
    ),
    "alias on Docker's bridge": bad(
        nets(FRONT, "web: {node: n1, networks: {front: , bridge: {aliases: §[a]}}}"), "bridge"
    ),
    "published on an internal network": bad(
        nets("back: {internal: true}", 'web: {node: n1, networks: [back], §publish: ["80:80"]}'),
        "not internal",
    ),
    "published on macvlan": bad(
        nets("mac: {driver: macvlan}", 'web: {node: n1, networks: [mac], §publish: ["80:80"]}'),
        "a bridge network",
    ),
    "overlay without a swarm": bad(nets("x: {driver: §overlay}"), "a swarm"),
    "overlay on some nodes": bad(
        nets("x: {driver: overlay, §nodes: [n1]}", more="  swarm: [n1]\n"), "all of the swarm"
    ),
    "overlay that is not attachable": bad(
        nets("x: {driver: overlay}", "web: {node: n1, networks: [§x]}", more="  swarm: [n1]\n"),
        "attachable: true",
    ),
    "address twice on an overlay": bad(
        nets(
            "x: {driver: overlay, attachable: true, subnet: 172.30.0.0/24}",
            "web: {node: n1, networks: {x: {ipv4_address: 172.30.0.9}}}\n"
            "  db: {node: n2, networks: {x: {ipv4_address: §172.30.0.9}}}",
            head=TWO,
            more="  swarm: [n1]\n",
        ),
        "again, of web",
    ),
    "networks without Docker": bad(
        "name: t\nnodes: {a: {}}\ndocker:\n  §networks: {front: {}}\n", "role docker"
    ),
}
#: Keys of one container, after `web: {node: n1, `.
OPTIONS = {
    "unknown capability": ("cap_add: [§NET_ADMN]", "a capability|'NET_ADMIN'"),
    "capability with its prefix": ("cap_add: [§CAP_NET_ADMIN]", "NET_ADMIN"),
    "capability twice": ("cap_drop: [ALL, §ALL]", "each capability once"),
    "sysctl of the node": ("sysctls: {§vm.swappiness: 1}", "a setting of a container|on the node"),
    "sysctl of a shared network": (
        "network: host, §sysctls: {net.ipv4.ip_forward: 1}",
        "no sysctls",
    ),
    "volume without a path": ("volumes: [§data]", "a volume"),
    "relative path": ('volumes: [§"./data:/data"]', "a volume|node's path"),
    "one place twice": ('volumes: ["aa:/data", §"bb:/data/"]', "each path of web once|of aa:/data"),
    "tmpfs on a volume": ('volumes: ["aa:/data"], tmpfs: [§/data]', "each path of web once"),
    "relative tmpfs": ("tmpfs: [§run]", "a path"),
    "no device": ("devices: [§tun]", "a device"),
    "no processes": ("pids_limit: §0", "a number of processes"),
    "unknown limit": ("ulimits: {§nofiles: 1}", "a limit: core|'nofile'"),
    "soft above hard": ("ulimits: {nofile: §{soft: 2, hard: 1}}", "a soft limit"),
    "unlimited above hard": ("ulimits: {nofile: §{soft: -1, hard: 1}}", "a soft limit"),
    "soft alone": ("ulimits: {nofile: §{soft: 2}}", "the key 'hard'"),
    "restart without quotes": ("restart: §no", "no, always"),
    "restart in other words": ("restart: §on-fail", "on-failure"),
    "restarts for ever": ("expect: exit 0, restart: §always", "does not end"),
    "no signal": ("stop_signal: §SIGTREM", "SIGTERM"),
    "no address": ("dns: [§a.b]", "an IPv4 address"),
    "no host": ("extra_hosts: [§db]", "NAME:ADDRESS"),
    "label of testbed": ("labels: {§testbed.x: 1}", "testbed's own"),
    "no folder": ("working_dir: §srv", "an absolute path"),
    "true as a user": ("user: §true", "a user"),
    "host name of a shared network": (
        "network: 'container:db', §hostname: a}, db: {node: n1",
        "no hostname|db",
    ),
    "DNS of a shared network": ("network: 'container:db', §dns: [1.1.1.1]}, db: {node: n1", "dns"),
    "MAC address of the host": ('network: host, §mac_address: "02:00:00:00:00:01"', "the node's"),
    "ranges of two lengths": ('publish: [§"80-81:80-82"]', "as many ports|2 for 3"),
    "range for one port": ('publish: [§"8000-8010:80"]', "as many ports"),
    "range backwards": ('publish: [§"81-80:80-81"]', "write 80-81"),
    "ranges that overlap": ('publish: ["8000-8010:80-90", §"8010:1"]', "once|8010/tcp again"),
    "all addresses of IPv6 twice": ('publish: ["[::]:80:80", §"[::1]:80:81"]', "80/tcp again"),
    "all and one of IPv6": ('publish: ["80:80", §"[::1]:80:81"]', "80/tcp again"),
    "no IPv6 address": ('publish: [§"[::1::]:80:80"]', "an IP address"),
    "a port of Docker's choice": ("publish: [§'80']", "host_port:container_port"),
}  # fmt: skip
BAD |= {
    name: bad(DOCKER + f"containers: {{web: {{node: n1, {keys}}}}}\n", words)
    for name, (keys, words) in OPTIONS.items()
}


@pytest.mark.parametrize("name", BAD)
def test_each_problem_is_reported_at_its_place(name: str) -> None:
    case = BAD[name]
    found = problems(case.plain)
    assert [(one.line, one.column) for one in found] == case.places, found
    for problem, words in zip(found, case.words, strict=True):
        text = f"{problem.wanted} {problem.seen} {problem.hint}"
        assert all(word in text for word in words), text


FINE = [
    nets(FRONT, "web: {node: n1, networks: [front, bridge], publish: ['80:80']}"),
    nets("front:", "web: {node: n1, networks: {front: }}"),
    nets(BOTH, 'web: {node: n1, networks: {front: {ipv6_address: "fd00:30::a"}}}'),
    # The gateway is not known with a range (libnetwork chooses it there).
    nets(
        "front: {subnet: 172.30.0.0/24, ip_range: 172.30.0.128/25}",
        "web: {node: n1, networks: {front: {ipv4_address: 172.30.0.1}}}",
    ),
    # Some engines reserve an address there, others do not (moby #50985).
    nets(
        "mac: {driver: macvlan, subnet: 172.30.0.0/24}",
        "web: {node: n1, networks: {mac: {ipv4_address: 172.30.0.1}}}",
    ),
    # Each node has a network of its own.
    nets(
        FRONT,
        "web: {node: n1, networks: {front: {ipv4_address: 172.30.0.9}}}\n"
        "  db: {node: n2, networks: {front: {ipv4_address: 172.30.0.9}}}",
        head=TWO,
    ),
    nets("front: {enable_ipv6: true}", more="  engine: 29\n"),
    nets(
        FRONT,
        "web: {node: n1, networks: {front: {gw_priority: -1}}}",
        head=DOCKER.replace("[docker]", "[docker], docker: {engine: 29}"),
    ),
    # A number that is higher than those that Docker can have given before.
    nets(
        f"{FRONT}\n    back: {{}}",
        "web: {node: n1, networks: {front: {interface_name: eth1}, back: }}",
        more="  engine: 29\n",
    ),
    nets(
        f"{FRONT}\n    back: {{}}",
        "web: {node: n1, networks: {front: {interface_name: eth1}, back: {interface_name: eth0}}}",
        more="  engine: 29\n",
    ),
    nets("mac: {driver: macvlan, subnet: 10.168.0.0/24, driver_opts: {parent: eth0.10}}"),
    nets("mac: {driver: macvlan, driver_opts: {parent: d0}}"),  # a link that a command makes
    nets(FRONT, "web: {node: n1, networks: {front: {mac_address: 02:00:00:00:00:01}}}"),
    nets(
        f"{FRONT}\n    back: {{}}",
        "web: {node: n1, networks: {front: , back: {mac_address: 02:00:00:00:00:01}}}",
        more="  engine: 26\n",
    ),
    nets(FRONT, "web: {node: n1, networks: [front], publish: ['[::]:80:80', '0.0.0.0:80:80']}"),
    nets(FRONT, "web: {node: n1, networks: [front], publish: ['53:53/udp', '53:53', '53:53/sctp']}"),  # noqa: E501
    DOCKER + 'containers: {web: {node: n1, restart: "no", user: 1000, stop_signal: 9}}\n',
    DOCKER + "containers: {web: {node: n1, expect: exit 0, restart: on-failure}}\n",
    DOCKER + "containers: {web: {node: n1, ulimits: {core: -1, nofile: {soft: 1, hard: -1}}}}\n",
]  # fmt: skip


@pytest.mark.parametrize("text", FINE)
def test_it_is_accepted_and_comes_back(text: str) -> None:
    found = load_text(text, "t.yaml")
    assert load_data(found.to_dict(), "t.yaml") == found
    plan.make(found)


def test_other_problems_do_not_repeat_themselves() -> None:
    """An invalid network is reported once, not again at each container."""
    text = nets(
        "front: {subnet: §172.30.0.0}", "web: {node: n1, networks: {front: {aliases: [a]}}}"
    )
    assert len(problems(text.replace(MARK, ""))) == 1


# -- the model ---------------------------------------------------------------------------


def test_a_network_is_on_the_nodes_of_its_containers() -> None:
    found = topology(
        "front:\n    lone:\n    here: {nodes: [n2]}", "web: {node: n2, networks: [front]}", head=TWO
    )
    where = {name: on_nodes(found, one) for name, one in networks_of(found).items()}
    assert where == {"front": ("n2",), "lone": ("n1", "n2"), "here": ("n2",)}
    assert [one.name for one in on_node(found, "n1")] == ["lone"]
    assert on_node(load_text(DOCKER, "t"), "n1") == ()


def test_nodes_and_digests_do_not_depend_on_docker_networks() -> None:
    """A node need not be created again for a network, nor a container for a key of another."""
    plain = load_text(DOCKER + "containers: {web: {node: n1}}\n", "t")
    with_it = topology(FRONT, "web: {node: n1}")
    assert plain.node_digest("n1") == with_it.node_digest("n1")
    # That of the version before, so that its containers stay.
    assert plain.container_digest("web") == with_it.container_digest("web") == "217613e0f469"
    moved = topology("front: {subnet: 172.30.0.0/24, nodes: [n1]}")
    one, other = (networks_of(each)["front"] for each in (with_it, moved))
    assert one.digest == other.digest != networks_of(topology("front:"))["front"].digest


@pytest.mark.parametrize(
    ("text", "shown", "each"),
    [
        ("80:81", "80:81/tcp", [(80, 81)]),
        ("[::1]:8000-8002:80-82/sctp", "[::1]:8000-8002:80-82/sctp", [(8000, 80), (8001, 81),
         (8002, 82)]),
        ("127.0.0.1:53-54:53-54/udp", "127.0.0.1:53-54:53-54/udp", [(53, 53), (54, 54)]),
    ],
)  # fmt: skip
def test_published_ports(text: str, shown: str, each: list[tuple[int, int]]) -> None:
    found = load_text(DOCKER + f"containers: {{web: {{node: n1, publish: ['{text}']}}}}\n", "t")
    (port,) = found.containers["web"].publish
    assert str(port) == shown
    assert [(one.host_port, one.container_port) for one in port.each] == each
    assert all(one.count == 1 and one.address == port.address for one in port.each)


def test_ports_collide_on_the_same_address_family_and_protocol() -> None:
    one = Publish(80, 80, count=3)
    assert one.collides(Publish(82, 1))
    assert not one.collides(Publish(83, 1))
    assert not one.collides(Publish(79, 1))
    assert Publish(79, 1, count=2).collides(one)
    assert not one.collides(Publish(80, 1, "udp"))


def test_what_a_container_needs_of_the_kernel() -> None:
    needed = {*Docker().kernel_for(topology("a: {driver: macvlan}\n    b: {driver: ipvlan}"))}
    assert needed - {*Docker().kernel_for(load_text(DOCKER, "t"))} == {"macvlan", "ipvlan"}


def test_each_published_port_of_a_range_counts_for_the_limits_of_the_machine() -> None:
    one, two, many = (
        Docker().takes(
            load_text(DOCKER + f"containers: {{web: {{node: n1, publish: ['{ports}']}}}}\n", "t"),
            "n1",
        )
        for ports in ("80:80", "80-81:80-81", "8000-8099:80-179")
    )
    none = Docker().takes(load_text(DOCKER + "containers: {web: {node: n1}}\n", "t"), "n1")
    assert one.tasks == none.tasks
    assert two.tasks > one.tasks
    assert many.tasks > one.tasks + 99 * 2 * 5  # a docker-proxy for each family


def test_claims_on_docker0_are_skipped_where_its_containers_are_elsewhere_too() -> None:
    found = topology(FRONT, "web: {node: n1, networks: [front, bridge]}\n  db: {node: n1}")
    lab: Any = SimpleNamespace(topology=found, container=lambda name: name)
    node: Any = SimpleNamespace(name="n1")
    with pytest.raises(pytest.skip.Exception, match="web"):
        helpers.bridge_containers(lab, node)
    lab.topology = topology(FRONT, "web: {node: n1, networks: [front]}\n  db: {node: n1}")
    assert cast("list[str]", helpers.bridge_containers(lab, node)) == ["db"]


# -- requests ----------------------------------------------------------------------------

SEVERAL = (
    f"{BOTH}\n    back: {{internal: true}}",
    "web: {node: n1, networks: {front: {ipv4_address: 172.30.0.9, ipv6_address: 'fd00:30::9', "
    "aliases: [a]@}, back: {aliases: [b]}}}",
)


def created(text: str, version: str) -> tuple[dict[str, Any], Any]:
    found = topology(*(one.replace("@", text) for one in SEVERAL), more="  engine: 29\n")
    made, api = engine()
    api.api_version = version
    made.start("lab", found.containers["web"], "d1")
    return api.of("create_container")[1], api


@pytest.mark.parametrize("version", ["1.41", "1.43"])
def test_an_old_engine_is_asked_for_one_network_after_the_other(version: str) -> None:
    kwargs, api = created(", mac_address: '02:00:00:00:00:09'", version)
    assert [what for what, _, _ in api.asked] == [
        "create_container", "connect_container_to_network", "start",
    ]  # fmt: skip
    assert kwargs["host_config"]["network_mode"] == "front"
    assert kwargs["mac_address"] == "02:00:00:00:00:09"
    (front,) = kwargs["networking_config"]["EndpointsConfig"].items()
    assert front == (
        "front",
        {
            "IPAMConfig": {"IPv4Address": "172.30.0.9", "IPv6Address": "fd00:30::9"},
            "Aliases": ["a"],
            "MacAddress": "02:00:00:00:00:09",
        },
    )
    args, kwargs = api.of("connect_container_to_network")
    assert args == ("web", "back")
    assert kwargs["aliases"] == ["b"]


def test_a_new_engine_is_asked_for_all_networks_at_once() -> None:
    kwargs, api = created(
        ", mac_address: '02:00:00:00:00:09', gw_priority: 7, interface_name: web0", "1.47"
    )
    assert [what for what, _, _ in api.asked] == ["create_container", "start"]
    assert "mac_address" not in kwargs
    every = kwargs["networking_config"]["EndpointsConfig"]
    assert list(every) == ["front", "back"]
    assert every["front"]["GwPriority"] == 7
    assert every["front"]["DriverOpts"] == {"com.docker.network.endpoint.ifname": "web0"}
    assert every["front"]["MacAddress"] == "02:00:00:00:00:09"
    assert every["back"] == {"Aliases": ["b"], "IPAMConfig": {}} or every["back"] == {
        "Aliases": ["b"]
    }


@pytest.mark.parametrize(
    ("version", "key"), [("1.41", "mac_address"), ("1.47", "networking_config")]
)
def test_the_mac_address_on_dockers_bridge(version: str, key: str) -> None:
    found = load_text(
        DOCKER + "containers: {web: {node: n1, mac_address: '02:00:00:00:00:09'}}\n", "t"
    )
    made, api = engine()
    api.api_version = version
    made.start("lab", found.containers["web"], "d1")
    assert "02:00:00:00:00:09" in str(api.of("create_container")[1][key])


def test_options_are_those_of_the_engine() -> None:
    found = load_text(
        DOCKER + "containers: {web: {node: n1, privileged: true, cap_add: [NET_ADMIN], "
        "cap_drop: [ALL], devices: [/dev/fuse], sysctls: {net.ipv4.ip_forward: 1}, "
        "cpus: 0.5, mem_limit: 64m, pids_limit: 9, "
        "ulimits: {nofile: {soft: 1, hard: 2}}, volumes: ['aa:/a:ro'], "
        "tmpfs: [/run], dns: "
        "['fd00::1'], extra_hosts: ['db:host-gateway'], restart: 'on-failure:3', init: true, "
        "entrypoint: [a, b], user: 1000, working_dir: /srv, stop_signal: INT, hostname: me, "
        "stop_grace_period: 90s, labels: {x: 1}, publish: ['80-81:80-81', '[::1]:90:90']}}\n",
        "t",
    )
    made, api = engine()
    made.start("lab", found.containers["web"], "d1")
    _, kwargs = api.of("create_container")
    assert kwargs["host_config"] == {
        "network_mode": "bridge",
        "port_bindings": {"80/tcp": [80], "81/tcp": [81], "90/tcp": [("::1", 90)]},
        "privileged": True,
        "cap_add": ["NET_ADMIN"],
        "cap_drop": ["ALL"],
        "devices": ["/dev/fuse"],
        "sysctls": {"net.ipv4.ip_forward": "1"},
        "ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 2}],
        "nano_cpus": 500_000_000,
        "mem_limit": 64 << 20,
        "pids_limit": 9,
        "binds": ["aa:/a:ro"],
        "tmpfs": ["/run"],
        "dns": ["fd00::1"],
        "extra_hosts": ["db:host-gateway"],
        "restart_policy": {"Name": "on-failure", "MaximumRetryCount": 3},
        "init": True,
    }
    more = {key: kwargs[key] for key in ("entrypoint", "user", "working_dir", "hostname")}
    assert more == {
        "entrypoint": ["a", "b"], "user": "1000", "working_dir": "/srv", "hostname": "me",
    }  # fmt: skip
    assert (kwargs["stop_signal"], kwargs["stop_timeout"]) == ("SIGINT", 90)
    assert kwargs["labels"] == {"x": "1", "testbed.digest": "d1", "testbed.labs": "lab"}


SEEN: dict[str, Any] = {
    "Name": "front", "Id": "ab" * 32, "Driver": "bridge", "Internal": False, "Options": {},
    "IPAM": {"Config": [{"Subnet": "172.30.0.0/24"}, {"Subnet": "fd00:30::/64"}]},
    "Labels": {"testbed.digest": "d1"}, "Containers": {},
}  # fmt: skip
FOUND = NetworkState(
    "front", "ab" * 32, "bridge", ("172.30.0.0/24", "fd00:30::/64"), False, "d1", "br-" + "ab" * 6
)


def test_a_network_is_created_and_read() -> None:
    made, api = engine()
    api.answers["inspect_network"] = SEEN
    text = f"{BOTH[:-1]}, gateway: 172.30.0.254, ip_range: 172.30.0.128/25, internal: true}}"
    network = networks_of(topology(text))["front"]
    assert made.create_network("lab", network) == FOUND
    args, kwargs = api.of("create_network")
    assert args == ("front",)
    assert kwargs["ipam"]["Config"] == [
        {"Subnet": "172.30.0.0/24", "Gateway": "172.30.0.254", "IPRange": "172.30.0.128/25"},
        {"Subnet": "fd00:30::/64"},
    ]
    assert kwargs["labels"] == {"testbed.digest": network.digest, "testbed.labs": "lab"}
    assert (kwargs["driver"], kwargs["internal"], kwargs["enable_ipv6"]) == ("bridge", True, True)


def test_networks_are_listed_with_their_bridges() -> None:
    made, api = engine()
    api.answers["networks"] = [
        SEEN,
        SEEN | {"Name": "bridge", "Labels": None},
        SEEN | {"Name": "named", "Options": {"com.docker.network.bridge.name": "br-lan"}},
        SEEN | {"Name": "mac", "Driver": "macvlan", "Options": None, "IPAM": {"Config": None}},
    ]
    found = made.networks()
    assert found["front"] == FOUND
    assert (found["bridge"].digest, found["mac"].link, found["mac"].subnets) == (None, "", ())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glance, "networks", lambda _: found)
        node: Any = None
        assert bridges(node) == {FOUND.link: "front", "br-lan": "named"}


def test_a_removed_network_takes_its_own_containers_with_it() -> None:
    made, api = engine()
    api.answers["inspect_network"] = SEEN | {"Containers": {"id1": {}, "id2": {}}}
    base = {
        "Id": "1", "RestartCount": 0, "Image": "", "NetworkSettings": {"Networks": {}},
        "HostConfig": {"NetworkMode": "front"},
        "State": {"Running": True, "Pid": 1, "Status": "running", "ExitCode": 0,
                  "OOMKilled": False, "Error": ""},
    }  # fmt: skip
    answers = iter(
        [
            base | {"Name": "/web", "Config": {"Image": "", "Labels": {"testbed.digest": "d"}}},
            base | {"Name": "/users", "Config": {"Image": "", "Labels": {}}},
        ]
    )
    api.inspect_container = lambda _: next(answers)
    assert made.remove_network(FOUND) == ["web"]
    assert [(what, args) for what, args, _ in api.asked] == [
        ("inspect_network", (FOUND.id,)),
        ("remove_container", ("id1",)),
        ("disconnect_container_from_network", ("id2", FOUND.id)),
        ("remove_network", (FOUND.id,)),
    ]


# -- steps -------------------------------------------------------------------------------

PAIR = "web: {node: n1, networks: {front: {ipv4_address: 172.30.0.9}}}\n  db: {node: n1}"


def test_networks_come_before_containers_and_stay(bench: Bench) -> None:
    lab, one = Lab("t", bench.settings), topology(FRONT, PAIR)
    lab.up(one)
    said = [what for _, what in bench.engine_log if "front" in what or "start" in what]
    assert said == ["create network front", "start web", "start db"]
    assert lab.up(one).changed == []


def test_a_network_that_was_removed_comes_back_with_its_container(bench: Bench) -> None:
    lab, one = Lab("t", bench.settings), topology(FRONT, PAIR)
    lab.up(one)
    here = FakeEngine(lab.context().nodes["n1"])
    here.remove_network(here.networks()["front"])
    del bench.engine_log[:]
    again = {done.step.name: done.words for done in lab.up(one).changed}
    assert list(again) == ["networks n1", "container n1/web"]
    assert again["networks n1"] == "front restored"


def test_a_container_that_was_disconnected_is_created_again(bench: Bench) -> None:
    lab, one = Lab("t", bench.settings), topology(FRONT, PAIR)
    lab.up(one)
    here = FakeEngine(lab.context().nodes["n1"])
    network = here.networks()["front"]
    state = here._here["web"]
    for networks in (
        {},
        {"front": Endpoint("another", "172.30.0.9")},
        {"front": Endpoint(network.id, "172.30.0.8")},
    ):
        here._here["web"] = _with(state, networks)
        assert [done.step.name for done in lab.up(one).changed] == ["container n1/web"]
    # One more network is the user's own affair.
    more = {**here._here["web"].networks, "bridge": Endpoint("0" * 64)}
    here._here["web"] = _with(here._here["web"], more)
    assert lab.up(one).changed == []


def _with(state: Any, networks: Any) -> Any:
    return replace(state, networks=networks)


def test_a_changed_network_is_created_again_with_its_containers(bench: Bench) -> None:
    lab = Lab("t", bench.settings)
    lab.up(topology(FRONT, PAIR))
    done = lab.up(topology("front: {subnet: 172.30.0.0/16}", PAIR), replace=True).changed
    words = {one.step.name: one.words for one in done}
    assert list(words) == ["networks n1", "container n1/web"]
    assert words["networks n1"] == "front created again with web"


def test_a_network_that_the_file_no_longer_has_is_removed(bench: Bench) -> None:
    lab = Lab("t", bench.settings)
    lab.up(topology(f"{FRONT}\n    back: {{}}", "db: {node: n1}"))
    here = FakeEngine(lab.context().nodes["n1"])
    one = topology(FRONT, "db: {node: n1}")
    assert [done.words for done in lab.up(one, replace=True).changed] == ["back removed"]
    assert {*here.networks()} == {"bridge", "front"}
    none = load_text(DOCKER + "containers: {db: {node: n1}}\n", "t.yaml")
    assert [done.step.name for done in lab.up(none, replace=True).changed] == ["images n1"]
    assert {*here.networks()} == {"bridge"}
    assert lab.up(none).changed == []


def test_a_network_of_the_user_stays(bench: Bench) -> None:
    lab, one = Lab("t", bench.settings), topology(FRONT)
    lab.up(one)
    here = FakeEngine(lab.context().nodes["n1"])
    here.create_network("t", networks_of(topology("mine:"))["mine"])
    assert lab.up(one).changed == []
    assert "mine" in here.networks()


def test_a_lab_without_networks_does_not_ask_for_them(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeEngine, "networks", lambda _: pytest.fail("asked"))
    lab, one = Lab("t", bench.settings), load_text(DOCKER + "containers: {a1: {node: n1}}\n", "t")
    lab.up(one)
    lab.up(one)
    monkeypatch.setattr(glance, "networks", lambda _: pytest.fail("asked"))
    monkeypatch.setattr(glance, "containers", lambda _: {})
    assert status.networks(lab.context(), lab.context().nodes["n1"]) == []
    assert "networks n1" not in plan.make(one).steps


def test_fixed_addresses_come_first() -> None:
    """Docker would give them to the containers before."""
    found = topology(
        FRONT,
        "a1: {node: n1, networks: [front]}\n"
        "  a2: {node: n1, network: 'container:a1'}\n"
        "  a3: {node: n1, networks: {front: {ipv4_address: 172.30.0.2}}}\n"
        "  a4: {node: n1}",
    )
    steps = [name for name in plan.make(found).steps if name.startswith("container ")]
    assert steps == [f"container n1/{name}" for name in ("a3", "a1", "a4", "a2")]


def test_a_fixed_address_is_taken_from_a_container_that_docker_gave_it_to(bench: Bench) -> None:
    lab = Lab("t", bench.settings)
    rest = "a1: {node: n1, networks: [front]}\n  a2: {node: n1, networks: [front]}"
    lab.up(topology(FRONT, rest))
    here = FakeEngine(lab.context().nodes["n1"])
    network = here.networks()["front"].id
    here._here["a1"] = replace(
        here._here["a1"], networks={"front": Endpoint(network, "172.30.0.2")}
    )
    more = f"{rest}\n  a3: {{node: n1, networks: {{front: {{ipv4_address: 172.30.0.2}}}}}}"
    done = lab.up(topology(FRONT, more), replace=True).changed
    assert [one.step.name for one in done] == ["container n1/a3", "container n1/a1"]


def test_networks_on_links_wait_for_the_lab() -> None:
    text = "web: {node: n1, networks: [x1]}\n  db: {node: n1}"
    cases = {
        "subnet: 172.30.0.0/24": True,
        # Docker chooses one that is apart from the networks that the node is on.
        "driver: bridge": False,
        "driver: macvlan, subnet: 172.30.0.0/24": False,
    }
    for settings, ahead in cases.items():
        steps = plan.make(topology(f"x1: {{{settings}}}", text)).steps
        assert steps["networks n1"].ahead is ahead
        assert steps["container n1/web"].ahead is ahead


def test_an_overlay_is_made_by_the_first_manager_for_all_nodes() -> None:
    found = topology(
        "x: {driver: overlay, attachable: true}\n    local:",
        "web: {node: n1, networks: [x]}\n  db: {node: n2, networks: [x, local]}\n"
        "  own: {node: n2, networks: [local]}",
        head=TWO,
        more="  swarm: [n2, n1]\n",
    )
    assert [one.name for one in on_node(found, "n1")] == []
    assert [one.name for one in on_node(found, "n2")] == ["x", "local"]
    steps = plan.make(found).steps
    assert set(steps["networks n2"].needs) == {"images n2", "swarm n2"}
    assert set(steps["container n1/web"].needs) == {"images n1", "networks n2"}
    assert set(steps["container n2/db"].needs) == {"networks n2"}
    assert not any(steps[name].ahead for name in steps if "/" in name or "networks" in name)


def test_an_overlay_is_removed_with_the_containers_of_all_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A swarm releases it a moment after its last container has gone."""
    done: list[str] = []
    overlay = NetworkState("x", "1", "overlay", (), internal=False, digest="d")

    class One:
        def __init__(self, node: str) -> None:
            self.node = node

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def names(self, *, label: str) -> set[str]:
            assert label == "testbed.labs=t"
            return {f"{self.node}-on", f"{self.node}-off"}

        def find(self, name: str) -> Any:
            networks = {"x": Endpoint("1")} if name.endswith("-on") else {}
            return SimpleNamespace(networks=networks)

        def remove(self, name: str) -> None:
            done.append(name)
            if name == "n2-on":
                raise LabError("no such container")

        def remove_network(self, network: NetworkState) -> list[str]:
            done.append(network.name)
            if done.count("x") == 1:
                raise LabError("network x is in use by task 1")
            return []

    context: Any = SimpleNamespace(
        topology=topology("local:", head=TWO), lab="t", node=lambda name: name,
        given_up=threading.Event(), waiting=lambda _: None,
    )  # fmt: skip
    monkeypatch.setattr(network_steps, "Engine", One)
    manager: Any = One("n1")
    assert network_steps._remove(context, manager, overlay) == ["n1-on", "n2-on"]
    assert done == ["n1-on", "n2-on", "x", "x"]


def test_the_plan_says_what_is_made() -> None:
    found = topology(
        "mac: {driver: macvlan, subnet: 10.168.0.0/24, driver_opts: {parent: eth0}}",
        "web: {node: n1, networks: {mac: {ipv4_address: 10.168.0.9}}, cap_add: [NET_ADMIN]}",
    )
    steps = plan.make(found).steps
    for word in ("mac", "macvlan", "eth0", "10.168.0.0/24"):
        assert word in steps["networks n1"].about
    for word in ("mac", "10.168.0.9", "NET_ADMIN"):
        assert word in steps["container n1/web"].about


# -- what is ------------------------------------------------------------------------------


def parts(seen: dict[str, Glance], networks: dict[str, NetworkState] | Exception) -> Any:
    found = topology(f"{FRONT}\n    back: {{internal: true}}", SHOWN)
    context: Any = SimpleNamespace(topology=found)
    node: Any = SimpleNamespace(name="n1")

    def asked(_: object) -> dict[str, NetworkState]:
        if isinstance(networks, Exception):
            raise networks
        return networks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glance, "containers", lambda _: dict(seen))
        patch.setattr(glance, "networks", asked)
        return status.containers(context, node), status.networks(context, node), found


SHOWN = "web: {node: n1, networks: {front: {ipv4_address: 172.30.0.9}, back: }}"


def web(**networks: tuple[str, str]) -> dict[str, Glance]:
    return {"web": Glance("web", "running", "", networks=networks)}


@pytest.mark.parametrize(
    ("seen", "ok", "words"),
    [
        (web(front=("172.30.0.9", ""), back=("172.31.0.2", "")), True, ["172.30.0.9 on front"]),
        (web(front=("172.30.0.8", ""), back=("172.31.0.2", "")), False, ["wanted 172.30.0.9"]),
        (web(front=("172.30.0.9", "")), False, ["not on back"]),
        (web(front=("172.30.0.9", ""), back=("1.1.1.1", ""), x=("2.2.2.2", "")), True, ["on x"]),
    ],
)
def test_a_container_on_other_networks_is_marked(
    seen: dict[str, Glance], ok: bool, words: list[str]
) -> None:
    (part,), _, _ = parts(seen, {})
    assert part.ok is ok
    assert all(word in part.detail for word in words)


def test_networks_are_shown_as_they_are() -> None:
    _, _, found = parts({}, {})
    wanted = networks_of(found)
    there = {
        "front": NetworkState("front", "1", "bridge", ("172.30.0.0/24",), False,
                              wanted["front"].digest, "br-1"),
        "back": NetworkState("back", "2", "bridge", ("172.99.0.0/16",), True, None, "br-2"),
    }  # fmt: skip
    _, (front, back), _ = parts({}, there)
    assert (front.name, front.state, front.ok) == ("front", "up", True)
    assert "172.30.0.0/24" in front.detail
    assert (back.state, back.ok) == ("different", False)
    assert "172.99.0.0/16" in back.detail
    _, (front, back), _ = parts({}, {"front": there["front"]})
    assert (front.ok, back.state, back.ok) == (True, "missing", False)


def test_a_daemon_that_does_not_answer_hides_no_network() -> None:
    _, found, _ = parts({}, LabError("hangs"))
    assert [(one.name, one.state, one.ok) for one in found] == [
        ("front", "unknown", False), ("back", "unknown", False),
    ]  # fmt: skip


def test_the_graph_and_its_picture_name_the_network_of_a_bridge() -> None:
    link = {
        "ifname": "br-1", "ifindex": 3, "link_type": "ether", "address": "02:00:00:00:00:01",
        "mtu": 1500, "flags": ["UP"], "addr_info": [], "linkinfo": {"info_kind": "bridge"},
    }  # fmt: skip
    lab: Any = SimpleNamespace(
        topology=SimpleNamespace(
            nodes={"n1": SimpleNamespace(roles=["docker"], gateway=False, image="")}, foreign=None
        ),
        node=lambda _: SimpleNamespace(
            run=lambda *_, **__: SimpleNamespace(stdout=f"\036links\n{json.dumps([link])}")
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Docker, "drawn", lambda *_: ())
        patch.setattr(Docker, "link_names", lambda *_: {"br-1": "front"})
        node = graph.node(machine(lab, "n1"))
    assert node["error"] == ""
    assert [one["network"] for one in node["links"]] == ["front"]
    drawn = draw({"nodes": [node], "networks": [], "overlay": None, "wires": []}, id="x", title="t")
    assert "front (br-1)" in drawn


def test_the_answer_with_networks() -> None:
    assert glance._networks(f"[{_json(SEEN)}]".encode()) == [FOUND]


def _json(value: object) -> str:
    return json.dumps(value)
