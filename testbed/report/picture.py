"""A lab's network as a drawing: the graph of :mod:`testbed.observe.graph` as SVG.

Each node is a card.  Inside it, from top to bottom: containers and namespaces,
the links that lead out of them, bridges, and the node's own devices.  Below the
cards lie overlays, the networks that join the nodes, links between two
nodes, and services.  Nodes of one kind can share a card (:func:`testbed.observe.graph.fold`).
Colours and fonts are the page's, by class names; a file of its own brings them along.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network
from typing import Any

from testbed.observe.graph import tunnels
from testbed.report.drawing import Sheet, alone

Graph = Mapping[str, Any]
Link = Mapping[str, Any]
Translate = Callable[[str], str]

PAD = 14.0  # inside a card and a box
GAP = 14.0  # between boxes
CARD_GAP = 26.0
LINE = 17.0  # from one line of text to the next
WIDE = 7.4  # of a character at 12 px in a monospaced font
NARROW = 6.5  # the same at 10.5 px
BOLD = 8.2  # of a letter at 13 px
CJK = 0x2E80  # from this code point on characters are about twice as wide
WIRES = 46.0  # height of the part where links run
DIRECT = 56.0  # between boxes that a veth pair joins directly
BRIDGE = 30.0
ROW_GAP = 8.0  # between two bridges, in a row and from one row to the next
SMALL_LINE = 15.0
BUS = 40.0
LANE = 16.0  # from one link between nodes to the next below it
MARGIN = 16  # around a picture in a file of its own
MEMBERS = 10  # rows of names in the card of many nodes
LARGE = 760.0  # pictures wider than this may be shrunk, down to this
HUGE = 1500.0


def width(text: str, each: float) -> float:
    """Estimate the width of a text."""
    return sum(each * (1.8 if ord(char) >= CJK else 1) for char in text)


@dataclass(slots=True)
class Box:
    """A container or namespace in the drawing.  ``links``: those towards bridges last."""

    name: str
    kind: str
    notes: list[str]
    links: list[Link]
    bridge: str = ""
    x: float = 0.0
    width: float = 0.0

    @property
    def lines(self) -> int:
        return 1 + len(self.notes) + sum(max(1, len(v4(link))) for link in self.links)


@dataclass(slots=True)
class Device:
    """A device of a node, or a process on its own network."""

    title: str
    details: list[str]
    kind: str
    link: Link | None = None
    x: float = 0.0
    width: float = 0.0


@dataclass(slots=True)
class Card:
    """A node in the drawing.  ``wires`` join a box's link to a link of the node."""

    name: str
    words: str
    error: str
    boxes: list[Box] = field(default_factory=list)
    bridges: list[Link] = field(default_factory=list)
    devices: list[Device] = field(default_factory=list)
    wires: dict[tuple[str, str], Link] = field(default_factory=dict)
    direct: list[tuple[tuple[str, str], tuple[str, str]]] = field(default_factory=list)
    members: list[str] = field(default_factory=list)  #: of a card for many nodes
    #: Left and right edge of each bridge, and its row from the top.
    spans: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    x: float = 0.0
    width: float = 0.0

    @property
    def rows(self) -> int:
        """The number of rows of bridges."""
        return 1 + max((row for _, _, row in self.spans.values()), default=-1)


def v4(link: Link) -> list[str]:
    """Return the IPv4 addresses of a link, each with its prefix length."""
    return [address for address in link["addresses"] if ":" not in address]


def draw(graph: Graph, *, id: str, title: str, translate: Translate = str) -> str:
    """Draw the graph as an SVG element; "" for a graph without nodes.

    ``id`` is the prefix of the ids of its title and description, ``translate``
    translates its words.
    """
    if not graph.get("nodes"):
        return ""
    cards = [_card(node, translate) for node in graph["nodes"]]
    return _Drawing(graph, cards, translate).svg(id, title, describe(graph, translate))


def page(graph: Graph, *, title: str) -> str:
    """Draw the graph as an SVG file, which follows the scheme of the reader, light or dark."""
    cards = [_card(node, str) for node in graph["nodes"]]
    svg = _Drawing(graph, cards, str).svg("picture", title, describe(graph, str))
    return alone(svg, margin=MARGIN)


