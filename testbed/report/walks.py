"""A walk as a drawing, and as data for the templates of pages.

Each machine on the way is a card, in the order of the way. The packet goes down through the first
card, along the networks below the cards, and up again in the last one. Inside a card a box is a
network namespace. Colours and fonts are the page's, by class names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from testbed.report.drawing import Sheet, alone
from testbed.report.picture import BOLD, HUGE, LARGE, MARGIN, NARROW, PAD, width
from testbed.walk.render import words

if TYPE_CHECKING:
    from testbed.report.picture import Translate
    from testbed.report.words import Words
    from testbed.walk.model import Hop, Leg, Walk

HEAD = 44.0  # of a card: its name
LABEL = 24.0  # of a box: the name of a namespace
ROW = 20.0  # of a hop's name
LINE = 15.0  # of each line below it
SPACE = 9.0  # between hops, and around boxes
RAIL = 24.0  # from the left edge of a card to the way
TEXT = 18.0  # from the way to the names
GUTTER = 40.0  # between cards, where the way goes up to a card in the middle
BUS = 34.0  # from the cards down to the networks
LONGEST = 46  # characters in a line
LINES = 3  # of one detail; the page has the whole text below
TITLE = 40.0  # of a leg, where there are two


@dataclass(slots=True)
class Stop:
    """A hop in the drawing. ``y`` is the middle of its name's line."""

    hop: Hop
    name: str
    details: list[tuple[str, str, str]]  #: a line, its class, and the whole text if it is cut
    y: float = 0.0

    @property
    def height(self) -> float:
        return ROW + LINE * len(self.details)

    @property
    def width(self) -> float:
        time = words.milliseconds(self.hop.seconds)
        head = width(self.name, BOLD) + 16 + width(time, NARROW)
        return max([head, *(width(text, NARROW) for text, _, _ in self.details)])


@dataclass(slots=True)
class Card:
    """A machine in the drawing, with its stops by network namespace."""

    name: str
    spaces: list[tuple[str, list[Stop]]]
    x: float = 0.0
    width: float = 0.0
    boxes: list[tuple[float, float, str]] = field(default_factory=list)  #: top, height, name

    @property
    def stops(self) -> list[Stop]:
        return [stop for _, stops in self.spaces for stop in stops]

    @property
    def height(self) -> float:
        high = HEAD + PAD
        for space, stops in self.spaces:
            high += sum(stop.height + SPACE for stop in stops)
            high += LABEL + SPACE if space else 0.0
        return high


def draw(walk: Walk, *, id: str, title: str, translate: Translate = str) -> str:
    """Draw a walk as an SVG element.

    ``id`` is the prefix of the ids of its title and description, ``translate`` translates its
    words.
    """
    sheet = Sheet()
    y, wide = 0.0, 0.0
    for leg in walk.legs:
        if len(walk.legs) > 1:
            sheet.text(2, y + 24, _direction(leg, translate), "pic-name")
            y += TITLE
        drawn = _Leg(sheet, leg, y, translate)
        y += drawn.height + PAD
        wide = max(wide, drawn.width)
    size = "huge" if wide > HUGE else "large" if wide > LARGE else "small"
    return sheet.finish(
        max(wide, 300.0), y, size=size, id=id, title=title, description=describe(walk, translate)
    )


def describe(walk: Walk, _: Translate) -> str:
    """Describe the way in words, for screen readers."""
    sentences = []
    for leg in walk.legs:
        names = [f"{hop.spot.machine} {words.name(hop, _)}" for hop in leg.hops]
        where, why = words.loss(leg)
        end = _("arrived") if leg.arrived else f"{_('LOST')}: {where}. {why}"
        sentences.append(f"{_direction(leg, _)}: {', '.join(names)}. {end}")
    return " ".join(sentences)


def _direction(leg: Leg, _: Translate) -> str:
    return _("there") if leg.direction == "there" else _("back")


def _stop(hop: Hop, _: Translate) -> Stop:
    notes = words.notes(hop, _)
    told = [note for note in notes if note.kind == "change" and not note.text.startswith("MAC ")]
    rules = [note for note in notes if note.kind in ("rule", "drop")]
    told += rules[-1 if not rules or rules[-1].sign else -2 :]  # a policy, with the rule before it
    if hop.kind in ("end", "blind", "route"):
        told += [note for note in notes if note.kind == "fact"]
    kinds = {"change": "pic-small walk-change", "drop": "pic-small walk-drop"}
    details = []
    for note in told:
        lines = words.wrapped(note.text, LONGEST, most=LINES)
        whole = note.text if " ".join(lines) != note.text else ""
        details += [(line, kinds.get(note.kind, "pic-small"), whole) for line in lines]
    return Stop(hop, ("✗ " if hop.kind == "end" else "") + words.name(hop, _), details)


