"""Charts of measurements: bars as SVG, in the page's own colours."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from testbed.claims.observation import quartiles

WIDTH = 400
BAR = 26  # height of a bar and its margins
AXIS = 30
FONT = 12  # of labels, in pixels


def bars(series: Mapping[str, Sequence[float]], unit: str, *, id: str, title: str) -> str:
    """Draw a bar for the median of each series, from zero, as an SVG element.

    The bars are horizontal.  A line across the end goes from the first quartile to the third.
    """
    import pygal  # takes a tenth of a second, and only a report needs it
    from pygal.style import Style

    chart = pygal.HorizontalBar(
        width=WIDTH,
        height=BAR * len(series) + AXIS,
        explicit_size=True,
        no_prefix=True,
        disable_xml_declaration=True,
        js=[],
        show_legend=False,
        max_scale=6,
        margin=2,
        margin_right=12,
        # Only the space for labels: the page sets all other styles.
        style=Style(label_font_size=FONT, major_label_font_size=FONT, font_family="sans-serif"),
        truncate_label=-1,
        formatter=lambda value: f"{value:.3g}",
    )
    # Drawn from the bottom up: the first series must be on top.
    names = list(series)[::-1]
    spreads = [quartiles(series[name]) for name in names]
    chart.range = (0, max(high for _, _, high in spreads) or 1)
    medians = [f"{middle:.4g}" for _, middle, _ in spreads]
    chart.x_labels = [f"{name}: {median}" for name, median in zip(names, medians, strict=True)]
    chart.add(
        unit,
        [{"value": middle, "ci": {"low": low, "high": high}} for low, middle, high in spreads],
    )
    root: ET.Element = chart.render_tree()
    return _in_page(root, id, title)


def _in_page(root: ET.Element, id: str, title: str) -> str:
    """Drop the library's style, script and tooltips: the page has its own style."""
    for parent in list(root.iter()):
        for child in list(parent):
            if not isinstance(child.tag, str) or _is_left_out(child):
                parent.remove(child)
    name = ET.Element("title", {"id": f"{id}-title"})
    name.text = title
    root.insert(0, name)
    root.attrib |= {"id": id, "class": "chart", "role": "img", "aria-labelledby": f"{id}-title"}
    return ET.tostring(root, encoding="unicode")


def _is_left_out(element: Any) -> bool:
    name = element.tag.rpartition("}")[2]
    return name in {"defs", "title", "desc"} or "tooltip-overlay" in element.get("class", "")
