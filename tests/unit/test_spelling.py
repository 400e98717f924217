"""Suggestions are for typing mistakes, not for words of another meaning."""

from __future__ import annotations

import pytest

from testbed.spelling import LONGEST, MOST, closest, mistakes
from testbed.topology.declare import keys_of
from testbed.topology.model import Topology

# Fixed lists: a word that has no meaning today may be a key tomorrow.
NODE = ["networks", "roles", "gateway", "cpus", "memory", "provider"]
LAB = ["name", "description", "networks", "nodes", "containers", "namespaces", "bridges", "faults"]
MISTYPED = {
    "dokcer": "docker", "flanel": "flannel", "node": "nodes", "conainers": "containers",
    "contianers": "containers", "desc": "description", "netwroks": "networks", "Nodes": "nodes",
    "veth": "veths", "namesapces": "namespaces", "provder": "provider",
}  # fmt: skip


@pytest.mark.parametrize(("word", "meant"), MISTYPED.items())
def test_a_typing_mistake_is_understood(word: str, meant: str) -> None:
    assert closest(word, keys_of(Topology)) == meant


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("subnet6", ["subnet"]),
        ("subnetv6", ["subnet"]),
        ("routes", NODE),
        ("route", NODE),
        ("links", LAB),
        ("topology", LAB),
        ("volumes", LAB),
        ("services", LAB),
        ("mtu", ["subnet"]),
        ("ports", NODE),
        ("sysctls", NODE),
        ("restart", ["status", "report", "start"]),
        ("x", ["y"]),
        ("node3", ["node1", "node2"]),
        ("", ["a"]),
        ("a" * 10_000, ["a"]),
    ],
)
def test_another_word_is_not_taken_for_ours(word: str, known: list[str]) -> None:
    assert closest(word, known) == ""


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("a" * LONGEST, ["a" * (LONGEST - 1) + "b"], "a" * (LONGEST - 1) + "b"),
        ("a" * (LONGEST + 1), ["a" * LONGEST], ""),
        ("eth", ["ethernet"], "ethernet"),  # three characters of a beginning are enough
        ("et", ["ethernet"], ""),
        ("eth", ["ethernet", "ether"], ""),  # which of them?
        ("abxyefg", ["abcdefg"], ""),  # two mistakes in seven characters
        ("abxyefgh", ["abcdefgh"], "abcdefgh"),  # two in eight
        ("acbd", ["abcd", "abbd"], "abcd"),  # the first of those that are as near
    ],
)
def test_the_bounds_of_a_mistake(word: str, known: list[str], meant: str) -> None:
    assert closest(word, known) == meant


def test_only_so_many_words_are_compared() -> None:
    far = [f"{letter}{'z' * 30}" for letter in "abcdefghij"] * (MOST // 10)
    assert closest("dokcer", [*far[1:], "docker"]) == "docker"
    assert closest("dokcer", [*far, "docker"]) == ""


def test_mistakes_are_counted() -> None:
    assert mistakes("", "abc") == 3
    assert mistakes("same", "same") == 0
    assert mistakes("ab", "ba") == mistakes("ab", "a") == mistakes("ab", "ac") == 1
    assert mistakes("abcd", "badc") == 2
    assert mistakes("ababc", "ab") == 3
    assert mistakes("ca", "abc") == 3  # optimal string alignment: no edit of what was swapped
