"""Hints of topology errors are true: a file that follows its hint is accepted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import yaml
from plugins import declare_elsewhere
from test_topology_bad import TABLE
from topology_texts import CLUSTER, DOCKER, LAN, NETNS, NODES, problems, veth

if TYPE_CHECKING:
    from testbed.errors import Problem


@pytest.fixture(autouse=True)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    declare_elsewhere(monkeypatch)


# -- hints that name what to write ------------------------------------------------

#: What to write, as the hints put it; the text in the group takes the place of the wrong one.
NAMED = (
    r"did you mean '(.*)'\?",
    r"known: (.*)",
    r"'(.*)' would do",
    r"quote it: (\".*\")",
    r"write (\S+), the bits .*",
    r"write (\S+) without quotes",
    r"write ([0-9]+)",
    r"add the unit: (\S+)",
)


def named(hint: str) -> list[str]:
    """The words that a hint says may be written."""
    found = [one[1] for pattern in NAMED if (one := re.fullmatch(pattern, hint))]
    return found[0].removesuffix(", ...").split(", ") if found else []


def followed(text: str, problem: Problem, new: str) -> str:
    """The text with the wrong word replaced by the one that the hint names."""
    if problem.seen.startswith("*"):  # an alias, without which YAML reads nothing
        return text.replace(problem.seen, new)
    place = (problem.line - 1, problem.column - 1)
    lines = text.splitlines(keepends=True)
    before = "".join(lines[: place[0]]) + lines[place[0]][: place[1]]
    if alias := re.match(r"\*\S+", text[len(before) :]):  # of an anchor that there is not
        return before + new + text[len(before) + alias.end() :]
    (at,) = (
        token
        for token in yaml.scan(text)
        if isinstance(token, (yaml.ScalarToken, yaml.AliasToken))
        and (token.start_mark.line, token.start_mark.column) == place
    )
    start, end = at.start_mark.index, at.end_mark.index
    word, seen = text[start:end], problem.seen.strip("'")
    if "quote" in problem.hint or seen not in word:
        seen = word
    return text[:start] + word.replace(seen, new) + text[end:]


#: Beside those of the table: values that are refused in two ways.
TWICE = {
    "a digit where a word is wanted": NODES + "flannel: {backend: 1}\n",
    "a number where an image's network is wanted": DOCKER
    + "containers: {c1: {node: n1, network: 5}}\n",
    "an exit status as a number": DOCKER + "containers: {c1: {node: n1, expect: 0}}\n",
    "a node's number": DOCKER + "containers: {c1: {node: 1}}\n",
    "a port as a fraction": DOCKER + "containers: {c1: {node: n1, ready: {port: 80.5}}}\n",
    "a reserved name in capitals": "name: t\nnodes: {LO: {}}\n",
    "a bridge of the fabric in capitals": "name: t\nnodes: {Br_x: {}}\n",
    "a time of none": DOCKER + "containers: {c1: {node: n1, healthcheck: {timeout: 0}}}\n",
    "a negative time": DOCKER + "containers: {c1: {node: n1, healthcheck: {timeout: -1}}}\n",
    "a time of days": DOCKER + "containers: {c1: {node: n1, healthcheck: {timeout: 100000}}}\n",
    "a number of processors in quotes": 'name: t\nnodes: {a: {cpus: "2"}}\n',
    "no processors in quotes": 'name: t\nnodes: {a: {cpus: "0"}}\n',
    "retries in quotes": DOCKER + 'containers: {c1: {node: n1, healthcheck: {retries: "3"}}}\n',
    "host bits of few hosts": "name: t\nnetworks: {n: {subnet: 10.0.0.1/31}}\nnodes: {a: {}}\n",
    "host bits of the loopback": "name: t\nnetworks: {n: {subnet: 127.0.0.1/8}}\nnodes: {a: {}}\n",
    "a bridge that is IPv6": NETNS
    + "veths: [{node: h, ends: [{name: a, namespace: ns1, address: 'fd00::1'}, "
    "{name: b, bridge: br0}]}]\n",
    "leading zeros of a port": DOCKER + 'containers: {c1: {node: n1, publish: ["080:80"]}}\n',
    "leading zeros of the other port": DOCKER
    + 'containers: {c1: {node: n1, publish: ["80:080"]}}\n',
    "leading zeros of a port of UDP": DOCKER
    + "containers: {c1: {node: n1, ready: {port: 053/udp}}}\n",
    "leading zeros of an exit status": DOCKER + "containers: {c1: {node: n1, expect: exit 007}}\n",
    "the only container's own network": DOCKER
    + "containers: {c1: {node: n1, network: 'container:c2'}, c3: {node: n1, expect: exit 0}}\n",
    "a container without Docker": LAN
    + "nodes: {n1: {networks: {lan: 10.168.0.2}, roles: [docker]}, n2: {}}\n"
    "containers: {c1: {node: n3}}\n",
    "a namespace's name on another node": veth(
        "{name: a, namespace: ns}", "{name: b, bridge: br0}"
    ),
    "a subnet of a node without flannel": NODES.replace("out:", "n3:")
    + "flannel: {subnets: {n4: 100.96.1.0/24}}\n",
    "a range of a node without a cluster": CLUSTER.replace("out:", "n3:")
    + "kubernetes: {ranges: {n4: 100.96.1.0/24}}\n",
    "a docker0 of a node without Docker": NODES.replace("out:", "n3:").replace("docker, ", "")
    + "flannel: {}\ndocker: {bip: {n4: 10.1.27.1/24}}\n",
}
TEXTS = {name: case.plain for name, case in TABLE.items()} | TWICE


def naming(text: str) -> list[Problem]:
    return [problem for problem in problems(text) if named(problem.hint)]


def test_a_word_that_a_hint_names_is_accepted() -> None:
    tried, refused = 0, {}
    for name, whole in TEXTS.items():
        for problem in naming(whole):
            place = (problem.line, problem.column)
            left = [
                [other for other in problems(text) if (other.line, other.column) == place]
                for text in (followed(whole, problem, new) for new in named(problem.hint))
            ]
            tried += 1
            if [] not in left:
                refused[name] = (problem, left)
    assert tried > 50
    assert refused == {}


@pytest.mark.parametrize("text", TWICE.values(), ids=TWICE.keys())
def test_a_refused_value_has_one_problem_and_a_hint(text: str) -> None:
    (problem,) = problems(text)
    assert problem.hint


# -- hints that say what to do ----------------------------------------------------

Change = tuple[str, str]
ROUTER = "  g: {networks: {a: 10.1.0.1, b: 10.2.0.1}, gateway: true}\n"
#: By the name of a case of the table: for each thing that its hint offers, the changes that do it.
#: A change replaces the first place of a text.
OFFERED: dict[str, list[list[Change]]] = {
    "form: no node": [[("nodes: {}", "nodes: {node1: {}}")]],
    "form: missing keys": [[("{}", "{name: t, nodes: {a: {}}}")]],
    "form: role twice": [[(", namespaces", "")]],
    "form: cpus zero": [[("cpus: 0", "cpus: 0.5")], [("cpus: 0", "")]],
    "form: memory too small": [[("31M", "512M")], [("31M", "2G")], [("memory: 31M", "")]],
    "form: gateway yes": [
        [
            ("{gateway: yes", "{networks: {n: 10.0.0.1}, gateway: true"),
            ("name: t", "name: t\nnetworks: {n: {subnet: 10.0.0.0/24}}"),
        ],
        [("yes", "false")],
    ],
    "form: container named like an address": [[('"12"', "web")]],
    "networks: outside": [[("10.169.0.2", "10.168.0.2")], [("10.168.0.0", "10.169.0.0")]],
    "networks: network address": [[("lan: 10.168.0.0", "lan: 10.168.0.1")]],
    "networks: broadcast": [[("10.168.0.255", "10.168.0.254")]],
    "networks: duplicate": [[("b: {networks: {lan: 10.168.0.2", "b: {networks: {lan: 10.168.0.3")]],
    "networks: with prefix": [[("10.168.0.2/24", "10.168.0.2")]],
    "networks: leading zeros": [[("10.168.0.02", "10.168.0.2")]],
    "networks: IPv6": [[('"fd00::2"', "fd00::2/64")]],
    "networks: a machine with too many networks": [
        [("      n27: 10.0.27.2\n", "")],
        [("provider: qemu", "provider: netns")],
    ],
    "networks: a network with too many nodes": [
        [
            ("{n: {subnet: 10.0.0.0/16}}", "{n: {subnet: 10.0.0.0/16}, m: {subnet: 10.1.0.0/16}}"),
            ("{n: 10.0.9.9}", "{m: 10.1.0.1}"),
        ]
    ],
    "networks: providers of two fabrics": [[("  a: {provider: elsewhere}\n", "")]],
    "networks: a provider that is not the lab's": [[("  b: {provider: netns}\n", "")]],
    "networks: no prefix": [[("10.168.0.0", "10.168.0.0/24")]],
    "networks: netmask": [[("/255.255.255.0", "/24")]],
    "networks: prefix 32": [[("/32", "/31")], [("10.0.0.0/32", "10.0.0.0/8")]],
    "networks: multicast": [
        [("224.1.0.0/24", "10.0.0.0/8")],
        [("224.1.0.0/24", "172.16.0.0/12")],
        [("224.1.0.0/24", "192.168.0.0/16")],
    ],
    "networks: same subnet": [[("b: {subnet: 10.0.0", "b: {subnet: 10.0.1")]],
    "networks: two networks of one subnet on a node": [
        [("b: {subnet: 10.0.0.0", "b: {subnet: 10.0.1.0"), ("b: 10.0.0.3", "b: 10.0.1.3")],
        [
            ("\n  b: {subnet: 10.0.0.0/24}", ""),
            ("a: 10.0.0.2, b: 10.0.0.3", "a: [10.0.0.2, 10.0.0.3]"),
        ],
    ],
    "networks: two gateways": [
        [("10.168.0.1}, gateway: true", "10.168.0.1}")],
        [("10.168.0.2}, gateway: true", "10.168.0.2}")],
    ],
    "networks: gateway to nowhere": [
        [
            ("{gateway", "{networks: {n: 10.0.0.1}, gateway"),
            ("name: t", "name: t\nnetworks: {n: {subnet: 10.0.0.0/24}}"),
        ]
    ],
    "networks: docker without network": [
        [
            ("{roles", "{networks: {n: 10.0.0.1}, roles"),
            ("name: t", "name: t\nnetworks: {n: {subnet: 10.0.0.0/24}}"),
        ]
    ],
    "overlay: no section": [
        [("  out:", "  out2: {}\n  out:"), ("name: t", "name: t\nflannel: {backend: vxlan}")],
        [("docker, flannel]", "docker]"), ("docker, flannel]", "docker]")],
    ],
    "overlay: no member": [
        [("flannel: {}", ""), ("[docker]", "[docker]")],
        [("[docker]", "[etcd, docker, flannel]")],
    ],
    "overlay: no etcd": [
        [("[docker, flannel]", "[etcd, docker, flannel]")],
        [
            (
                "  out: {networks: {lan: 10.168.0.1}",
                "  out: {roles: [etcd], networks: {lan: 10.168.0.1}",
            )
        ],
    ],
    "overlay: two etcds": [[("[etcd, docker", "[docker")], [(", flannel, etcd]", ", flannel]")]],
    "overlay: host-gw port": [[(", port: 1", "")]],
    "overlay: udp vni": [[(", vni: 1", "")]],
    "overlay: port": [[("65536", "65535")], [("65536", "1")]],
    "overlay: vni": [[("16777216", "16777215")], [("16777216", "1")]],
    "overlay: lan overlaps": [
        [("network: 10.0.0.0/8", "network: 11.0.0.0/8")],
        [
            ("subnet: 10.168", "subnet: 11.168"),
            ("10.168.0.2", "11.168.0.2"),
            ("10.168.0.3", "11.168.0.3"),
            ("10.168.0.1", "11.168.0.1"),
        ],
    ],
    "overlay: network too small": [[("/29", "/28")], [("100.96.0.0/29", "10.0.0.0/9")]],
    "overlay: network full": [
        [("network: 100.96.0.0/24", "network: 100.96.0.0/21")],
        [("  n4: {networks: {lan: 10.168.0.5}, roles: [flannel]}\n", "")],
    ],
    "overlay: subnet outside": [
        [("100.97.1.0/24", "100.96.1.0/24")],
        [("{subnets", "{network: 100.97.0.0/16, subnets")],
    ],
    "overlay: subnet too large": [[("/17", "/18")], [("/17", "/24")]],
    "overlay: first subnet": [[("100.96.0.0/24", "100.96.1.0/24")]],
    "overlay: same subnet": [[("n2: 100.96.1.0/24", "n2: 100.96.2.0/24")]],
    "overlay: overlapping, of two sizes": [[("100.96.3.0/24", "100.96.4.0/23")]],
    "overlay: node without flannel": [
        [("gateway: true", "gateway: true, roles: [flannel]")],
        [("out: 100.96.1.0/24", "")],
    ],
    "overlay: host-gw over a router": [
        [("b: 10.2.0.2", "a: 10.1.0.3")],
        [
            ("host-gw", "vxlan"),
            (
                "flannel]}\nflannel",
                "flannel]}\n  g: {networks: {a: 10.1.0.1, b: 10.2.0.1}, gateway: true}\nflannel",
            ),
        ],
    ],
    "overlay: no way to etcd": [
        [("b: 10.2.0.2", "b: 10.2.0.2, a: 10.1.0.3"), ("vxlan", "vxlan, interface: a")],
        [
            (
                "flannel]}\nflannel",
                "flannel]}\n  g: {networks: {a: 10.1.0.1, b: 10.2.0.1}, gateway: true}\nflannel",
            )
        ],
    ],
    "overlay: interface nowhere": [[("wan", "lan")], [("wan", "eth0")]],
    "overlay: interface of a node nowhere": [[("eth1", "lan")], [("eth1", "eth0")]],
    "overlay: bip outside the subnet": [
        [("100.96.9.1/24", "100.96.1.9/24")],
        [("n1: 100.96.9.1/24", "")],
    ],
    "overlay: bip for all, no plain node": [
        [
            ("10.1.27.1/24", "{out: 10.1.27.1/24}"),
            ("gateway: true", "gateway: true, roles: [docker]"),
        ],
        [("bip: 10.1.27.1/24", "")],
    ],
    "kubernetes: nobody has the role": [
        [("n1: {}", "n1: {networks: {lan: 10.168.0.2}, roles: [kubernetes]}")],
        [("kubernetes: {}", "")],
    ],
    "kubernetes: control plane elsewhere": [
        [("gateway: true", "gateway: true, roles: [kubernetes]")],
        [("control-plane: out", "control-plane: n2")],
    ],
    "kubernetes: Pods on the nodes' network": [[("pods: 10.168", "pods: 10.169")]],
    "kubernetes: Services among the Pods": [[("100.96.128.0/17", "10.96.0.0/16")]],
    "kubernetes: Pods in too small a network": [[("/25", "/22")]],
    "kubernetes: too many nodes": [
        [("/23", "/22")],
        [("  n2: {networks: {lan: 10.168.0.3}, roles: [kubernetes]}\n", "")],
    ],
    "kubernetes: range of a stranger": [
        [("gateway: true", "gateway: true, roles: [kubernetes]")],
        [("out: 100.96.7.0/24", "")],
    ],
    "kubernetes: range outside": [
        [("10.1.7.0/24", "100.96.7.0/24")],
        [("{ranges", "{pods: 10.1.0.0/16, ranges")],
    ],
    "kubernetes: one range twice": [[("n2: 100.96.7.0/24", "n2: 100.96.8.0/24")]],
    "kubernetes: no address": [[("{roles", "{networks: {lan: 10.168.0.2}, roles")]],
    "kubernetes: Docker beside it": [[(", docker]", "]")]],
    "kubernetes: virtual machines": [[(", provider: qemu", "")]],
    "kubernetes: etcd beside it": [[("[etcd, ", "[")]],
    "kubernetes: host-gw over a router": [
        [("b: 10.2.0.2", "a: 10.1.0.3")],
        [
            ("host-gw", "vxlan"),
            (
                "kubernetes]}\nkubernetes",
                f"kubernetes]}}\n{ROUTER}kubernetes",
            ),
        ],
    ],
    "kubernetes: BGP over a router": [[("b: 10.2.0.2", "a: 10.1.0.3")]],
    "kubernetes: Calico over a router": [
        [("b: 10.2.0.2", "a: 10.1.0.3")],
        [
            ("cni: calico", "cni: flannel"),
            (
                "kubernetes]}\nkubernetes",
                f"kubernetes]}}\n{ROUTER}kubernetes",
            ),
        ],
    ],
    "containers: bip is a network": [[("172.17.0.0", "172.17.0.1")]],
    "containers: bip without prefix": [[("172.17.0.1", "172.17.0.1/24")]],
    "containers: bip too small": [[("/32", "/30")]],
    "containers: bip no docker": [
        [("n2: {}", "n2: {roles: [docker], networks: {lan: 10.168.0.3}}")],
        [("n2: 10.1.27.1/24", "")],
    ],
    "containers: nftables of engine 20.10": [[("{firewall", "{engine: 29, firewall")]],
    "containers: engine without docker": [
        [("a: {}", "a: {roles: [docker], networks: {lan: 10.168.0.2}}")],
        [("engine: 29, firewall: iptables-nft", "")],
    ],
    "containers: bip in the lan": [[("10.168.0.1/16", "10.169.0.1/16")]],
    "containers: lan in the default bip": [
        [("name: t", "name: t\ndocker: {bip: 10.1.27.1/24}")],
        [("172.17.3.0", "10.1.3.0"), ("172.17.3.2", "10.1.3.2"), ("172.17.3.3", "10.1.3.3")],
    ],
    "containers: bip in flannel's network": [[("100.96.7.1/24", "100.97.7.1/24")]],
    "containers: no node": [[("{}", "{node: n1}")]],
    "containers: no docker": [
        [("n2: {}", "n2: {roles: [docker], networks: {lan: 10.168.0.3}}")],
        [("node: n2", "node: n1")],
    ],
    "containers: short name": [[("  c:", "  cc:")]],
    "containers: long name": [[("c" * 64, "c" * 63)]],
    "containers: image": [[("Nginx", "nginx:1")], [("Nginx", "library/nginx")]],
    "containers: mode": [[(", network: lan", "")]],
    "containers: container mode, unknown": [[("containers:\n", "containers:\n  c2: {node: n1}\n")]],
    "containers: container mode, itself": [
        [("container:c1", "container:c2"), ("containers:\n", "containers:\n  c2: {node: n1}\n")]
    ],
    "containers: container mode, a ring": [[('"container:c2"', "bridge")]],
    "containers: container mode, other node": [
        [("c1: {node: n1", "c1: {node: n2")],
        [("c2: {node: n2", "c2: {node: n1")],
    ],
    "containers: port alone": [[("80]", '"8080:80"]')], [("80]", '"10.168.0.2:8080:80/udp"]')]],
    "containers: port zero": [[("0:80", "1:80")]],
    "containers: port large": [[("65536", "65535")]],
    "containers: protocol": [[("/dccp", "/udp")], [("/dccp", "/tcp")]],
    "containers: no list": [[('"1:1"', '["1:1"]')]],
    "containers: bad address": [[("10.0.0.256", "10.168.0.2")]],
    "containers: foreign address": [
        [("10.168.0.3:1:1", "10.168.0.2:1:1")],
        [("10.168.0.3:1:1", "172.17.0.1:1:1")],
        [("10.168.0.3:1:1", "1:1")],
    ],
    "containers: port twice": [[("10.168.0.2:8080", "10.168.0.2:8081")]],
    "containers: port twice in one": [[("1:2", "2:2")]],
    "containers: port and no network": [
        [(', publish: ["1:1"]', "")],
        [("network: none", "network: bridge")],
    ],
    "containers: port and host network": [
        [(', publish: ["1:1"]', "")],
        [("network: host", "network: bridge")],
    ],
    "containers: command text": [[("ls", "[ls]")]],
    "containers: command empty": [[(", command: []", "")]],
    "containers: expect a word": [[("ended", "exit 0")]],
    "containers: expect too much": [[("256", "255")]],
    "containers: expect and health": [
        [(", healthcheck: {test: x}", "")],
        [("expect: exit 0, ", "")],
    ],
    "containers: expect and ready": [[(", ready: {port: 80}", "")], [("expect: exit 0, ", "")]],
    "containers: the network of one that ends": [
        [("containers:\n", "containers:\n  c3: {node: n1}\n"), ("container:c1", "container:c3")]
    ],
    "containers: health of no time": [[("0s", "1ms")]],
    "containers: health for ages": [[("25h", "24h")]],
    "containers: health without CMD": [[("[curl", "[CMD, curl")]],
    "containers: health of nothing": [[("[CMD]", "[CMD, curl]")]],
    "containers: health empty": [[('test: ""', "")]],
    "containers: health retries": [[("retries: 0", "retries: 1")]],
    "containers: ready for nothing": [[("{}", "{port: 80}")]],
    "containers: ready on no port": [[("port: 0", "port: 1")]],
    "containers: ready on too high a port": [[("70000", "65535")]],
    "containers: ready by a word": [[("ls", "[ls]")]],
    "containers: env name": [[("a-b", "a_b")]],
    "containers: env list": [[("[A=1]", "{A: '1'}")], [("[A=1]", "{}")]],
    "namespaces: namespace no role": [[("[docker]", "[docker, namespaces]")]],
    "namespaces: bridge name too long": [[("abcdefghijklmnop", "abcdefghijklmno")]],
    "namespaces: one end": [[("ns1}]", "ns1}, {name: b, namespace: ns2}]")]],
    "namespaces: neither": [
        [("{name: a}", "{name: a, namespace: ns1}")],
        [("{name: a}", "{name: a, bridge: br0}")],
    ],
    "namespaces: both": [[(", bridge: br0", "")], [("namespace: ns1, ", "")]],
    "namespaces: address on a bridge": [[(", address: 10.0.0.1/24", "")]],
    "namespaces: address without prefix": [[("10.0.0.1", "10.0.0.1/24")]],
    "namespaces: broadcast": [[("10.0.0.255", "10.0.0.254")]],
    "namespaces: namespace elsewhere": [
        [("ns3: {node: i}", "ns3: {node: h}"), ("br1: {node: i}", "br1: {node: h}")]
    ],
    "namespaces: a loop": [
        [("{name: b, bridge: br0}", "{name: b, namespace: ns1}")],
        [
            ("{name: b, bridge: br0}", "{name: b, bridge: br2}"),
            ("bridges:\n", "bridges:\n  br2: {node: h}\n"),
        ],
    ],
    "namespaces: name taken by a bridge": [[("name: br0", "name: a")]],
    "namespaces: name taken in the namespace": [
        [
            (
                "name: a, namespace: ns1}\n      - {name: a",
                "name: a, namespace: ns1}\n      - {name: b",
            )
        ]
    ],
    "namespaces: address twice": [[("ns2, address: 10.0.0.1/24", "ns2, address: 10.0.0.2/24")]],
    "namespaces: docker0 is taken": [[("docker0:", "br0:")]],
    "namespaces: eth0 is taken": [[("eth0:", "br0:")]],
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [(name, changes) for name, offers in OFFERED.items() for changes in offers],
)
def test_a_file_that_does_what_a_hint_says_is_accepted(name: str, changes: list[Change]) -> None:
    text = TABLE[name].plain
    assert problems(text)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    assert problems(text) == ()
