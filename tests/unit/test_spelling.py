"""Suggestions are for typing mistakes, not for words of another meaning."""

from __future__ import annotations

import pytest

from testbed.cli import COMMANDS
from testbed.spelling import closest, mistakes
from testbed.topology import keys

MISTYPED = {
    "dokcer": "docker", "flanel": "flannel", "node": "nodes", "conainers": "containers",
    "contianers": "containers", "desc": "description", "netwroks": "networks", "Nodes": "nodes",
    "veth": "veths", "namesapces": "namespaces", "provder": "provider",
}  # fmt: skip


@pytest.mark.parametrize(("word", "meant"), MISTYPED.items())
def test_a_typing_mistake_is_understood(word: str, meant: str) -> None:
    assert closest(word, keys.TOPOLOGY) == meant


@pytest.mark.parametrize(
    ("word", "known"),
    [
        ("subnet6", keys.NETWORK),
        ("subnetv6", keys.NETWORK),
        ("routes", keys.NODE),
        ("route", keys.NODE),
        ("links", keys.TOPOLOGY),
        ("topology", keys.TOPOLOGY),
        ("volumes", keys.TOPOLOGY),
        ("services", keys.TOPOLOGY),
        ("mtu", keys.NETWORK),
        ("ports", keys.NODE),
        ("sysctls", keys.NODE),
        ("restart", COMMANDS),
        ("x", ["y"]),
        ("node3", ["node1", "node2"]),
        ("", ["a"]),
        ("a" * 10_000, ["a"]),
    ],
)
def test_another_word_is_not_taken_for_ours(word: str, known: list[str]) -> None:
    assert closest(word, known) == ""


def test_mistakes_are_counted() -> None:
    assert mistakes("", "abc") == 3
    assert mistakes("same", "same") == 0
    assert mistakes("ab", "ba") == mistakes("ab", "a") == mistakes("ab", "ac") == 1
