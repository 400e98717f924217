"""Griffe extension: the roles of docstrings (``:class:`Node```) as Markdown."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`[~.]?([^`]+)`")
#: A paragraph that ends in a double colon, and the indented block below it.
BLOCK = re.compile(r"::\n\n((?:(?: {4}.*)?\n)+)")
#: Lines of an interactive session, up to the next empty line.
EXAMPLE = re.compile(r"^>>> .*\n(?:.+\n)*", re.MULTILINE)


def markdown(text: str) -> str:
    """Return a docstring in Markdown.

    >>> markdown("As :func:`load` does.")
    'As `load` does.'
    """
    text = ROLE.sub(r"`\1`", text + "\n")
    text = EXAMPLE.sub(lambda found: f"```pycon\n{found[0]}```\n", text)
    text = BLOCK.sub(lambda found: ":\n\n```python\n" + outdent(found[1]) + "```\n\n", text)
    return re.sub(r"^:\n", "", text, flags=re.MULTILINE).strip()


def outdent(block: str) -> str:
    return re.sub(r"^ {4}", "", block.strip("\n"), flags=re.MULTILINE) + "\n"


class Roles(griffe.Extension):
    """Changes each docstring when its object is found."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
