"""A drawing as a file of its own."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from report_runs import graph

from testbed.report.drawing import CSS, alone, palettes
from testbed.report.picture import draw

FILE = alone(draw(graph(), id="p", title="The network of a lab"))


def test_it_is_svg_that_loads_nothing() -> None:
    root = ET.fromstring(FILE)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(r"url\(|@import|href|var\(", FILE)


def test_it_has_the_colours_of_both_schemes() -> None:
    light, dark = palettes(CSS.read_text(encoding="utf-8"))
    assert set(dark) < set(light)
    first, _, second = FILE.partition("@media (prefers-color-scheme: dark)")
    assert second
    for palette, style in ((light, first), ({**light, **dark}, second)):
        for name in ("--ink", "--paper", "--sunk", "--bar-conditional"):
            assert palette[name] in style, name


def test_every_class_of_the_drawing_has_a_rule() -> None:
    names = {name for value in re.findall(r'class="([^"]+)"', FILE) for name in value.split()}
    without = {"small", "halo", "pic-network"}  # sizes, and those that follow from others
    assert [name for name in names - without if f".{name}" not in FILE] == []