# -- contents --------------------------------------------------------------------


def _card(node: Mapping[str, Any], _: Translate) -> Card:
    words = [*node["roles"], *([_("gateway")] if node["gateway"] else [])]
    if members := node.get("members"):
        words = [f"{len(members)} nodes like {node['like']}"]
    card = Card(node["name"], " · ".join(words), node["error"])
    card.members = [_member(one) for one in members or ()]
    by_name = {link["name"]: link for link in node["links"]}
    for one, other in node["pairs"]:
        inside = [(space, name) for space, name in (one, other) if space]
        own = [by_name[name] for space, name in (one, other) if not space and name in by_name]
        if len(inside) == 2:
            card.direct.append((inside[0], inside[1]))
        elif inside and own:
            card.wires[inside[0]] = own[0]
    card.bridges = [link for link in node["links"] if link["kind"] == "bridge"]
    card.boxes = _boxes(node, card, _)
    drawn = {link["name"] for link in (*card.bridges, *card.wires.values())}
    card.devices = [
        Device(space["name"], [_("network: the host's")], "guest")
        for space in node["spaces"]
        if space.get("mode") == "host"
    ]
    card.devices += [_device(link) for link in node["links"] if link["name"] not in drawn]
    return card


def _member(one: Mapping[str, Any]) -> str:
    """Return the line of a node in the card of many nodes."""
    words = [" ".join([one["name"], *_bare(one["addresses"])])]
    words += [" ".join([name, *_bare(addresses)]) for name, *addresses in one["spaces"]]
    return " · ".join(words)


def _bare(addresses: Sequence[str]) -> list[str]:
    return [one.partition("/")[0] for one in addresses]


def _boxes(node: Mapping[str, Any], card: Card, _: Translate) -> list[Box]:
    shared: dict[str, list[str]] = {}
    for space in node["spaces"]:
        if space.get("mode") == "container":
            shared.setdefault(space["shares"], []).append(space["name"])
    boxes = []
    for space in node["spaces"]:
        if space.get("mode") in {"host", "container"}:
            continue
        notes = [f"+ {name}" for name in shared.get(space["name"], ())]
        notes += [f"{_('published')} {port}" for port in space.get("published", ())]
        if not space["links"]:
            notes.append(_("no link but lo"))
        wired = {name: card.wires.get((space["name"], name)) for name in _names(space["links"])}
        links = sorted(space["links"], key=lambda link: wired[link["name"]] is not None)
        masters = [wire["master"] for wire in wired.values() if wire is not None]
        box = Box(space["name"], space["kind"], notes, links, masters[0] if masters else "")
        boxes.append(box)
    order = _names(card.bridges)
    boxes.sort(key=lambda box: order.index(box.bridge) if box.bridge in order else len(order))
    return boxes


def _names(links: Sequence[Link]) -> list[str]:
    return [link["name"] for link in links]


def _device(link: Link) -> Device:
    kind = link["kind"]
    if kind == "vxlan":
        kind = f"vxlan VNI {link['vni']}"
    elif kind == "veth" and link["name"].startswith("eth"):
        kind = ""  # it stands for the machine's own interface
    details = [*link["addresses"], " · ".join([*([kind] if kind else []), f"MTU {link['mtu']}"])]
    return Device(link["name"], details, "device" if link["up"] else "device pic-down", link)


def _joins(network: Mapping[str, Any]) -> Callable[[str, Link], bool]:
    """Return whether a link of a node is on a network, as a function of both."""
    if "ports" in network:
        ports = {(node, name) for node, name in network["ports"]}
        return lambda node, link: (node, link["name"]) in ports
    # A record of testbed 0.1 has no ports.
    subnet = IPv4Network(network["subnet"])
    return lambda _, link: any(IPv4Interface(one).network == subnet for one in v4(link))


def _is_among(names: Sequence[str]) -> Callable[[str, Link], bool]:
    """Return whether a link of a node has one of some names, as a function of both."""
    return lambda _, link: link["name"] in names


