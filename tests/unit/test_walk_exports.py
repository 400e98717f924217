"""A walk as a diagram and as a capture file."""

from __future__ import annotations

import io
import itertools
import re
import shutil
import subprocess
from dataclasses import replace
from decimal import Decimal

import pytest
from walks import across, all_walks, dropped, masquerade, published

from testbed.walk.model import Hop, Leg, Spot, Walk
from testbed.walk.render.mermaid import diagram
from testbed.walk.render.pcapng import write

WALKS = all_walks()
FIRST = "across"  #: tshark 4.0 names the interfaces of a file's first section alone


# -- Mermaid


def test_each_namespace_is_a_participant_in_the_box_of_its_machine() -> None:
    lines = diagram(across()).splitlines()
    assert lines[3:13] == [
        "sequenceDiagram",
        "  box transparent node1",
        "  participant p1 as container-1",
        "  participant p2 as node1",
        "  end",
        "  participant p3 as lan",
        "  box transparent node2",
        "  participant p4 as node2",
        "  participant p5 as container-2",
        "  end",
    ]


def test_steps_between_namespaces_are_arrows() -> None:
    arrows = re.findall(r"^  (p\d) ->> (p\d): (.*)$", diagram(across(reply=True)), re.MULTILINE)
    assert [one[:2] for one in arrows] == [
        ("p1", "p2"), ("p2", "p3"), ("p3", "p4"), ("p4", "p5"), ("p5", "p1"),
    ]  # fmt: skip
    assert arrows[0][2] == "eth0 #8594; veth3f9a01b"


def test_the_diagram_tells_of_rules_changes_and_a_loss() -> None:
    assert "jDNAT" in re.sub(r"<br/>|\s|[-]", "", diagram(published()))
    assert "destination port 8080 #8594; 80" in diagram(published())
    assert re.search(
        r"^  p4 --x p4: LOST at node2, filter FORWARD", diagram(dropped()), re.MULTILINE
    )
    assert "--x" not in diagram(across())


def test_text_cannot_end_a_line_of_the_diagram() -> None:
    walk = across()
    (leg,) = walk.legs
    hop = replace(leg.hops[0], spot=Spot('a"; end', "x\n#b"))
    text = diagram(replace(walk, source='a"\nb', legs=(replace(leg, hops=(hop,)),)))
    assert text.splitlines()[1:] == [
        r'title: "a\"\nb → node2/container-2, icmp echo"', "---", "sequenceDiagram",
        "  box transparent a#34;#59; end", "  participant p1 as x#10;#35;b", "  end",
        "  Note over p1: process",
    ]  # fmt: skip


@pytest.mark.parametrize("name", WALKS)
def test_every_place_is_named_in_the_diagram(name: str) -> None:
    text = diagram(WALKS[name])
    for leg in WALKS[name].legs:
        for hop in leg.hops:
            assert hop.spot.interface in text
            assert all(rule.chain in text for rule in hop.rules)


# -- pcapng


FIELDS = (
    "frame.interface_name", "frame.comment", "ip.src_host", "frame.time_epoch",
    "_ws.expert.severity", "_ws.malformed",
)  # fmt: skip
WARN = 0x600000  #: the severity of a warning; an error is above


def seen(walk: Walk) -> list[Hop]:
    """The hops of a walk whose frames have been seen."""
    return [hop for leg in walk.legs for hop in leg.hops if hop.view and hop.view.frame]


def octets(walk: Walk) -> bytes:
    out = io.BytesIO()
    count = write(walk, out)
    assert count == len(seen(walk))
    return out.getvalue()


def test_what_was_met_between_two_packets_is_told_at_the_second() -> None:
    data = octets(masquerade()).decode("utf-8", "replace")
    assert "node1: nat POSTROUTING\n-A POSTROUTING -s 100.96.1.0/24 ! -o docker0" in data
    assert "source 100.96.1.2 → 10.168.0.2" in data


def test_a_loss_is_told_at_the_last_packet() -> None:
    data = octets(dropped()).decode("utf-8", "replace")
    assert "LOST at node2, filter FORWARD: rule 1 of filter FORWARD drops the packet" in data
    assert "LOST" not in octets(across()).decode("utf-8", "replace")


def test_a_walk_without_a_frame_is_an_empty_file() -> None:
    walk = replace(across(), legs=(Leg("there", (), arrived=False),))
    assert write(walk, io.BytesIO()) == 0


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[str]]]:
    """The fields of each packet of each walk, as tshark reads them.

    It starts once for all: files that follow one another are the sections of one file.
    """
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed")
    path = tmp_path_factory.mktemp("walks") / "walks.pcapng"
    order = {FIRST: WALKS[FIRST], **WALKS}
    path.write_bytes(b"".join(octets(walk) for walk in order.values()))
    argv = ["tshark", "-r", str(path), "-N", "n", "-T", "fields", "-E", "separator=|"]
    argv += [word for field in FIELDS for word in ("-e", field)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in done.stderr.splitlines() if "as user" not in line] == []
    rows = iter([line.split("|") for line in done.stdout.splitlines()])
    found = {name: list(itertools.islice(rows, len(seen(walk)))) for name, walk in order.items()}
    assert list(rows) == []
    return found


@pytest.mark.parametrize("name", WALKS)
def test_tshark_reads_it_without_a_warning(name: str, read: dict[str, list[list[str]]]) -> None:
    walk, rows = WALKS[name], read[name]
    if name == FIRST:
        assert [row[0] for row in rows] == [str(hop.spot) for hop in seen(walk)]
    assert len(rows) == len(seen(walk))
    assert all(row[1] for row in rows)
    assert {row[2] for row in rows} <= set(walk.names.values())
    times = [Decimal(row[3]) for row in rows]
    assert times == sorted(times)
    problems = [
        row for row in rows if row[5] or max(map(int, row[4].split(",")), default=0) >= WARN
    ]
    assert problems == []
