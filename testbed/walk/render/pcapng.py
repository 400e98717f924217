"""A walk as one capture file: an interface for each place, and each hop's reason as a comment.

A reader such as Wireshark then shows one packet many times, in the order of its way. Times are
those of the places, which on several machines come from several clocks. Where one would run
backwards, it is moved to the time of the hop before, and a comment says so: readers sort by time.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from testbed.observe.pcapng import LINK_ETHERNET, LINK_RAW, Direction, Writer
from testbed.walk.render import words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from testbed.observe.pcapng import Output
    from testbed.walk.model import Hop, Leg, Walk

DIRECTIONS: dict[str, Direction] = {"in": "in", "out": "out"}


def write(walk: Walk, out: Output) -> int:
    """Write a walk into a file; return the number of packets, one for each hop with a frame.

    What was met at places without a frame, such as a rule, is in the comment of the next packet.
    """
    title = f"{walk.source} → {walk.target}, {walk.request}"
    file = Writer(out, names=walk.names, application="testbed walk", comment=title)
    begin = round(datetime.fromisoformat(walk.started).timestamp() * 1_000_000) * 1000
    numbers: dict[tuple[str, int], int] = {}
    count, latest = 0, 0
    for leg in walk.legs:
        waiting: list[str] = []
        packets = [hop for hop in leg.hops if hop.view and hop.view.frame]
        for hop in leg.hops:
            comments = list(_comments(hop))
            if hop.view is None or not hop.view.frame:
                waiting += comments
                continue
            link = LINK_ETHERNET if hop.view.src_mac or hop.view.dst_mac else LINK_RAW
            key = str(hop.spot), link
            if key not in numbers:
                numbers[key] = file.interface(key[0], link=link)
            at = latest if hop.seconds is None else begin + round(hop.seconds * 1e9)
            if at < latest:
                comments.append(f"time moved by {(latest - at) / 1e6:.3f} ms: another clock")
            latest = max(at, latest, begin)
            if hop is packets[-1]:
                comments += _after(leg, hop)
            file.packet(
                numbers[key],
                latest,
                hop.view.frame,
                length=max(hop.view.length, len(hop.view.frame)),
                direction=DIRECTIONS.get(hop.point, ""),
                comments=[*waiting, *comments],
            )
            waiting, count = [], count + 1
    return count


def _comments(hop: Hop) -> Iterator[str]:
    """Yield a comment on a hop: its place, and a line for each reason."""
    head = words.place(hop) if hop.spot.fabric else f"{hop.spot.machine}: {words.name(hop)}"
    if hop.spot.space:
        head = f"{hop.spot.machine}/{hop.spot.space}: {words.name(hop)}"
    origins = dict(zip(words.SIGNS.values(), words.SIGNS, strict=True))
    lines = [
        f"{note.text} ({origins[note.sign]})" if note.kind == "fact" else note.text
        for note in words.notes(hop)
    ]
    yield "\n".join([head, *lines])


def _after(leg: Leg, last: Hop) -> Iterator[str]:
    """Yield comments on the hops behind the last packet, and the result."""
    at = next(number for number, hop in enumerate(leg.hops) if hop is last)
    for hop in leg.hops[at + 1 :]:
        yield from _comments(hop)
    where, why = words.loss(leg)
    if not leg.arrived:
        yield f"LOST at {where}" + (f": {why}" if why else "")
