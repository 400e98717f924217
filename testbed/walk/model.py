"""A walk: what a packet met on its way through a lab, hop by hop, as plain values.

A walk is made of :class:`Leg` objects: the way there, and with ``--reply`` the way back.
A leg is an ordered list of :class:`Hop` objects. A hop is one place that the packet was at: a
device of a network namespace of a machine, a chain of netfilter, a decision of routing, a
translation of conntrack. Its :class:`Fact` objects give the reasons, each with its
:data:`Origin`. Nothing here reads a lab or prints; a walk that was saved as JSON is the same
value when it is read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import os

    from testbed.walk.compare import Path

FORMAT = 1  #: of :meth:`Walk.to_dict`; one more when a field changes its meaning

Origin = Literal["seen", "asked", "inferred"]
"""The origin of a fact.

``seen``: a capture, a trace event or a conntrack event of this packet. ``asked``: the answer of
the kernel in that namespace at that moment, as `ip route get ... fibmatch` gives it.
``inferred``: neither, but the only way between the two hops beside it.
"""

Kind = Literal["process", "device", "chain", "conntrack", "route", "blind", "end"]
"""The kind of a hop.

``process``: the program that sends or receives. ``device``: an interface, in (``point`` "in") or
out ("out"). ``chain``: a base chain of netfilter and the rules that the packet met from there.
``conntrack``: a translation of addresses or ports. ``route``: a look at the routing tables.
``blind``: a place where nothing can be seen; a fact says why. ``end``: the packet was lost here.
"""


@dataclass(frozen=True, slots=True)
class View:
    """The headers of a packet at a hop; what it does not have is "" or 0.

    ``protocol`` is "icmp", "icmpv6", "tcp", "udp", "arp", or the number of the protocol as text.
    ``sport`` and ``dport`` are the ports of TCP and UDP; for an echo, ``sport`` is its id
    and ``dport`` 0. ``inside`` is the packet that this one carries (VXLAN, flannel's udp
    backend, IP in IP), and ``carrier`` names the encapsulation: "vxlan 1", "flannel-udp", "ipip".
    ``length`` is in octets, as the device handed it on (an offloaded segment may be longer
    than the MTU). ``frame`` is the frame itself, for pcapng.
    """

    src_mac: str = ""
    dst_mac: str = ""
    src: str = ""
    dst: str = ""
    protocol: str = ""
    sport: int = 0
    dport: int = 0
    flags: tuple[str, ...] = ()  #: of TCP: "SYN", "ACK", ...
    ttl: int = 0  #: or hop limit
    ip_id: int = 0
    mark: int = 0
    length: int = 0
    carrier: str = ""
    inside: View | None = None
    frame: bytes = b""


@dataclass(frozen=True, slots=True)
class Change:
    """A header field that differs from the hop before, in the field's own name."""

    field: str  #: a field of :class:`View`; those of the packet inside are "inside.src"
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of netfilter that the packet met.

    ``text`` is the rule as `iptables-save` or `nft list` prints it, without counters;
    ``position`` counts from 1 within the chain; ``verdict`` is "accept", "drop", "jump X",
    "return", "continue", "policy accept" ..., or the target's name ("DNAT", "MASQUERADE").
    """

    family: str  #: "ip", "ip6", "inet", "bridge"
    table: str
    chain: str
    position: int
    text: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Fact:
    """One reason, in plain words, and how it is known.

    ``source`` names the command or the event, so that a reader can look for himself:
    "ip route get 10.0.0.2 fibmatch", "nftrace", "tcpdump", "conntrack -E".
    """

    text: str
    origin: Origin
    source: str = ""


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in a lab.

    ``space`` is "" for the machine's own network namespace, otherwise the name of the
    container, Pod or named namespace. ``interface`` is "" where no device is meant. With
    ``fabric`` it is what joins the machines, and ``machine`` is the network's name.
    """

    machine: str
    space: str = ""
    interface: str = ""
    fabric: bool = False

    def __str__(self) -> str:
        words = [self.machine, self.space] if self.space else [self.machine]
        return "/".join(words) + (f":{self.interface}" if self.interface else "")