def _card(group: words.Group, _: Translate) -> Card:
    spaces = [(space, [_stop(hop, _) for hop in hops]) for space, hops in group.spaces]
    return Card(group.machine, spaces)


class _Leg:
    """Places the cards of a leg from ``top`` on, and draws them."""

    def __init__(self, sheet: Sheet, leg: Leg, top: float, translate: Translate) -> None:
        self._sheet, self._leg, self._top, self._ = sheet, leg, top, translate
        groups = words.groups(leg)
        self._cards = [_card(one, translate) for one in groups if not one.fabric]
        #: The network before each card, by the card's index.
        self._networks: dict[int, str] = {}
        index = 0
        for one in groups:
            if one.fabric:
                self._networks[index] = one.machine
            else:
                index += 1
        self._place()
        self._draw()

    def _place(self) -> None:
        x = 1.0
        high = max((card.height for card in self._cards), default=HEAD)
        for index, card in enumerate(self._cards):
            card.x = x
            texts = [stop.width for stop in card.stops]
            texts += [width(space, BOLD) for space, _ in card.spaces]
            card.width = max([*texts, width(card.name, 9.0)]) + RAIL + TEXT + 2 * PAD
            x += card.width + GUTTER
            upwards = index > 0 and index == len(self._cards) - 1
            self._place_stops(card, high, upwards=upwards)
        self.width = x - GUTTER + 1.0
        self._bottom = self._top + high
        below = len(self._cards) > 1 or self._networks
        self.height = high + (BUS + 30.0 if below else 0.0)

    def _place_stops(self, card: Card, high: float, *, upwards: bool) -> None:
        """Place the stops from the top down, or, in the last card, from the bottom up.

        The lowest ones of all cards are side by side, next to the networks.
        """
        y = self._top + HEAD + high - card.height
        spaces = card.spaces
        if upwards:
            spaces = [(space, stops[::-1]) for space, stops in spaces[::-1]]
        for space, stops in spaces:
            inside = sum(stop.height + SPACE for stop in stops)
            if space:
                card.boxes.append((y, inside + LABEL, space))
                y += LABEL
            for stop in stops:
                stop.y = y + ROW / 2
                y += stop.height + SPACE
            y += SPACE if space else 0.0

    # -- drawing

    def _draw(self) -> None:
        sheet = self._sheet
        for card in self._cards:
            high = self._bottom - self._top - 1
            sheet.rect(card.x, self._top + 1, card.width, high, "pic-node", radius=10)
            sheet.text(card.x + PAD, self._top + 26, card.name, "pic-name")
            for top, height, name in card.boxes:
                inner = card.width - PAD
                sheet.rect(card.x + PAD / 2, top, inner, height, "pic-box", radius=7)
                sheet.text(card.x + RAIL + TEXT, top + 17, name, "pic-title")
        self._draw_networks()
        self._draw_way()
        for card in self._cards:
            for stop in card.stops:
                self._draw_stop(card, stop)

    def _draw_networks(self) -> None:
        y = self._bottom + BUS
        for index, name in self._networks.items():
            near = self._cards[max(index - 1, 0) : index + 1]
            if not near:
                continue
            left = near[0].x + RAIL - 12
            between = near[1:] and self._is_between(index)
            right = (self._side(near[-1]) if between else near[-1].x + RAIL) + 12
            right = max(right, left + 80)
            self._sheet.line([(left, y), (right, y)], "pic-bus pic-network")
            self._sheet.text((left + right) / 2, y + 18, name, "pic-small", anchor="middle")

    def _is_between(self, index: int) -> bool:
        """Tell whether a card is in the middle: it is entered and left at its lower edge."""
        return 0 < index < len(self._cards) - 1

    @staticmethod
    def _side(card: Card) -> float:
        """Return where the way goes up beside a card."""
        return card.x - GUTTER / 2

    def _above(self, card: Card) -> float:
        """Return the height at which the way enters a card from its side."""
        tops = [top for top, _, _ in card.boxes] + [stop.y - ROW for stop in card.stops]
        return min(tops, default=self._bottom) - SPACE

    def _draw_way(self) -> None:
        """Draw the packet's way as one line through all stops."""
        points: list[tuple[float, float]] = []
        low = self._bottom + BUS
        last = len(self._cards) - 1
        for index, card in enumerate(self._cards):
            x = card.x + RAIL
            if self._is_between(index):  # up beside the card, and down through it
                side, high = self._side(card), self._above(card)
                points += [(side, low), (side, high), (x, high)]
                self._sheet.arrow(side, low - BUS / 2, "walk-arrow", up=True)
            elif index or 0 in self._networks:
                points.append((x, low))
                self._sheet.arrow(x, low - BUS / 2, "walk-arrow", up=True)
            points += [(x, stop.y) for stop in card.stops]
            if index < last or index + 1 in self._networks:
                points.append((x, low))
                self._sheet.arrow(x, low - BUS / 2, "walk-arrow", up=False)
        if points:
            self._sheet.line(points, "walk-way")

    def _draw_stop(self, card: Card, stop: Stop) -> None:
        x, y = card.x + RAIL, stop.y
        lost = stop.hop.kind == "end"
        unseen = words.presence(stop.hop) == "inferred" or stop.hop.kind == "blind"
        kind = "walk-lost" if lost else "walk-stop walk-unseen" if unseen else "walk-stop"
        self._sheet.dot(x, y, 7 if lost else 5, kind)
        title = "pic-title walk-drop" if lost else "pic-title"
        self._sheet.text(x + TEXT, y + 5, stop.name, title)
        time = words.milliseconds(stop.hop.seconds)
        right = card.x + card.width - PAD
        self._sheet.text(right, y + 4, time, "pic-small", anchor="end")
        for text, detail, whole in stop.details:
            y += LINE
            self._sheet.text(x + TEXT, y + 4, text, detail, whole=whole)


