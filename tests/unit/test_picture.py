"""Pictures of labs: what is in them, and where."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

from report_runs import EVIL, graph, link, node

from testbed.report.picture import draw


def picture(drawn: dict[str, Any]) -> ET.Element:
    return ET.fromstring(draw(drawn, id="p", title="The network of a lab"))


def texts(root: ET.Element) -> list[str]:
    return [one.text or "" for one in root.iter("text")]


def place(root: ET.Element, text: str) -> tuple[float, float]:
    (found,) = [one for one in root.iter("text") if one.text == text]
    return float(found.attrib["x"]), float(found.attrib["y"])


def test_everything_is_written_down() -> None:
    shown = texts(picture(graph()))
    for text in (
        "host", "docker", "outside", "gateway", "web", "+ sidecar", "published 8080:80/tcp",
        "eth0 172.17.0.2/16", "veth1", "docker0 · 172.17.0.1/16 · MTU 1500", "alone",
        "no link but lo", "guest", "network: the host's", "10.168.0.2/24", "lan 10.168.0.0/24",
    ):  # fmt: skip
        assert shown.count(text) == 1, text


def test_a_container_is_above_its_bridge_and_the_bridge_above_the_network() -> None:
    root = picture(graph())
    heights = [
        place(root, text)[1]
        for text in ("web", "veth1", "docker0 · 172.17.0.1/16 · MTU 1500", "lan 10.168.0.0/24")
    ]
    assert heights == sorted(heights)


def test_nothing_is_drawn_outside() -> None:
    root = picture(graph())
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    for one in root.iter("rect"):
        assert float(one.attrib["x"]) >= 0
        assert float(one.attrib["x"]) + float(one.attrib["width"]) <= width
        assert float(one.attrib["y"]) + float(one.attrib["height"]) <= height


def test_it_is_told_in_words_too() -> None:
    root = picture(graph())
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"] == "p-title p-desc"
    assert root.find("title") is not None
    description = root.findtext("desc") or ""
    assert "docker0 bridge 172.17.0.1/16" in description
    assert "web: eth0 172.17.0.2/16" in description
    assert "sidecar: shares the network of web" in description
    assert "veth1 ↔ web eth0" in description


def test_each_wire_of_a_container_on_two_bridges_ends_at_its_bridge() -> None:
    host = node(
        "host",
        links=[
            link("docker0", 3, "bridge", "172.17.0.1/16"),
            link("br-1", 4, "bridge", "172.18.0.1/16") | {"network": "front"},
            link("br-2", 5, "bridge", "172.19.0.1/16") | {"network": "back"},
            link("v1", 6, "veth") | {"master": "br-1"},
            link("v2", 7, "veth") | {"master": "br-2"},
        ],
        spaces=[
            {
                "name": "web",
                "kind": "container",
                "links": [
                    link("eth0", 2, "veth", "172.18.0.2/16"),
                    link("eth1", 3, "veth", "172.19.0.2/16"),
                ],
            }
        ],
        pairs=[[["web", "eth0"], ["", "v1"]], [["web", "eth1"], ["", "v2"]]],
    )
    root = picture({"networks": [], "nodes": [host], "overlay": None})
    bridges = [one for one in root.iter("rect") if one.attrib["class"] == "pic-bridge"]
    tops = sorted(float(one.attrib["y"]) for one in bridges)
    assert len({*tops}) == 3, "none lies on another"
    named = [text for text in texts(root) if "(br-" in text]
    assert [text.partition(" · ")[0] for text in named] == ["front (br-1)", "back (br-2)"]
    assert place(root, named[1])[1] < place(root, "docker0 · 172.17.0.1/16 · MTU 1500")[1]
    wires = [one for one in root.iter("polyline") if one.attrib["class"] == "pic-wire"]
    ends = [float(one.attrib["points"].split()[-1].split(",")[1]) for one in wires]
    assert ends == tops[:2]


def test_a_pair_between_neighbours_is_a_line_between_them() -> None:
    host = node(
        "host",
        spaces=[
            {
                "name": "ns1",
                "kind": "namespace",
                "links": [link("veth0", 2, "veth", "10.0.0.1/24")],
            },
            {
                "name": "ns2",
                "kind": "namespace",
                "links": [link("veth1", 2, "veth", "10.0.0.2/24")],
            },
        ],
        pairs=[[["ns1", "veth0"], ["ns2", "veth1"]]],
    )
    root = picture({"networks": [], "nodes": [host], "overlay": None})
    (wire,) = [one for one in root.iter("polyline") if one.attrib["class"] == "pic-wire"]
    points = [tuple(map(float, point.split(","))) for point in wire.attrib["points"].split()]
    assert place(root, "ns1")[0] < points[0][0] < points[-1][0] < place(root, "ns2")[0]
    assert points[0][1] == points[-1][1]


def test_an_overlay_joins_its_devices() -> None:
    nodes = [
        node(f"node{n}", links=[
            link("eth0", 2, "veth", f"10.168.0.{n}/24"),
            link("flannel.1", 4, "vxlan", f"100.96.{n}.0/32", vni=1, port=8472),
        ])
        for n in (1, 2)
    ]  # fmt: skip
    overlay = {
        "name": "flannel",
        "device": "flannel.1",
        "backend": "vxlan",
        "network": "100.96.0.0/16",
        "port": 8472,
        "vni": 1,
    }
    networks = [{"name": "lan", "subnet": "10.168.0.0/24"}]
    root = picture({"networks": networks, "nodes": nodes, "overlay": overlay})
    assert "flannel vxlan 100.96.0.0/16 · UDP 8472" in texts(root)
    taps = [one for one in root.iter("polyline") if "pic-tap pic-overlay" in one.attrib["class"]]
    assert len(taps) == 2


def test_a_node_that_did_not_answer_says_so() -> None:
    root = picture({"networks": [], "nodes": [node("host", error="it is gone")], "overlay": None})
    assert "it is gone" in texts(root)


def test_names_stay_text() -> None:
    root = picture({"networks": [], "nodes": [node(EVIL)], "overlay": None})
    assert EVIL in texts(root)
    assert {one.tag for one in root.iter()} <= {"svg", "title", "desc", "rect", "text"}


def test_no_graph_is_no_picture() -> None:
    assert draw({}, id="p", title="") == ""


def wired(*wires: tuple[str, str]) -> ET.Element:
    """A picture of three nodes with two interfaces each, and links between them as NODE:NAME."""
    nodes = [
        node(name, links=[link("eth1", 2, "veth", "10.0.0.1/24"), link("eth2", 3, "veth")])
        for name in ("left", "middle", "right")
    ]

    def end(text: str) -> dict[str, Any]:
        at, _, interface = text.partition(":")
        return {"at": at, "interface": interface, "up": not interface.endswith("!")}

    ends = [[end(one), end(other)] for one, other in wires]
    return picture({"networks": [], "nodes": nodes, "overlay": None, "wires": ends})


def lines(root: ET.Element) -> dict[str, list[list[tuple[float, float]]]]:
    """The lines of a picture, by class."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for one in root.iter("polyline"):
        points = [tuple(map(float, point.split(","))) for point in one.attrib["points"].split()]
        found.setdefault(one.attrib["class"], []).append([(x, y) for x, y in points])
    return found


