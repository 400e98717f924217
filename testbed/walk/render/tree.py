"""A walk for the terminal: hops as a tree, by machine and by network namespace.

Nothing is cut: on a narrow terminal the reasons go below the places, and long lines are wrapped
between words. Colours are those of click, which leaves them out where there is no terminal.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import click

from testbed.walk.render import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.walk.compare import Difference
    from testbed.walk.model import Hop, Leg, Walk
    from testbed.walk.render.words import Note

NARROWEST = 40  # columns; a terminal with fewer wraps the lines itself
LONGEST_NAME = 20  # columns of names with reasons beside them; those of others begin below
SIDE_BY_SIDE = 44  # columns that reasons need beside the places
AROUND = 3  # lines of a path beside a difference
TIME = 9  # "0.123 ms" with a space before it
STYLES: dict[str, dict[str, Any]] = {
    "change": {"fg": "yellow"}, "rule": {"fg": "cyan"}, "drop": {"fg": "red", "bold": True},
    "fact": {},
}  # fmt: skip


def lines(walk: Walk, *, width: int) -> Iterator[str]:
    """Yield the lines of a walk for a terminal of ``width`` columns."""
    width = max(width, NARROWEST)
    head = f"{walk.source} → {walk.target}"
    yield from _wrapped(f"{head}, {walk.request}", width, "  ", fg=None, bold=True)
    for leg in walk.legs:
        yield ""
        yield from _Leg(walk, leg, width).lines()
    yield ""
    for text in walk.warnings:
        yield from _wrapped(f"! {text}", width, "  ", fg="yellow")
    if signs := [f"{words.SIGNS[one]} {words.MEANINGS[one]}" for one in words.origins(walk)]:
        yield from _packed(signs, width)
    for leg in walk.legs:
        yield from closing(leg, width, named=len(walk.legs) > 1)


def closing(leg: Leg, width: int, *, named: bool = False) -> Iterator[str]:
    """Yield the result of a leg: that the packet arrived, or where it was lost and why."""
    head = f"{leg.direction}: " if named else ""
    where, why = words.loss(leg)
    if not leg.arrived:
        text = f"{head}LOST at {where}" + (f": {why}" if why else "")
        yield from _wrapped(f"✗ {text}", width, "  ", fg="red", bold=True)
        return
    after = words.duration(leg)
    places = f"{len(leg.hops)} places on {_count(leg)}"
    text = f"{head}arrived" + (f" after {after}" if after else "") + f", {places}"
    if (last := words.beyond(leg)) is not None:
        at = f"{words.place(last)} {last.point}".rstrip()
        text = f"{head}arrived, as its answer tells; seen as far as {at}"
    yield from _wrapped(f"✓ {text}", width, "  ", fg="green", bold=True)


def _count(leg: Leg) -> str:
    count = len({hop.spot.machine for hop in leg.hops if not hop.spot.fabric})
    return f"{count} {'machine' if count == 1 else 'machines'}"


def difference(found: Difference, *, width: int) -> Iterator[str]:
    """Yield the lines of a difference of two paths; of what is the same, the nearest lines."""
    colours = {"-": "red", "+": "green", " ": None}
    runs = [(sign, [text for _, text in run]) for sign, run in groupby(found.lines, itemgetter(0))]
    for index, (sign, texts) in enumerate(runs):
        if sign == " ":
            after = 0 if index == 0 else AROUND
            before = 0 if index == len(runs) - 1 else AROUND
            if len(texts) > after + before + 1:
                texts = [*texts[:after], "...", *texts[len(texts) - before :]]  # noqa: PLW2901
        for text in texts:
            indent = " " * (len(text) - len(text.lstrip()) + 4)
            yield from _wrapped(
                f"{sign} {text}",
                max(width, NARROWEST),
                indent,
                fg=colours[sign],
                dim=sign == " ",
            )


class _Leg:
    """The lines of a leg, with columns as wide as its places need."""

    def __init__(self, walk: Walk, leg: Leg, width: int) -> None:
        self._walk, self._leg, self._width = walk, leg, width
        names = [len(self._name(hop)) for hop in leg.hops]
        self._names = max((one for one in names if one <= LONGEST_NAME), default=0) + 2
        self._column = len("│ ") + TIME + len(" ● ") + self._names  # where the reasons begin
        self._wide = width - self._column >= SIDE_BY_SIDE

    @staticmethod
    def _name(hop: Hop) -> str:
        return ("✗ " if hop.kind == "end" else "") + words.name(hop)

    def lines(self) -> Iterator[str]:
        leg = self._leg
        packet = words.summary(leg, self._walk.names)
        head = f"{leg.direction}  {packet}".rstrip()
        yield from _wrapped(head, self._width, "  ", dim=True)
        if leg.copies:
            count = f"{leg.copies} {'copy' if leg.copies == 1 else 'copies'}"
            yield click.style(f"  sent again: {count}, not shown", dim=True)
        for group in words.groups(leg):
            if group.fabric:
                yield click.style(f"═ {group.machine}", bold=True) + click.style(
                    "  network", dim=True
                )
                for hop in group.hops:
                    yield from self._hop(hop, "║")
                continue
            yield click.style(group.machine, bold=True)
            for index, (space, hops) in enumerate(group.spaces):
                if space or index or len(group.spaces) > 1:
                    bend = "├" if index else "┌"
                    yield f"{bend} " + click.style(space or "host", bold=bool(space), dim=not space)
                for hop in hops:
                    yield from self._hop(hop, "│")

    def _hop(self, hop: Hop, rail: str) -> Iterator[str]:
        name, notes = self._name(hop), words.notes(hop)
        if hop.kind == "end":
            name = f" {name} "
            shown = click.style(name, fg="white", bg="red", bold=True)
            notes.insert(0, words.Note("drop", f"at {words.place(hop)}"))
        else:
            bold = hop.kind in ("device", "process")
            shown = click.style(name, bold=bold, dim=hop.kind == "blind")
        time = words.milliseconds(hop.seconds)
        origin = words.presence(hop)
        sign = click.style(words.SIGNS[origin], dim=True) if origin else " "
        if not self._wide:  # the places first, to lead the eye
            yield f"{rail} {sign} {shown}" + (f"  {click.style(time, dim=True)}" if time else "")
            for note in notes:
                yield from self._note(note, f"{rail}     ", self._width)
            return
        head = f"{rail} {click.style(f'{time:>{TIME}}', dim=True)} {sign} {shown}"
        below = rail.ljust(self._column)
        texts = [line for note in notes for line in self._note(note, below, self._width)]
        if texts and len(name) < self._names:
            head += " " * (self._names - len(name)) + texts.pop(0).removeprefix(below)
        yield head
        yield from texts

    @staticmethod
    def _note(note: Note, gutter: str, width: int) -> Iterator[str]:
        """Yield a wrapped note behind ``gutter``, with its source where there is room."""
        sign = f"{note.sign} " if note.sign else ""
        room = width - len(gutter + sign)
        found = words.wrapped(note.text, room) or [""]
        for index, text in enumerate(found):
            lead = " " * len(sign) if index else click.style(sign, dim=True)
            line = f"{gutter}{lead}{click.style(text, **STYLES[note.kind])}"
            source = f"  ({note.source})"
            if len(found) == 1 and note.source and len(text + source) <= room:
                line += click.style(source, dim=True)
            yield line


def _packed(texts: list[str], width: int) -> Iterator[str]:
    """Yield texts side by side where they fit, otherwise below each other."""
    line = ""
    for text in texts:
        if line and len(line) + 3 + len(text) > width:
            yield click.style(line, dim=True)
            line = ""
        line = f"{line}   {text}" if line else text
    yield click.style(line, dim=True)


def _wrapped(
    text: str,
    width: int,
    indent: str,
    *,
    fg: str | None = None,
    bold: bool = False,
    dim: bool = False,
) -> Iterator[str]:
    """Yield the lines of a text, those after the first with an indent."""
    lines = [text] if len(text) <= width else words.wrapped(text, width - len(indent))
    for number, line in enumerate(lines):
        shown = f"{indent if number else ''}{line}"
        yield click.style(shown, fg=fg, bold=bold or None, dim=dim or None)