# -- for the templates -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HopView:
    """A hop as shown: its name, the time since the start, and its notes."""

    hop: Hop
    name: str
    time: str
    origin: str  #: how it is known that the packet was there, or empty
    notes: list[NoteView]


@dataclass(frozen=True, slots=True)
class NoteView:
    """A note as shown. ``origin`` is a word of :data:`testbed.walk.model.Origin`, or empty."""

    note: words.Note
    origin: str


@dataclass(frozen=True, slots=True)
class LegView:
    """A leg as shown."""

    leg: Leg
    packet: str
    where: str  #: of a loss
    why: str
    after: str
    groups: list[tuple[words.Group, list[tuple[str, list[HopView]]]]]


@dataclass(frozen=True, slots=True)
class WalkView:
    """A walk as shown, on a page of its own or as evidence of a claim."""

    walk: Walk
    id: str
    title: str
    svg: Markup
    legs: list[LegView]
    origins: list[str]


def view(walk: Walk, spoken: Words, *, id: str) -> WalkView:
    """Prepare a walk for the templates, in the language of ``spoken``."""
    _ = spoken.gettext
    title = f"{walk.source} → {walk.target}, {walk.request}"
    svg = draw(walk, id=id, title=title, translate=_)
    return WalkView(
        walk=walk,
        id=id,
        title=title,
        svg=Markup(svg),  # noqa: S704  made of elements, which escape their text
        legs=[_leg_view(leg, walk, _) for leg in walk.legs],
        origins=list(words.origins(walk)),
    )


def _leg_view(leg: Leg, walk: Walk, _: Translate) -> LegView:
    where, why = words.loss(leg)
    groups = [
        (one, [(space, [_hop_view(hop, _) for hop in hops]) for space, hops in one.spaces])
        for one in words.groups(leg)
    ]
    packet = words.summary(leg, walk.names)
    return LegView(leg, packet, where, why, words.duration(leg), groups)


def _hop_view(hop: Hop, _: Translate) -> HopView:
    origins = {sign: origin for origin, sign in words.SIGNS.items()}
    notes = [
        NoteView(note, origins[note.sign] if note.kind == "fact" else "")
        for note in words.notes(hop, _)
    ]
    # Without an interface a network's hop has the name of its card.
    name = "" if hop.spot.fabric and not hop.spot.interface else words.name(hop, _)
    return HopView(hop, name, words.milliseconds(hop.seconds), words.presence(hop) or "", notes)


def svg(walk: Walk) -> str:
    """Return a walk as an SVG file, which loads nothing."""
    title = f"{walk.source} → {walk.target}, {walk.request}"
    return alone(draw(walk, id="walk", title=title), margin=MARGIN)