def describe(graph: Graph, _: Translate) -> str:
    """Describe the drawing in words, for screen readers."""
    sentences = []
    for node in graph["nodes"]:
        parts = [
            " ".join(
                filter(
                    None,
                    [
                        link["name"],
                        link.get("network", ""),
                        link["kind"],
                        *v4(link),
                        link["master"] and f"({link['master']})",
                    ],
                )
            )
            for link in node["links"]
        ]
        for space in node["spaces"]:
            if space.get("mode") == "container":
                how = f"{_('shares the network of')} {space['shares']}"
            elif space.get("mode") == "host":
                how = _("network: the host's")
            else:
                how = ", ".join(
                    " ".join([link["name"], *v4(link)]) for link in space["links"]
                ) or _("no link but lo")
            parts.append(f"{space['name']}: {how}")
        parts += [
            f"{' '.join(filter(None, one))} ↔ {' '.join(filter(None, other))}"
            for one, other in node["pairs"]
        ]
        sentences.append(f"{node['name']}: {'; '.join(parts)}.")
    sentences += [" ↔ ".join(map(_end_words, wire)) + "." for wire in graph.get("wires", ())]
    return " ".join(sentences)


def _end_words(end: Mapping[str, Any]) -> str:
    return ":".join(filter(None, (end["at"], end["interface"])))


# -- drawing ---------------------------------------------------------------------


