"""A walk as a Mermaid sequence diagram, for READMEs, wikis and bug reports.

Each network namespace is a participant, those of a machine share a box. Hops within a namespace
are notes over it, steps from one to the next are arrows (mermaid.js.org, "Sequence diagrams").
"""

from __future__ import annotations

import json
from itertools import groupby
from typing import TYPE_CHECKING

from testbed.exports.mermaid import label
from testbed.walk.render import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.walk.model import Hop, Leg, Spot, Walk

LINE = 52  # characters in a line of a note; Mermaid does not wrap by itself
RED = "  rect rgba(220, 40, 40, 0.25)"  # behind the loss
Place = tuple[str, str, bool]


def diagram(walk: Walk) -> str:
    """Return the text of the diagram."""
    return "\n".join(_Diagram(walk).lines()) + "\n"


def _text(*lines: str) -> str:
    """Escape text as :func:`label` does, without its quotes."""
    return label(*lines)[1:-1]


def _place(spot: Spot) -> Place:
    return spot.machine, spot.space, spot.fabric


class _Diagram:
    """The lines of the diagram; participants are numbered, as names may be words of Mermaid."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        spots = (hop.spot for leg in walk.legs for hop in leg.hops)
        places = dict.fromkeys(map(_place, spots))
        self._ids = {place: f"p{number}" for number, place in enumerate(places, 1)}

    def lines(self) -> Iterator[str]:
        walk = self._walk
        title = f"{walk.source} → {walk.target}, {walk.request}"
        yield from (
            "---",
            f"title: {json.dumps(title, ensure_ascii=False)}",
            "---",
            "sequenceDiagram",
        )
        yield from self._participants()
        for leg in walk.legs:
            yield from self._leg(leg)

    def _participants(self) -> Iterator[str]:
        for machine, fabric in dict.fromkeys((place[0], place[2]) for place in self._ids):
            mine = [one for one in self._ids if (one[0], one[2]) == (machine, fabric)]
            if not fabric:
                yield f"  box transparent {_text(machine)}"
            for place in mine:
                yield f"  participant {self._ids[place]} as {_text(place[1] or machine)}"
            if not fabric:
                yield "  end"

    def _leg(self, leg: Leg) -> Iterator[str]:
        runs = [list(hops) for _, hops in groupby(leg.hops, lambda hop: _place(hop.spot))]
        for before, run in zip([None, *runs], runs, strict=False):
            ident = self._ids[_place(run[0].spot)]
            if before:
                last = self._ids[_place(before[-1].spot)]
                yield f"  {last} ->> {ident}: {_text(self._step(before[-1], run[0]))}"
            for hop in run:
                in_arrow = (before and hop is run[0]) or (run is not runs[-1] and hop is run[-1])
                if lines := self._words(hop, named=bool(in_arrow)):
                    yield f"  Note over {ident}: {_text(*lines)}"
        if not leg.arrived and runs:
            where, why = words.loss(leg)
            told = words.wrapped(f"LOST at {where}" + (f": {why}" if why else ""), LINE)
            yield from (RED, f"  {ident} --x {ident}: {_text(*told)}", "  end")

    @staticmethod
    def _step(before: Hop, hop: Hop) -> str:
        names = [one.spot.interface for one in (before, hop) if one.spot.interface]
        return " → ".join(names) or hop.spot.machine

    @staticmethod
    def _words(hop: Hop, *, named: bool) -> list[str]:
        """Return the lines of a note; none where all is told by an arrow that names the device."""
        texts = [f"{note.sign} {note.text}".strip() for note in words.notes(hop)]
        found = [line for text in texts for line in words.wrapped(text, LINE)]
        if hop.kind == "end" or hop.spot.fabric or (hop.kind == "device" and named and not found):
            return found
        return [words.name(hop), *found]