@dataclass(frozen=True, slots=True)
class Hop:
    """One place on the way, in the order of cause and effect.

    ``seconds`` is the time since the request was sent, on the clock of ``spot.machine``; None
    where no time is known. It orders nothing: clocks of two machines may differ.
    """

    kind: Kind
    spot: Spot
    point: str = ""  #: "in", "out", a hook ("prerouting", ...), or ""
    seconds: float | None = None
    view: View | None = None
    changes: tuple[Change, ...] = ()
    rules: tuple[Rule, ...] = ()
    facts: tuple[Fact, ...] = ()

    @property
    def label(self) -> str:
        """A short name that two walks of the same way have in common.

        "nat POSTROUTING" for a chain, "node1:docker0 in" for a device, "route" for routing.
        """
        if self.kind == "chain" and self.rules:
            return f"{self.rules[0].table} {self.rules[0].chain}"
        if self.kind == "device":
            return f"{self.spot} {self.point}".strip()
        return self.kind


@dataclass(frozen=True, slots=True)
class Leg:
    """The way of one packet in one direction.

    ``arrived`` is False when the packet was lost; the last hop, of kind "end", says where
    and why. ``copies`` counts further packets that were sent for the same request
    (retransmissions) and are not shown.
    """

    direction: Literal["there", "back"]
    hops: tuple[Hop, ...]
    arrived: bool
    copies: int = 0


class Hops(list[str]):
    """The labels of a walk's hops; in pytest a failed assertion shows them as a path."""


@dataclass(frozen=True, slots=True, repr=False)
class Walk:
    """A request, and the ways of its packets.

    ``request`` says what was sent in one line: "icmp echo", "tcp 80", "http://...".
    ``warnings`` say what could not be seen, and where.
    """

    lab: str
    source: str  #: as typed
    target: str  #: as typed
    request: str
    started: str  #: when the request was sent, by the source's clock: RFC 3339, UTC
    legs: tuple[Leg, ...]
    names: Mapping[str, str]  #: an address of the lab to the name of its owner
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        from testbed.walk.render.words import loss

        where, why = next((loss(leg) for leg in self.legs if not leg.arrived), ("", ""))
        end = "arrived" if self.arrived else f"LOST at {where}" + (f": {why}" if why else "")
        return f"{self.source} → {self.target}, {self.request}: {end}"

    def __repr__(self) -> str:
        return f"<Walk {self}>"

    @property
    def hops(self) -> Hops:
        """The labels of all hops, for assertions in tests."""
        return Hops(hop.label for leg in self.legs for hop in leg.hops)

    @property
    def arrived(self) -> bool:
        """True if the packets of all legs arrived."""
        return all(leg.arrived for leg in self.legs)

    def to_dict(self) -> dict[str, Any]:
        """Return the walk as data for JSON; frames are base16 text."""
        data = {"format": FORMAT, **asdict(self), "arrived": self.arrived}
        return {key: _plain(value) for key, value in data.items()}

    def brief(self) -> str:
        """Return the walk as JSON on one line, without frames, for :meth:`from_dict`."""
        from testbed.walk.saved import brief

        return brief(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Walk:
        """Return the walk that :meth:`to_dict` gave.  Raises UsageError, which names the place."""
        from testbed.walk.saved import from_dict

        return from_dict(data)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Walk:
        """Read a walk that `testbed walk --json` wrote.  Raises UsageError with file and place."""
        from testbed.walk.saved import load

        return load(path)

    @property
    def path(self) -> Path:
        """The way alone, to compare with that of another walk: without times, MACs and ids."""
        from testbed.walk.compare import path

        return path(self)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.hex() if isinstance(value, bytes) else value
