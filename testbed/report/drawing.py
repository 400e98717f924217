"""A drawing of a report as a file of its own, with the page's fonts and colours of both schemes."""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
CSS = TEMPLATES / "report.css"
WALK = TEMPLATES / "walk.css"
RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
VALUE = re.compile(r"(--[\w-]+):\s*([^;]+);")
VARIABLE = re.compile(r"var\((--[\w-]+)\)")


SIZE = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)" width="[\d.]+" height="[\d.]+"')


def alone(svg: str, *, margin: int = 0) -> str:
    """Return a drawing of this package, an SVG element, as the text of an SVG file.

    It loads nothing, and follows the reader's choice of a light or a dark scheme. ``margin`` is
    in pixels.
    """
    head, _, rest = svg.partition(">")
    at = ""
    if margin and (found := SIZE.search(head)):
        wide, high = (float(found[side]) + 2 * margin for side in (1, 2))
        size = f'width="{wide:g}" height="{high:g}"'
        head = head.replace(found[0], f'viewBox="{-margin} {-margin} {wide:g} {high:g}" {size}')
        at = f' x="{-margin}" y="{-margin}"'
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return (
        f"{head}><style>{_style()}</style>"
        f'<rect class="pic-back"{at} width="100%" height="100%"/>{rest}\n'
    )


@functools.cache
def _style() -> str:
    """Return the page's rules for drawings, with the values of its variables."""
    css = CSS.read_text(encoding="utf-8")
    walk = WALK.read_text(encoding="utf-8")
    light, dark = palettes(css)
    rules = "".join(
        f"{selector.strip()}{{{body.strip()}}}"
        for line in (css + walk).splitlines()
        if line.startswith((".pic", ".walk-"))
        for selector, body in RULE.findall(line)
        if not selector.strip().startswith((".picture-box", ".picture.", ".picture {"))
    )
    rules += ".pic-back{fill:var(--paper)}.picture{font-family:var(--sans)}"
    return (
        f"{_valued(rules, light)}@media (prefers-color-scheme: dark)"
        f"{{{_valued(rules, {**light, **dark})}}}"
    )


def palettes(css: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables of the page's light scheme, and those of the dark one."""
    light = css[css.index(":root") :]
    dark = css[css.index('[data-theme="dark"]') :]
    first, second = (dict(VALUE.findall(one[: one.index("}")])) for one in (light, dark))
    return first, second


def _valued(rules: str, values: dict[str, str]) -> str:
    while VARIABLE.search(rules):  # a font may name another one
        rules = VARIABLE.sub(lambda found: values[found[1]], rules)
    return rules


class Sheet:
    """An SVG element to draw on: shapes and texts, with the classes of the page's style sheet."""

    def __init__(self) -> None:
        self.root = ET.Element("svg")

    def rect(
        self, x: float, y: float, wide: float, high: float, kind: str, *, radius: float = 5
    ) -> None:
        sizes = {"x": x, "y": y, "width": wide, "height": high, "rx": radius}
        ET.SubElement(self.root, "rect", {**_rounded(sizes), "class": kind})

    def line(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        path = " ".join(f"{round(x, 1):g},{round(y, 1):g}" for x, y in points)
        ET.SubElement(self.root, "polyline", {"points": path, "class": kind})

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        ET.SubElement(
            self.root, "circle", {**_rounded({"cx": x, "cy": y, "r": radius}), "class": kind}
        )

    def arrow(self, x: float, y: float, kind: str, *, up: bool) -> None:
        tip = y - 7 if up else y + 7
        base = y + 4 if up else y - 4
        path = f"{x:g},{tip:g} {x - 7:g},{base:g} {x + 7:g},{base:g}"
        ET.SubElement(self.root, "polygon", {"points": path, "class": kind})

    def text(
        self, x: float, y: float, words: str, kind: str, *, anchor: str = "", whole: str = ""
    ) -> None:
        """Write a text; ``whole`` is shown by pointing at it, where ``words`` are shortened."""
        attributes = {**_rounded({"x": x, "y": y}), "class": kind}
        if anchor:
            attributes["text-anchor"] = anchor
        element = ET.SubElement(self.root, "text", attributes)
        if whole:
            ET.SubElement(element, "title").text = whole
            element[0].tail = words
        else:
            element.text = words

    def finish(
        self, wide: float, high: float, *, size: str, id: str, title: str, description: str
    ) -> str:
        """Return the element as text, with its size and with words for screen readers."""
        self.root.attrib |= {
            "class": f"picture {size}",
            "viewBox": f"0 0 {wide:g} {high:g}",
            "width": f"{wide:g}",
            "height": f"{high:g}",
            "role": "img",
            "aria-labelledby": f"{id}-title {id}-desc",
        }
        for tag, text in (("desc", description), ("title", title)):
            element = ET.Element(tag, {"id": f"{id}-{tag}"})
            element.text = text
            self.root.insert(0, element)
        return ET.tostring(self.root, encoding="unicode")


def _rounded(sizes: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{round(value, 1):g}" for name, value in sizes.items()}
