"""A walk as a drawing and as a page."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from walks import across, all_walks, dropped, published

from testbed.errors import UsageError
from testbed.report import walk_page, walks
from testbed.walk.compare import compare
from testbed.walk.model import Fact, Hop, Leg, Spot, Walk

WALKS = all_walks()
EVIL = "</title><script>alert(1)</script>&\"'"


def drawing(walk: Walk) -> ET.Element:
    return ET.fromstring(walks.draw(walk, id="w", title="The path"))


def texts(root: ET.Element) -> list[str]:
    return ["".join(one.itertext()) for one in root.iter("text")]


def place(root: ET.Element, text: str) -> tuple[float, float]:
    (found,) = [one for one in root.iter("text") if one.text == text]
    return float(found.attrib["x"]), float(found.attrib["y"])


@pytest.mark.parametrize("name", WALKS)
def test_every_place_is_drawn_once_and_inside(name: str) -> None:
    root = drawing(WALKS[name])
    wide, high = float(root.attrib["width"]), float(root.attrib["height"])
    hops = [hop for leg in WALKS[name].legs for hop in leg.hops if not hop.spot.fabric]
    assert len(root.findall("circle")) == len(hops)
    for one in root.iter("rect"):
        assert float(one.attrib["x"]) >= 0
        assert float(one.attrib["x"]) + float(one.attrib["width"]) <= wide
        assert float(one.attrib["y"]) + float(one.attrib["height"]) <= high
    for one in [*root.iter("text"), *root.iter("circle")]:
        x, y = (float(one.get(key) or one.get(f"c{key}") or "") for key in ("x", "y"))
        assert 0 <= x <= wide
        assert 0 <= y <= high


def test_the_packet_goes_down_through_the_first_card_and_up_in_the_last() -> None:
    root = drawing(across())
    lowest = max(float(one.attrib["cy"]) for one in root.iter("circle"))
    down = [place(root, text)[1] for text in ("docker0 in", "nat POSTROUTING", "flannel.1 out")]
    up = [place(root, text)[1] for text in ("flannel.1 in", "docker0 out", "veth77d01aa out")]
    assert down == sorted(down)
    assert up == sorted(up, reverse=True)
    assert place(root, "lan")[1] > lowest
    assert place(root, "node1")[0] < place(root, "node2")[0]


def test_cards_in_the_middle_are_entered_from_above() -> None:
    hops = tuple(
        Hop("device", Spot(machine, "", "eth0"), point)
        for machine in ("a", "b", "c")
        for point in ("in", "out")
    )
    root = drawing(replace(across(), legs=(Leg("there", hops, arrived=True),)))
    heights = [float(one.attrib["cy"]) for one in root.iter("circle")]
    assert heights[2] < heights[3]
    assert heights[4] > heights[5]


def test_a_loss_is_drawn_as_one() -> None:
    root = drawing(dropped())
    (lost,) = [one for one in root.iter("circle") if one.attrib["class"] == "walk-lost"]
    assert lost is list(root.iter("circle"))[-1]
    assert "✗ LOST" in texts(root)
    assert "-A FORWARD -s 100.96.1.0/24 -j DROP" in texts(root)


def test_it_is_told_in_words_too() -> None:
    root = drawing(dropped())
    assert root.attrib["role"] == "img"
    description = root.findtext("desc") or ""
    assert "node1 flannel.1 out, node1 eth0 out, lan lan, node2 eth0 in" in description
    assert "LOST: node2, filter FORWARD. rule 1 of filter FORWARD drops" in description


def test_a_walk_without_a_hop_is_a_drawing_too() -> None:
    walk = replace(across(), legs=(Leg("there", (), arrived=False),))
    assert drawing(walk).tag == "svg"
    assert "✗ LOST" in walk_page.page(walk)


def test_the_file_has_both_schemes_and_loads_nothing() -> None:
    text = walks.svg(published())
    ET.fromstring(text)
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"url\(|@import|href|var\(", text)


@pytest.mark.parametrize("name", WALKS)
def test_the_page_has_every_reason_and_no_script(name: str) -> None:
    page = walk_page.page(WALKS[name])
    assert "<script" not in page
    assert not re.search(r"url\(|@import|src=", page)
    plain = re.sub(r"<[^>]+>", "", page).replace("&#34;", '"').replace("&#39;", "'")
    for leg in WALKS[name].legs:
        for hop in leg.hops:
            for text in [fact.text for fact in hop.facts] + [rule.text for rule in hop.rules]:
                assert text in plain


def test_the_page_can_be_used_with_a_keyboard() -> None:
    text = walk_page.page(dropped(), difference=compare(across(), dropped()))
    for region in re.findall(r'<(?:div class="wide|pre class="difference)[^>]*>', text):
        assert 'tabindex="0"' in region
    levels = [int(level) for level in re.findall(r"<h(\d)", text)]
    assert levels[0] == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_page_shows_a_difference() -> None:
    text = walk_page.page(dropped(), difference=compare(across(), dropped()))
    assert '<span class="plus">+   node2 LOST</span>' in text
    assert "Difference from" not in walk_page.page(across(), difference=compare(across(), across()))


def test_text_of_the_lab_is_escaped() -> None:
    hop = Hop("device", Spot(EVIL, EVIL, EVIL), "in", facts=(Fact(EVIL, "seen", EVIL),))
    leg = Leg("there", (hop,), arrived=True)
    walk = replace(across(), source=EVIL, lab=EVIL, legs=(leg,), warnings=(EVIL,))
    assert "<script" not in walk_page.page(walk)
    ET.fromstring(walks.svg(walk))


def test_the_page_speaks_chinese() -> None:
    text = walk_page.page(published(), lang="zh")
    assert 'lang="zh-Hans"' in text
    assert "目的地址 10.168.0.2 → 100.96.1.2" in text
    for word in ("arrived", "seen:", " destination "):
        assert word not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    with pytest.raises(UsageError):
        walk_page.page(published(), lang="xx")
