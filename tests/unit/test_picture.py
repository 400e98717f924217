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
