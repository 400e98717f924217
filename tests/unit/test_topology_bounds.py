"""Every bound of a topology file at its edge: the last value inside, and the first outside."""

from __future__ import annotations

import pytest
from topology_texts import CLUSTER, DOCKER, FLANNEL, LAN, NETNS, NODES, problems, veth

from testbed.topology.read import host_in
from testbed.topology.source import MAX_BYTES
from testbed.topology.tree import Problems, describe, nearest, quote


def health(settings: str) -> str:
    return DOCKER + f"containers: {{c1: {{node: n1, healthcheck: {{{settings}}}}}}}\n"


def container(settings: str) -> str:
    return DOCKER + f"containers: {{c1: {{node: n1, {settings}}}}}\n"


def node(settings: str) -> str:
    return f"name: t\nnodes: {{a: {{{settings}}}}}\n"


def network(subnet: str) -> str:
    return f"name: t\nnetworks: {{n: {{subnet: {subnet}}}}}\nnodes: {{a: {{}}}}\n"


def host(address: str) -> str:
    return LAN + f"nodes: {{a: {{networks: {{lan: {address}}}}}}}\n"


#: By the bound: a text with ``@``, values inside, values outside.
BOUNDS: dict[str, tuple[str, list[str], list[str]]] = {
    "name": ("name: @\nnodes: {a: {}}\n", ["a", "a" * 30, "a-1"], ["a" * 31, "-a", "a-", "A"]),
    "node": ("name: t\nnodes: {@: {}}\n", ["a", "a" * 12, "1a"], ["a" * 13, "_a", "br-a"]),
    "network": (
        "name: t\nnetworks: {@: {subnet: 10.0.0.0/24}}\nnodes: {a: {}}\n",
        ["a", "a" * 12], ["a" * 13, "a_b"],
    ),
    "container": (
        DOCKER + "containers: {@: {node: n1}}\n", ["aa", "a" * 63, "1a"], ["a", "a" * 64, "a-"]
    ),
    "namespace": (
        NETNS.replace("ns3:", "@:"), ["a", "a" * 63, "A.b_c-d", "_"], ["a" * 64, "-a", ".a", "a/b"]
    ),
    "bridge": (NETNS.replace("br1:", "@:"), ["a", "a" * 15, "A.b_c-d"], ["a" * 16, "-a", "lo"]),
    "interface": (
        veth("{name: @, namespace: ns1}", "{name: b, namespace: ns2}"),
        ["a", "a" * 15, "if", "ifx1"], ["a" * 16, "if1", "all", "default"],
    ),
    "fault": (
        NODES + "flannel: {}\nfaults: {@: partition n1}\n",
        ["a", "a" * 63], ["a" * 64, "heal", "apply", "ls", "loss", "partition"],
    ),
    "image": (container("image: @"), ["a" * 255, "a/b", "r:5000/a/b:1"], ["a" * 256, "a//b", "a:"]),
    "image's tag": (container("image: a:@"), ["1", "A" * 128], ["a" * 129, "-a"]),
    "variable": (container("env: {@: x}"), ["A", "_", "a1"], ["1a", "a-b"]),
    "subnet": (network("@"), ["10.0.0.0/8", "10.0.0.0/31"], ["8.0.0.0/7", "10.0.0.0/32"]),
    "private": (
        network("@"), ["1.0.0.0/8", "126.0.0.0/8", "223.0.0.0/8", "128.0.0.0/8"],
        ["0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/8", "239.0.0.0/8", "240.0.0.0/8", "255.0.0.0/8"],
    ),
    "prefix": (network("10.0.0.0/@"), ["24", "30"], ["33", "032", "a"]),
    "host": (host("@"), ["10.168.0.1", "10.168.0.254"],
        ["10.168.0.0", "10.168.0.255", "10.168.1.1"]),
    "cpus": (node("cpus: @"), ["0.01", "1", "64.5"], ["0.009", "0", "-1"]),
    "memory": (
        node("memory: @"), ["33554432", "32M", "32768K", "1T", "8388607T"],
        ["33554431", "31M", "32767K", "8388608T", "1P"],
    ),
    "flannel's network": (
        NODES + "flannel: {network: @}\n", ["11.0.0.0/8", "11.0.0.0/28"], ["11.0.0.0/29"]
    ),
    "flannel's subnet": (
        NODES + "flannel: {subnets: {n1: @}}\n", ["100.96.64.0/18", "100.96.1.0/30"],
        ["100.96.128.0/17", "100.96.1.0/31", "100.96.0.0/24", "100.97.0.0/24"],
    ),
    "flannel's port": (NODES + "flannel: {port: @}\n", ["1", "65535"], ["0", "65536", "-1"]),
    "VNI": (NODES + "flannel: {vni: @}\n", ["1", "16777215"], ["0", "16777216"]),
    "bip": (
        DOCKER + "docker: {bip: @}\n", ["10.1.0.1/30", "10.1.0.2/30", "11.0.0.1/8"],
        ["10.1.0.1/31", "10.1.0.0/30", "10.1.0.3/30", "127.0.0.1/8"],
    ),
    "a pair's address": (
        veth("{name: a, namespace: ns1, address: @}", "{name: b, namespace: ns2}"),
        ["10.0.0.1/32", "10.0.0.0/31", "10.0.0.1/24"], ["10.0.0.0/24", "10.0.0.1/33", "0.0.0.1/8"],
    ),
    "Pods": (
        CLUSTER + "kubernetes: {pods: @}\n", ["11.0.0.0/8", "10.1.0.0/22"],
        ["10.1.0.0/25", "8.0.0.0/7"],
    ),
    "Services": (
        CLUSTER + "kubernetes: {services: @}\n", ["10.96.0.0/12", "10.97.1.0/24"],
        ["11.0.0.0/11", "10.97.1.0/25"],
    ),
    "published": (container('publish: ["@"]'), ["1:1", "65535:65535"],
        ["0:1", "1:0", "65536:1", "1:65536", "01:1"]),
    "protocol": (container('publish: ["1:1@"]'), ["", "/udp", "/sctp"], ["/TCP", "/dccp", "/"]),
    "ready": (container("ready: {port: @}"), ["1", "65535", "1/tcp", "65535/udp"],
        ["0", "65536", "65536/udp", "0/tcp"]),
    "expect": (container("expect: exit @"), ["0", "1", "255"], ["256", "-1", "00", "1000"]),
    "retries": (health("retries: @"), ["1", "1000"], ["0", "1001", "1.5", "true"]),
    "timeout": (health("timeout: @"), ["1ms", "24h", "86400s"], ["0s", "0ms", "86401s", "25h"]),
    "start": (health("start_period: @"), ["0s", "24h"], ["86401s", "-1s"]),
    "health": (
        health("test: @"), ["x", "[NONE]", "[CMD, x]", "[CMD, x, y]", "[CMD-SHELL, x y]"],
        ["[]", "[CMD]", "[NONE, x]", "[CMD-SHELL]", "[CMD-SHELL, x, y]", "[x]", "[1]"],
    ),
    "loss": (FLANNEL + "faults: {f: loss n1 @}\n", ["0.001%", "99.999%"],
        ["0%", "100%", "0.0001%"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("bound", "value"), [(name, value) for name, (_, good, _) in BOUNDS.items() for value in good]
)
def test_inside(bound: str, value: str) -> None:
    assert problems(BOUNDS[bound][0].replace("@", value)) == ()


@pytest.mark.parametrize(
    ("bound", "value"), [(name, value) for name, (_, _, bad) in BOUNDS.items() for value in bad]
)
def test_outside(bound: str, value: str) -> None:
    (problem,) = problems(BOUNDS[bound][0].replace("@", value))
    assert problem.line > 0
    assert problem.seen
    assert problem.hint


def test_a_file_of_the_largest_size() -> None:
    text = "name: t\nnodes: {a: {}}\n"
    full = text + "#" * (MAX_BYTES - len(text))
    assert problems(full) == ()
    (problem,) = problems(full + "#")
    assert problem.line == 0


@pytest.mark.parametrize(("levels", "deep"), [(20, False), (21, True)])
def test_a_value_of_the_deepest_level(levels: int, *, deep: bool) -> None:
    # The name is on the first level, each bracket is one more.
    (problem,) = problems(f"name: {'[' * (levels - 1)}x{']' * (levels - 1)}\nnodes: {{a: {{}}}}\n")
    assert ("levels" in problem.wanted) == deep


def test_a_machine_of_the_most_networks() -> None:
    def text(count: int) -> str:
        nets = "".join(f"  n{i}: {{subnet: 10.0.{i}.0/24}}\n" for i in range(count))
        plugged = ", ".join(f"n{i}: 10.0.{i}.2" for i in range(count))
        return (
            f"name: t\nprovider: qemu\nnetworks:\n{nets}nodes: {{a: {{networks: {{{plugged}}}}}}}\n"
        )

    assert problems(text(27)) == ()
    assert len(problems(text(28))) == 1
    assert problems(text(28).replace("qemu", "netns")) == ()


@pytest.mark.thorough
def test_a_network_of_the_most_ports() -> None:
    def text(count: int) -> str:
        nodes = "".join(
            f"  n{i}: {{networks: {{n: 10.0.{i >> 8}.{i & 255}}}}}\n" for i in range(1, count + 1)
        )
        return f"name: t\nnetworks: {{n: {{subnet: 10.0.0.0/16}}}}\nnodes:\n{nodes}"

    assert problems(text(1023)) == ()
    assert len(problems(text(1024))) == 1
    assert len(problems(text(1026))) == 1  # told once


def test_nodes_up_to_the_room_of_a_network() -> None:
    more = "".join(f"  m{i}: {{networks: {{lan: 10.168.0.{i}}}, roles: [flannel]}}\n" for i in (9,))
    text = NODES.replace("  out:", more + "  out:") + "flannel: {network: 100.96.0.0/24}\n"
    assert problems(text) == ()  # three, of four quarters without the first
    assert len(problems(text.replace("  out:", more.replace("9", "8") + "  out:"))) == 1


# -- parts ---------------------------------------------------------------------------------


def test_a_text_in_a_sentence_is_short_and_on_one_line() -> None:
    assert quote("a") == "'a'"
    assert quote("a\nb") == "'a\\nb'"
    assert quote("x" * 60) == repr("x" * 60)
    assert quote("x" * 61) == repr("x" * 57 + "...")


def test_known_words_are_listed_up_to_a_dozen() -> None:
    words = [f"word{i}" for i in range(13)]
    assert nearest("zzz", words[:12]) == "known: " + ", ".join(words[:12])
    assert nearest("zzz", words) == "known: " + ", ".join(words[:12]) + ", ..."
    assert "add" in nearest("zzz", [])


def test_a_place_is_that_of_the_value() -> None:
    text = "name: t\nnodes:\n  a:\n    roles:\n      - docker\n      - nope\n"
    (problem,) = [one for one in problems(text) if "nope" in one.seen]
    assert (problem.line, problem.column) == (6, 9)
    assert problem.format("t.yaml").startswith("t.yaml:6:9: ")


def test_problems_are_sorted_and_told_once() -> None:
    found = Problems("t")
    assert not found
    found.add_at(2, 1, "w", "s", "h")
    found.add_at(1, 1, "w", "s", "h")
    found.add_at(2, 1, "w", "s", "h")
    assert found
    assert [(one.line, one.column) for one in found.error().problems] == [(1, 1), (2, 1)]


def test_a_problem_below_counts_for_all_above() -> None:
    from testbed.topology.tree import Scalar

    found = Problems("t")
    found.add(Scalar(("a", 0, "b"), 1, 1, "x", "x"), "w", "s", "h")
    assert found.snapshot() == {(), ("a",), ("a", 0), ("a", 0, "b")}
    assert found.touched("a", 0)
    assert not found.touched("a", 1)
    assert not found.touched("b")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", "an empty list"), ("[a]", "a list"), ("{}", "an empty mapping"),
        ("{a: b}", "a mapping"), ("~", "nothing"), ("true", "the boolean true"),
        ("7", "the integer 7"), ("1.5", "the number 1.5"), ("text", "'text'"),
        ('"7"', "'7'"), ("no", "'no', in YAML 1.1 the boolean false"),
    ],
)  # fmt: skip
def test_a_value_in_words(value: str, words: str) -> None:
    from testbed.topology.source import from_text
    from testbed.topology.tree import value_at

    tree = from_text(f"a: {value}\n", Problems("t"))
    assert describe(value_at(tree, "a")) == words


def test_a_host_of_a_link_between_two() -> None:
    from ipaddress import IPv4Address, IPv4Network

    from testbed.topology.tree import Scalar

    at = Scalar((), 1, 1, "", "")
    for prefix, good in ((30, ["10.0.0.1", "10.0.0.2"]), (31, ["10.0.0.0", "10.0.0.1"]),
                         (32, ["10.0.0.0"])):  # fmt: skip
        net = IPv4Network(f"10.0.0.0/{prefix}")
        found = [
            str(one)
            for one in map(IPv4Address, (f"10.0.0.{i}" for i in range(5)))
            if host_in(Problems("t"), at, one, net, "n")
        ]
        assert found == good
