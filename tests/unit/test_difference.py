"""`diff`: what `up` would change, why, and that `up` shows and does the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hands import PLAIN, FakeControl, Hands

from testbed.labs.difference import Change, Effect, changes, gone
from testbed.labs.lab import Lab
from testbed.labs.state import Record
from testbed.labs.status import NodeStatus, Status
from testbed.roles.part import Part
from testbed.topology import load

if TYPE_CHECKING:
    from testbed.testing.fakes import Bench

FILE = "plain.yaml"


@pytest.fixture
def hands(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Hands:
    """A lab that was created from a file in the current folder."""
    FakeControl.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    made = Hands(bench, monkeypatch, capsys)
    Path(FILE).write_text(PLAIN)
    assert made("up", FILE, "-q").status == 0
    bench.forget()
    return made


def edit(old: str, new: str) -> None:
    text = Path(FILE).read_text()
    assert old in text
    Path(FILE).write_text(text.replace(old, new))


def seen(hands: Hands, *argv: str) -> list[tuple[str, str, str]]:
    """Kind, name and action of each difference; its exit status tells whether there is any."""
    said = hands("diff", *argv, "--json")
    rows = json.loads(said.out)["differences"]
    assert said.status == (1 if rows else 0)
    return [(row["kind"], row["name"], row["action"]) for row in rows]


def reasons(hands: Hands) -> dict[str, tuple[object, object]]:
    rows = json.loads(hands("diff", "--json").out)["differences"]
    return {one["key"]: (one["old"], one["new"]) for row in rows for one in row["changes"]}


def test_no_difference(hands: Hands) -> None:
    for argv in ([], ["plain"], [FILE], ["./plain.yaml"]):
        said = hands("diff", *argv)
        assert (said.status, said.err) == (0, ""), argv
        assert said.out.startswith("plain is as ")
    assert hands("diff", "--json").status == 0


B = "b: {networks: {lan: 10.168.0.3}"
EDITS = [
    # old, new, differences, reasons
    (
        B, B.replace("0.3", "0.4"), [("node", "b", "created again")], {"nodes.b.networks.lan"},
    ),
    (B, B + ", memory: 1G", [("node", "b", "created again")], {"nodes.b.memory"}),
    (
        B, B + ", sysctls: {net.ipv4.ip_default_ttl: 9}", [("node", "b", "changed in place")],
        {"nodes.b.sysctls.net.ipv4.ip_default_ttl"},
    ),
    (
        "  a: {", "  c: {}\n  a: {", [("node", "c", "created")], set(),
    ),
    (
        "  a: {", "  c: {memory: 1G}\n  a: {", [("node", "c", "created")], set(),
    ),
    (
        "  b: {networks: {lan: 10.168.0.3}}\n", "", [("node", "b", "removed")], set(),
    ),
    (
        "{node: a, image: nginx}", "{node: a, image: nginx, env: {A: b}}",
        [("container", "a/web", "created again")], {"containers.web.env.A"},
    ),
    ("  web: {", "  two: {node: a}\n  web: {", [("container", "a/two", "created")], set()),
    (
        "  web: {node: a, image: nginx}\n", "  two: {node: a}\n",
        [("container", "a/two", "created"), ("container", "a/web", "removed")], set(),
    ),
    (
        "name: plain", "name: plain\ndescription: d", [("lab", "plain", "changed in place")],
        {"description"},
    ),
    (
        "name: plain", "name: plain\nlinks: [[a:p0, b:p0]]",
        [("node", "a", "created again"), ("node", "b", "created again")], {"links.a:p0--b:p0.ends"},
    ),
    (
        "nodes:\n", "links: [[b:p0, c:p0]]\nnodes:\n  c: {}\n",
        [("node", "c", "created"), ("node", "b", "created again")], {"links.b:p0--c:p0.ends"},
    ),
    (
        B, B.replace("0.3", "0.4") + ", sysctls: {net.ipv4.ip_default_ttl: 9}",
        [("node", "b", "created again")],
        {"nodes.b.networks.lan", "nodes.b.sysctls.net.ipv4.ip_default_ttl"},
    ),
    (
        "name: plain", "name: plain\ndocker: {engine: 29}", [("node", "a", "created again")],
        {"docker.engine"},
    ),
    (
        "10.168.0.0/24", "10.168.0.0/25",
        [("node", "a", "created again"), ("node", "b", "created again")], {"networks.lan.subnet"},
    ),
    (
        B, "b: {gateway: true, networks: {lan: 10.168.0.3}",
        [("node", "a", "created again"), ("node", "b", "created again")], {"nodes.b.gateway"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "differences", "keys"), EDITS)
def test_an_edited_file(
    old: str,
    new: str,
    differences: list[tuple[str, str, str]],
    keys: set[str],
    hands: Hands,
) -> None:
    """`up` first shows the lines of `diff`, and then does what they say."""
    edit(old, new)
    assert seen(hands) == differences
    assert {*reasons(hands)} == keys
    lines = hands("diff").out.splitlines()[1:]
    said = hands("up", FILE)
    assert said.status == 0
    assert said.out.splitlines()[1 : 1 + len(lines)] == lines
    anew = sorted(n for kind, n, what in differences if kind == "node" and what.endswith(
        ("again", "removed")))  # fmt: skip
    assert ("  removed: " + ", ".join(anew) in said.out) == bool(anew)
    assert seen(hands) == []


def test_each_node_has_the_reasons_that_are_its_own(hands: Hands) -> None:
    edit("name: plain", "name: plain\ndocker: {engine: 29}")
    edit(B, B + ", memory: 1G")
    rows = json.loads(hands("diff", "--json").out)["differences"]
    assert {row["name"]: [one["key"] for one in row["changes"]] for row in rows} == {
        "a": ["docker.engine"],
        "b": ["nodes.b.memory"],
    }


def test_values_are_shown_before_and_after(hands: Hands) -> None:
    edit("{node: a, image: nginx}", "{node: a, image: other, env: {A: ''}}")
    out = hands("diff").out
    assert "    containers.web.image: nginx -> other\n" in out
    assert '    containers.web.env.A: not set -> ""\n' in out


def test_one_thing_is_not_counted_as_several(hands: Hands) -> None:
    edit(B, "b: {networks: {lan: 10.168.0.3}, files: {/etc/x: {content: x}}")
    edit("nodes:", "links: [[a:p0, b:p0]]\nnodes:")
    out = hands("up", FILE).out
    assert "1 container" in out
    assert "1 network" in out
    assert re.findall(r"\b1 [a-z]+(?:s\b|\(s\))", out) == []


LINKS = "links: [[a:p0, b:p0], {ends: [a:p1, b:p1], subnet: 10.0.0.0/31}]\nnodes:"


NETS = """\
name: plain
networks: {lan: {subnet: 10.168.0.0/24}}
nodes:
  a: {networks: {lan: 10.168.0.2}, roles: [docker]}
  b: {networks: {lan: 10.168.0.3}, roles: [docker]}