class _Drawing(Sheet):
    """Places the cards, then draws them: all cards share the same heights."""

    def __init__(self, graph: Graph, cards: list[Card], translate: Translate) -> None:
        super().__init__()
        self.graph = graph
        self.cards = cards
        self.translate = translate
        self._place()

    # -- placing

    def _place(self) -> None:
        x = 1.0
        for card in self.cards:
            card.x = x
            self._place_card(card)
            x += card.width + CARD_GAP
        self.width = x - CARD_GAP + 1.0
        boxes = [box for card in self.cards for box in card.boxes]
        self.boxes_height = max((box.lines * LINE + 16 for box in boxes), default=0.0)
        wired = any(card.wires for card in self.cards)
        rows = max((card.rows for card in self.cards), default=0)
        self.y_boxes = 48.0 + (18.0 if any(self._arches(card) for card in self.cards) else 0.0)
        self.y_bridges = self.y_boxes + self.boxes_height + (WIRES if wired else GAP * bool(boxes))
        devices = [device for card in self.cards for device in card.devices]
        lines = max((len(device.details) for device in devices), default=0)
        self.devices_height = 25 + lines * SMALL_LINE if devices else 0.0
        self.y_devices = self.y_bridges + (rows * (BRIDGE + ROW_GAP) - ROW_GAP if rows else 0.0)
        if devices and rows:
            self.y_devices += 20.0
        if any(card.members for card in self.cards):
            self.y_devices = max(self.y_devices, self.y_boxes + (MEMBERS + 1) * SMALL_LINE)
        self.y_end = self.y_devices + self.devices_height + PAD
        if not devices and not rows:
            self.y_end = self.y_boxes + self.boxes_height + PAD

    @staticmethod
    def _arches(card: Card) -> bool:
        """Tell whether a veth pair joins boxes that are not neighbours."""
        order = [box.name for box in card.boxes]
        return any(abs(order.index(a[0]) - order.index(b[0])) != 1 for a, b in card.direct)

    def _place_card(self, card: Card) -> None:
        x = card.x + PAD
        neighbours = {frozenset((a[0], b[0])) for a, b in card.direct}
        for index, box in enumerate(card.boxes):
            texts = [
                width(f"{link['name']} {address}", WIDE)
                for link in box.links
                for address in v4(link) or [""]
            ]
            texts += [width(note, NARROW) for note in box.notes]
            box.width = max(96.0, width(box.name, BOLD) + 8, *texts, 0.0) + 20
            box.x = x
            after = card.boxes[index + 1].name if index + 1 < len(card.boxes) else ""
            x += box.width + (DIRECT if frozenset((box.name, after)) in neighbours else GAP)
        right = x - (GAP if card.boxes else 0)
        x = card.x + PAD
        for device in card.devices:
            device.x = x
            details = [width(detail, NARROW) for detail in device.details]
            device.width = 20 + max(width(device.title, BOLD), *details, 70.0)
            x += device.width + GAP
        right = max(right, x - (GAP if card.devices else 0))
        self._place_bridges(card)
        right = max([right, *(edge for _, edge, _ in card.spans.values())])
        right = max(right, card.x + PAD + self._members_width(card))
        head = width(card.name, 9.0) + 16 + width(card.words or card.error, NARROW)
        card.width = max(right - card.x, head + PAD, 150.0) + PAD
        if len(card.devices) == 1 and not card.boxes:  # alone: where the eye looks for it
            only = card.devices[0]
            only.x = card.x + (card.width - only.width) / 2

    @staticmethod
    def _columns(card: Card) -> list[list[str]]:
        """Return the lines of a card for many nodes, in columns."""
        count = math.ceil(len(card.members) / MEMBERS)
        rows = math.ceil(len(card.members) / count) if count else 1
        return [card.members[at : at + rows] for at in range(0, len(card.members), rows)]

    def _members_width(self, card: Card) -> float:
        return sum(
            max(width(line, NARROW) for line in column) + GAP for column in self._columns(card)
        )

    @staticmethod
    def _place_bridges(card: Card) -> None:
        """Place each bridge below its boxes, in the first row where it has room.

        Those without boxes come last, so that no wire passes behind them.
        """
        masters = {
            box.name: {
                card.wires.get((box.name, link["name"]), {}).get("master") for link in box.links
            }
            for box in card.boxes
        }

        def boxes(bridge: Link) -> list[Box]:
            return [box for box in card.boxes if bridge["name"] in masters[box.name]]

        for bridge in sorted(card.bridges, key=lambda one: not boxes(one)):
            name, mine = bridge["name"], boxes(bridge)
            left = min((box.x for box in mine), default=card.x + PAD)
            right = max((box.x + box.width for box in mine), default=0.0)
            right = max(right, left + 24 + width(_bridge_words(bridge), WIDE))
            taken = {
                row
                for begin, end, row in card.spans.values()
                if begin < right + ROW_GAP and left < end + ROW_GAP
            }
            row = next(row for row in range(len(taken) + 1) if row not in taken)
            card.spans[name] = (left, right, row)

    # -- drawing

    def svg(self, id: str, title: str, description: str) -> str:
        below = self._services(self._buses(self._wires()))
        for card in self.cards:
            self._draw_card(card)
        return self.finish(
            self.width, below + 4, size=self._size, id=id, title=title, description=description
        )

    @property
    def _size(self) -> str:
        """Return how the page may scale it: wide drawings shrink a little, huge ones scroll."""
        if self.width > HUGE:
            return "huge"
        return "large" if self.width > LARGE else "small"

    def _draw_card(self, card: Card) -> None:
        self.rect(card.x, 1, card.width, self.y_end - 1, "pic-node", radius=10)
        self.text(card.x + PAD, 25, card.name, "pic-name")
        words = card.error or card.words
        self.text(card.x + card.width - PAD, 25, words, "pic-words", anchor="end")
        for wire in card.wires.values():
            if wire["master"] not in _names(card.bridges):
                card.devices.append(_device(wire))
        for box in card.boxes:  # first, so that they pass behind the bridges of other rows
            self._draw_wires(card, box)
        self._draw_bridges(card)
        for box in card.boxes:
            self._draw_box(box)
        self._draw_members(card)
        self._draw_direct(card)
        for device in card.devices:
            if not device.width:
                continue
            high = self.devices_height
            self.rect(device.x, self.y_devices, device.width, high, f"pic-{device.kind}")
            y = self.y_devices + 17
            self.text(device.x + 10, y, device.title, "pic-title")
            for detail in device.details:
                y += SMALL_LINE
                self.text(device.x + 10, y, detail, "pic-small")

    def _draw_members(self, card: Card) -> None:
        x = card.x + PAD
        for column in self._columns(card):
            for row, line in enumerate(column, 1):
                self.text(x, self.y_boxes + row * SMALL_LINE, line, "pic-small")
            x += max(width(line, NARROW) for line in column) + GAP

    def _draw_bridges(self, card: Card) -> None:
        for bridge in card.bridges:
            left, right, _ = card.spans[bridge["name"]]
            y = self._bridge_y(card, bridge["name"])
            kind = "pic-bridge" if bridge["up"] else "pic-bridge pic-down"
            self.rect(left, y, right - left, BRIDGE, kind, radius=6)
            self.text(left + 12, y + 20, _bridge_words(bridge), "pic-mono")

    def _bridge_y(self, card: Card, name: str) -> float:
        """Return the upper edge of a bridge, or of the first row for any other name."""
        _, _, row = card.spans.get(name, (0.0, 0.0, 0))
        return self.y_bridges + row * (BRIDGE + ROW_GAP)

    def _draw_wires(self, card: Card, box: Box) -> None:
        wired = [link for link in box.links if (box.name, link["name"]) in card.wires]
        top = self.y_boxes + self.boxes_height
        for index, link in enumerate(wired):
            wire = card.wires[box.name, link["name"]]
            x = box.x + box.width * (index + 1) / (len(wired) + 1)
            self.line([(x, top), (x, self._bridge_y(card, wire["master"]))], "pic-wire")
            # Those of a box beside each other, one below the other.
            y = top + WIRES * (index + 1) / (len(wired) + 1)
            self._pill(x, y, wire["name"])

    def _draw_box(self, box: Box) -> None:
        kind = "pic-box" if box.links else "pic-box pic-alone"
        self.rect(box.x, self.y_boxes, box.width, self.boxes_height, kind, radius=7)
        y = self.y_boxes + 20
        self.text(box.x + 10, y, box.name, "pic-title")
        for note in box.notes:
            y += LINE
            self.text(box.x + 10, y, note, "pic-small")
        for link in box.links:
            for address in v4(link) or [""]:
                y += LINE
                self.text(box.x + 10, y, f"{link['name']} {address}", "pic-mono")

    def _draw_direct(self, card: Card) -> None:
        """Draw veth pairs between boxes: straight between neighbours, otherwise above."""
        by_name = {box.name: box for box in card.boxes}
        for one, other in card.direct:
            a, b = sorted((by_name[one[0]], by_name[other[0]]), key=lambda box: box.x)
            names = dict((one, other))
            ya, yb = (self._row(box, names[box.name]) for box in (a, b))
            if card.boxes.index(b) - card.boxes.index(a) == 1:
                middle = (a.x + a.width + b.x) / 2
                points = [(a.x + a.width, ya), (middle, ya), (middle, yb), (b.x, yb)]
            else:
                top = self.y_boxes - 10
                xa, xb = a.x + a.width / 2, b.x + b.width / 2
                points = [(xa, self.y_boxes), (xa, top), (xb, top), (xb, self.y_boxes)]
            self.line(points, "pic-wire")
            self._pill((points[1][0] + points[2][0]) / 2, (points[1][1] + points[2][1]) / 2, "veth")

    def _row(self, box: Box, name: str) -> float:
        """Return the height at which a box's link is written."""
        y = self.y_boxes + 16 + len(box.notes) * LINE
        for link in box.links:
            y += LINE
            if link["name"] == name:
                break
            y += LINE * (max(1, len(v4(link))) - 1)
        return y

    def _wires(self) -> float:
        """Draw the links between two nodes below the cards; return the edge of the last one.

        Short ones are nearest to the cards, and links side by side share a height.
        """
        between = []
        for wire in self.graph.get("wires", ()):
            (a, one), (b, other) = ((self._outlet(end), end["up"]) for end in wire)
            if a is not None and b is not None:
                kind = "pic-wire" if one and other else "pic-wire pic-down"
                between.append((min(a, b), max(a, b), kind))
        lanes: list[list[tuple[float, float]]] = []
        top = self.y_devices + self.devices_height
        for left, right, kind in sorted(between, key=lambda wire: (wire[1] - wire[0], wire)):
            free = (
                index
                for index, lane in enumerate(lanes)
                if all(right < start or end < left for start, end in lane)
            )
            number = next(free, len(lanes))
            if number == len(lanes):
                lanes.append([])
            lanes[number].append((left, right))
            y = self.y_end + (number + 1) * LANE
            self.line([(left, top), (left, y), (right, y), (right, top)], kind)
        return self.y_end + len(lanes) * LANE

    def _outlet(self, end: Mapping[str, Any]) -> float | None:
        """Return where a link leaves the card of a node; None for an end outside of the nodes."""
        card = next((card for card in self.cards if card.name == end["at"]), None)
        if card is None:
            return None
        for device in card.devices:
            if device.title == end["interface"]:
                return device.x + device.width / 2
        return card.x + card.width / 2

    def _places(self) -> Iterator[tuple[list[float], str, str]]:
        """Yield the bridges and other places outside of the nodes, with the links to them."""
        taps: dict[str, list[float]] = {}
        for wire in self.graph.get("wires", ()):
            for end, peer in (wire, wire[::-1]):
                x, other = self._outlet(end), self._outlet(peer)
                if x is not None and other is None:
                    taps.setdefault(peer["at"], []).append(x)
        yield from ((found, name, "pic-network") for name, found in taps.items())

    def _buses(self, top: float) -> float:
        """Draw overlay, networks and bridges below ``top``; return their bottom edge."""
        _ = self.translate
        found = list(self._places())
        for one in tunnels(self.graph):
            taps = self._taps(_is_among(one["devices"]))
            if len(taps) > 1:
                found.append((taps, f"{one['name']} {one['about']}", "pic-overlay"))
        for network in self.graph["networks"]:
            if taps := self._taps(_joins(network)):
                words = f"{network['name']} {network['subnet']}".rstrip()
                if network.get("uplink"):  # a record of testbed 0.2 does not tell
                    words += f" · {_('uplink')}"
                found.append((taps, words, "pic-network"))
        # The lowest first: lines that cross it on their way down must not cross out its words.
        for index, (taps, words, kind) in reversed(list(enumerate(found, 1))):
            self._bus(taps, top + index * BUS, words, kind)
        return top + len(found) * BUS + (24 if found else 0)

    def _services(self, top: float) -> float:
        """Draw a card of the services below all; return its bottom edge."""
        services = self.graph.get("services") or ()
        if not services:
            return top
        _ = self.translate
        lines = [
            f"{one['name']}  {' '.join([*one['addresses'], *one['ports']])}"
            f" → {', '.join(one['backends']) or _('no backend')}"
            for one in services
        ]
        wide = max(width(line, NARROW) for line in lines) + 2 * PAD
        high = len(lines) * SMALL_LINE + 36
        self.width = max(self.width, wide + 2)
        self.rect(1, top + GAP, wide, high, "pic-node", radius=10)
        self.text(1 + PAD, top + GAP + 20, _("services"), "pic-title")
        for row, line in enumerate(lines, 1):
            self.text(1 + PAD, top + GAP + 22 + row * SMALL_LINE, line, "pic-small")
        return top + GAP + high

    def _taps(self, wanted: Callable[[str, Link], bool]) -> list[float]:
        return [
            device.x + device.width / 2
            for card in self.cards
            for device in card.devices
            if device.link is not None and wanted(card.name, device.link)
        ]

    def _bus(self, taps: list[float], y: float, words: str, kind: str) -> None:
        for x in taps:
            self.line([(x, self.y_devices + self.devices_height), (x, y)], f"pic-tap {kind}")
        left, right = min(taps) - 24, max(taps) + 24
        if len(taps) == 1:
            right = left + 48
        self.line([(left, y), (right, y)], f"pic-bus {kind}")
        middle = (left + right) / 2
        self.text(middle, y + 17, words, "pic-small halo", anchor="middle")

    # -- elements

    def _pill(self, x: float, y: float, words: str) -> None:
        wide = width(words, NARROW) + 12
        self.rect(x - wide / 2, y - 9, wide, 18, "pic-pill", radius=9)
        self.text(x, y + 4, words, "pic-small", anchor="middle")


def _bridge_words(bridge: Link) -> str:
    name = bridge["name"]
    if network := bridge.get("network"):
        name = f"{network} ({name})"
    return " · ".join([name, *v4(bridge), f"MTU {bridge['mtu']}"])
