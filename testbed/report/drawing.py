"""A drawing of a report as a file of its own, with the page's fonts and colours of both schemes."""

from __future__ import annotations

import functools
import re
from pathlib import Path

CSS = Path(__file__).parent / "templates" / "report.css"
RULE = re.compile(r"([^{}]+)\{([^{}]*)\}")
VALUE = re.compile(r"(--[\w-]+):\s*([^;]+);")
VARIABLE = re.compile(r"var\((--[\w-]+)\)")


def alone(svg: str) -> str:
    """Return a drawing of this package, an SVG element, as the text of an SVG file.

    It loads nothing, and follows the reader's choice of a light or a dark scheme.
    """
    head, _, rest = svg.partition(">")
    head = head.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return (
        f"{head}><style>{_style()}</style>"
        f'<rect class="pic-back" width="100%" height="100%"/>{rest}\n'
    )


@functools.cache
def _style() -> str:
    """Return the page's rules for drawings, with the values of its variables."""
    css = CSS.read_text(encoding="utf-8")
    light, dark = palettes(css)
    rules = "".join(
        f"{selector.strip()}{{{body.strip()}}}"
        for line in css.splitlines()
        if line.startswith(".pic")
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
