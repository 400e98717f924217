"""Walks in pytest: a failed assertion shows paths."""

from __future__ import annotations

from typing import Any

import pytest
from inner_pytest import plain_pytest
from walks import across, dropped, masquerade

from testbed import api
from testbed.errors import UsageError
from testbed.pytest_plugin import OF_A_LAB
from testbed.walk import run
from testbed.walk.assertion import explain
from testbed.walk.request import Request, request_of

pytest_plugins = "pytester"


def told(op: str, left: Any, right: Any) -> list[str]:
    lines = explain(op, left, right, whole=True)
    assert lines is not None
    return lines


def shortly(op: str, left: Any, right: Any) -> list[str]:
    lines = explain(op, left, right, whole=False)
    assert lines is not None
    assert len(lines) <= 8, "pytest shows no more"
    return lines


def test_two_paths_are_compared_as_paths() -> None:
    lines = told("==", dropped().path, across().path)
    assert "-   node2/container-2:eth0 in" in lines
    assert "+   node2 LOST" in lines


def test_two_walks_are_compared_by_their_paths() -> None:
    assert "+   node2 LOST" in told("==", dropped(), across())
    assert any(".path" in line for line in told("==", across(), across()))


def test_a_hop_that_is_not_wanted_is_marked() -> None:
    lines = told("not in", "nat POSTROUTING", masquerade().hops)
    assert [line for line in lines if line.startswith(">")] == ["> nat POSTROUTING"]
    assert "  node1:docker0 in" in lines
    assert not any(line.startswith(">") for line in told("in", "mangle INPUT", across().hops))


def test_the_essence_is_short() -> None:
    assert shortly("==", dropped().path, across().path) == [
        "the packets took another path (LOST at node2, wanted arrived):",
        "    node2:flannel.1 in",
        "-   node2 route forward", "-   node2 filter FORWARD", "-   ... 8 more lines",
        "+   node2 blind", "+   node2 LOST", "+   ... 3 more lines",
    ]  # fmt: skip
    assert shortly("not in", "nat POSTROUTING", masquerade().hops) == [
        "'nat POSTROUTING' not in the path:",
        "  route", "  filter FORWARD", "> nat POSTROUTING", "  conntrack", "  node1:eth0 out",
    ]  # fmt: skip


def test_labels_are_compared_one_by_one() -> None:
    wanted = [hop for hop in across().hops if hop != "nat POSTROUTING"]
    lines = told("==", across().hops, wanted)
    assert [line for line in lines if line[:1] in "+-"] == ["+ nat POSTROUTING"]


@pytest.mark.parametrize(("left", "right"), [("a", ["b"]), (1, 2), (across(), 3)])
def test_other_things_are_left_to_pytest(left: Any, right: Any) -> None:
    assert explain("==", left, right, whole=True) is None


def test_a_walk_is_named_shortly() -> None:
    assert repr(across()) == "<Walk node1/container-1 → node2/container-2, icmp echo: arrived>"
    assert "LOST at node2, filter FORWARD: rule 1" in repr(dropped())


def test_pytest_shows_it(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    pytester.makepyfile(
        "from walks import across, dropped\n"
        "def test_path(): assert dropped().path == across().path\n"
        "def test_hop(): assert 'nat POSTROUTING' not in across().hops\n"
        "def test_end(): assert dropped().arrived\n"
    )
    done = plain_pytest(pytester, monkeypatch)
    said = done.stdout.str()
    assert done.ret == pytest.ExitCode.TESTS_FAILED, said
    assert "E     +   node2 LOST" in said
    assert "E     > nat POSTROUTING" in said
    assert "<Walk node1/container-1 → node2/container-2, icmp echo: LOST" in said


# -- following packets in Python


def test_the_fixture_needs_a_lab() -> None:
    assert "walk" in OF_A_LAB


def test_words_of_a_request_are_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def walk(*args: object, **options: object) -> str:
        asked.append((args, options))
        return "walk"

    monkeypatch.setattr(run, "walk", walk)
    lab: Any = "lab"
    found: Any = api.follow(lab, "a", "b", tcp=80, reply=True, ipv6=True, timeout=2.5)
    assert found == "walk"
    request = Request("tcp", 80, seconds=2.5)
    assert asked == [
        (("lab", "a", "b", request), {"reply": True, "family": 6, "seconds": 2.5}),
    ]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ({}, None),
        ({"icmp": True}, Request()),
        ({"size": 0}, Request(size=0)),
        ({"udp": 53, "size": 9}, Request("udp", 53, size=9)),
        ({"http": "/x?y"}, Request("tcp", 80, http="/x?y")),
        ({"http": "http://web:8080"}, Request("tcp", 8080, http="/", host="web:8080")),
        ({"http": "http://u@[fd00::1]/"}, Request("tcp", 80, http="/", host="[fd00::1]")),
        ({"http": "web/a"}, Request("tcp", 80, http="/a", host="web")),
    ],
)
def test_the_request_follows_from_its_words(words: Any, wanted: Request | None) -> None:
    assert request_of(**words) == wanted


@pytest.mark.parametrize(
    "words",
    [
        {"tcp": 1, "udp": 1},
        {"tcp": 1, "size": 3},
        {"http": "/", "size": 3},
        {"http": "https://x"},
        {"http": "http://x:port"},
        {"http": "/a b"},
        {"http": "/ä"},
        {"http": ""},
        {"http": "", "icmp": True},
        {"tcp": 0},
        {"udp": 65536},
    ],
)
def test_a_wrong_request_is_refused(words: Any) -> None:
    with pytest.raises(UsageError):
        request_of(**words)