def test_links_between_nodes_are_drawn() -> None:
    root = wired(
        ("left:eth1", "middle:eth1"), ("middle:eth2", "right:eth1"), ("right:eth2", "left:eth2")
    )
    found = lines(root)
    assert list(found) == ["pic-wire"]
    a, b, across = sorted(found["pic-wire"], key=lambda line: (line[1][1], line[0][0]))
    titles = [one for one in root.iter("text") if one.attrib["class"] == "pic-title"]
    starts = [float(one.attrib["x"]) for one in titles if one.text in {"eth1", "eth2"}]
    # Each end is below the name of its interface: left, middle, right with eth1 and eth2 each.
    ends = [a[0][0], across[0][0], a[-1][0], b[0][0], b[-1][0], across[-1][0]]
    assert all(start < x for start, x in zip(starts, ends, strict=True))
    assert all(x < start for x, start in zip(ends[:-1], starts[1:], strict=True))
    assert a[1][1] == b[1][1] < across[1][1], "links side by side share a height"
    assert across[1][1] < float(root.attrib["height"])
    words = root.findtext("desc") or ""
    assert "left:eth1 ↔ middle:eth1." in words
    assert "right:eth2 ↔ left:eth2." in words


def test_links_that_would_overlap_have_heights_of_their_own() -> None:
    found = lines(wired(("left:eth1", "right:eth1"), ("left:eth2", "right:eth2")))["pic-wire"]
    heights = [line[1][1] for line in found]
    assert len(set(heights)) == 2


def test_a_lost_link_is_a_broken_line() -> None:
    found = lines(wired(("left:gone!", "middle:eth1"), ("left:eth1", "right:eth1")))
    assert {kind: len(drawn) for kind, drawn in found.items()} == {
        "pic-wire": 1,
        "pic-wire pic-down": 1,
    }


def test_a_bridge_of_the_host_joins_the_links_to_it() -> None:
    root = wired(("left:eth1", "br1:a"), ("br1:b", "right:eth1"), ("middle:eth1", "host:x"))
    found = lines(root)
    assert len(found["pic-tap pic-network"]) == 3
    assert len(found["pic-bus pic-network"]) == 2
    assert {"br1", "host"} <= set(texts(root))
    assert "pic-wire" not in found
    root = wired(("br1:a", "br2:b"))
    assert not lines(root), "no node has an end of it"
    assert "br1:a ↔ br2:b." in (root.findtext("desc") or "")