docker:
  networks:
    front: {subnet: 172.30.0.0/24, nodes: [a]}
    back: {subnet: 172.31.0.0/24, nodes: [a]}
containers:
  web: {node: a, networks: [front]}
  both: {node: a, networks: [back, front]}
  beside: {node: a, network: "container:web"}
  other: {node: a, networks: [back]}
  plain: {node: b}
"""


def test_a_changed_docker_network_names_its_containers(hands: Hands) -> None:
    Path(FILE).write_text(NETS)
    assert hands("up", FILE, "-q").status == 0
    edit("172.30.0.0/24", "172.30.1.0/24")
    rows = json.loads(hands("diff", "--json").out)["differences"]
    rows = [row for row in rows if row["action"] == "created again"]  # its engine lists no networks
    assert {(row["kind"], row["name"]) for row in rows} == {
        ("Docker network", "front"),
        ("container", "a/web"),
        ("container", "a/both"),
        ("container", "a/beside"),
    }
    assert all(row["changes"][0]["key"].startswith("docker.networks.front") for row in rows)
    done = json.loads(hands("up", FILE, "--json").out)
    changed = {name.split()[1] for name in done["changed"] if name.startswith("container ")}
    assert changed == {"a/web", "a/both", "a/beside"}, "and so does `up`"


def test_a_container_that_shares_the_network_of_a_changed_one(hands: Hands) -> None:
    Path(FILE).write_text(NETS)
    assert hands("up", FILE, "-q").status == 0
    edit("web: {node: a, networks: [front]}", "web: {node: a, networks: [front], env: {A: b}}")
    again = [(kind, name) for kind, name, action in seen(hands) if action == "created again"]
    assert again == [("container", "a/web"), ("container", "a/beside")]
    edit("roles: [docker]}\n  b", "roles: [docker], memory: 1G}\n  b")
    assert ("container", "a/beside", "created again") not in seen(hands), "its node is"


def test_a_value_of_a_link_is_shown_alone(hands: Hands) -> None:
    edit("nodes:", LINKS)
    assert hands("up", FILE, "-q").status == 0
    edit("10.0.0.0/31", "10.0.0.2/31")
    assert seen(hands) == [("node", "a", "created again"), ("node", "b", "created again")]
    assert reasons(hands) == {"links.a:p1--b:p1.subnet": ("10.0.0.0/31", "10.0.0.2/31")}


def test_a_link_is_changed_in_place(hands: Hands) -> None:
    edit("nodes:", LINKS)
    assert hands("up", FILE, "-q").status == 0
    edit("10.0.0.0/31}", "10.0.0.0/31, delay: 10ms}")
    assert [*reasons(hands)] == ["links.a:p1--b:p1.delay"]


def test_data_of_up_has_the_differences(hands: Hands) -> None:
    edit("name: plain", "name: plain\ndescription: d")
    rows = json.loads(hands("up", FILE, "--json").out)["differences"]
    assert [row["action"] for row in rows] == ["changed in place"]
    assert json.loads(hands("up", FILE, "--json").out)["differences"] == []


# -- what has gone ------------------------------------------------------------------------


def test_what_has_gone_is_restored(hands: Hands) -> None:
    hands.node("b").wiring.addresses["eth0"] = ()
    hands.node("a").end("containerd", -9)
    assert seen(hands) == [
        ("service", "a/containerd", "restored"),
        ("link", "b/eth0", "restored"),
    ]
    assert "(dead)" in hands("diff").out


def test_each_part_that_has_gone_has_its_kind() -> None:
    bad = [Part("x", "gone", ok=False), Part("y", "there", ok=True)]
    node = NodeStatus(
        "a", "up", services=bad, containers=bad, links=bad, routes=bad, settings=bad,
        more={"table": bad},
    )  # fmt: skip
    found = gone(Status("plain", [node], networks=bad), [])
    assert [(one.kind, one.name, one.action) for one in found] == [
        ("network", "x", "restored"),
        *((kind, "a/x", "restored")
          for kind in ("link", "route", "sysctl", "service", "container", "table")),
    ]  # fmt: skip
    again = [Effect("container", "a/x", "created again")]
    assert "container" not in {one.kind for one in gone(Status("plain", [node]), again)}


def test_a_node_that_does_not_run_is_created(hands: Hands) -> None:
    hands.bench.provider.destroy("plain", ["b"])
    assert seen(hands) == [("node", "b", "created")]
    assert "does not run" in hands("diff").out


def test_what_was_stopped_by_hand_is_told(hands: Hands) -> None:
    assert hands("stop", "b", "a/web").status == 0
    assert seen(hands) == [("node", "b", "created"), ("container", "a/web", "restored")]
    assert hands("diff").out.count("stopped by hand") == 2
    said = hands("up", FILE)
    assert "+ node b: created (stopped by hand)" in said.out


# -- which file, which lab ---------------------------------------------------------------


def test_a_lab_of_another_name_is_compared_with_its_file(hands: Hands) -> None:
    assert hands("up", FILE, "--name", "mine", "-q").status == 0
    assert hands("diff", "mine").status == 0
    assert hands("diff", FILE, "--name", "mine").status == 0
    edit("name: plain", "name: other")
    assert hands("diff", "mine").status == 0


@pytest.mark.parametrize(("argv", "status"), [(["nosuch"], 2), (["nosuch.yaml"], 2)])
def test_wrong_use(argv: list[str], status: int, hands: Hands) -> None:
    said = hands("diff", *argv)
    assert (said.status, said.out) == (status, "")


def test_a_lab_that_is_not_up(hands: Hands) -> None:
    assert hands("down", "plain", "-q").status == 0
    assert hands("diff", FILE).status == 4
    assert hands("diff").status == 4


def test_another_file_is_compared_as_up_would_replace(hands: Hands) -> None:
    Path("other.yaml").write_text(PLAIN.replace("0.3}", "0.3}, memory: 1G"))
    said = hands("diff", "other.yaml")
    assert (said.status, said.out) == (2, "")
    assert "--replace" in said.err
    assert seen(hands, "other.yaml", "--replace") == [("node", "b", "created again")]
    assert seen(hands) == [], "nothing was changed"


def test_a_lab_whose_file_is_gone(hands: Hands) -> None:
    Path(FILE).rename("moved.yaml")
    said = hands("diff", "plain")
    assert said.status == 2
    assert "testbed diff FILE" in said.err


def test_a_lost_record_has_no_reasons(hands: Hands) -> None:
    edit(B, B + ", memory: 1G")
    state = hands.bench.state
    record = state.read("plain")
    assert record is not None
    state.write(Record("plain", {"name": "plain", "nodes": {}}, source=record.source))
    topology = load(FILE)
    told: list[str] = []
    from testbed.labs.run import Watch

    def differences(effects: object) -> None:
        told.extend(str(one.action) for one in effects)  # type: ignore[attr-defined]

    Lab("plain", hands.bench.settings).up(topology, watch=Watch(differences=differences))
    assert told == ["created again"]


# -- values ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": 2}, [(("a",), 1, 2)]),
        ({"a": 1}, {}, [(("a",), 1, None)]),
        ({}, {"a": {"b": 1}}, [(("a", "b"), None, 1)]),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2}}, [(("a", "b"), 1, None)]),
        ({"a": [1, 2]}, {"a": [2, 1]}, [(("a",), [1, 2], [2, 1])]),
        ({"a": {"b": 1}}, {"a": "x"}, [(("a",), {"b": 1}, "x")]),
        ({"a": {}}, {}, []),
        ({"a": 0}, {"a": False}, []),
        ({"a": ""}, {}, [(("a",), "", None)]),
        ({}, {"a": ""}, [(("a",), None, "")]),
    ],
)
def test_changes(
    old: object, new: object, found: list[tuple[tuple[str, ...], object, object]]
) -> None:
    assert [*changes(old, new)] == [Change(*one) for one in found]


LONG = [f"10.{number}.0.0/16 via 10.168.0.2" for number in range(30)]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (None, 1, ["x.k: not set -> 1"]),
        ([1, 2], [2, 1], ["x.k: [1, 2] -> [2, 1]"]),
        (LONG, LONG[:-1], [f"x.k: - {LONG[-1]}"]),
        (LONG, [*LONG, "default"], ["x.k: + default"]),
        (LONG[:9], [*LONG[:4], "other", *LONG[5:9]], [f"x.k: - {LONG[4]}", "x.k: + other"]),
        ([{"a": 1, "b": 2}, {"a": 2}], [{"a": 1, "b": 3}, {"a": 2}], ["x.k[0].b: 2 -> 3"]),
        ([{"a": 1}], [{"a": 1}, {"a": 2}], ['x.k: + {"a": 2}']),
        ([{"a": 1}, "b"], ["b", {"a": 1}], ['x.k: [{"a": 1}, "b"] -> ["b", {"a": 1}]']),
        ("one\n", "two\n", ['x.k: "one\\n" -> "two\\n"']),
        ("\x1b[31m", "", ['x.k: "\\u001b[31m" -> ""']),
        ("same\n" * 50 + "one\n", "same\n" * 50 + "two\n", ["x.k: - one", "x.k: + two"]),
    ],
)
def test_a_change_in_words(old: object, new: object, lines: list[str]) -> None:
    assert Change(("x", "k"), old, new).lines() == lines


@pytest.mark.parametrize(("old", "new"), [([], LONG), (None, LONG), ("", "\n".join(LONG))])
def test_a_long_change_is_cut(old: object, new: object) -> None:
    lines = Change(("x", "k"), old, new).lines()
    assert len(lines) <= 11
    assert all(len(line) <= 130 for line in lines)
