"""Forms of values in a topology file: how each one is described, read and written.

A :class:`Shape` is given to :func:`testbed.topology.declare.key`. The JSON schema, the reader and
``to_dict`` use it, so a form of values is declared once.

Shapes are dataclasses for their ``__init__`` alone: each more method that is generated costs every
command as much as reading a small topology.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from testbed import owner
from testbed.faults.model import KINDS, Fault, Kind, Unreadable, parse
from testbed.topology import keys, reserved, tree
from testbed.topology.tree import nearest, quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.reserved import Reserved
    from testbed.topology.tree import Tree

T = TypeVar("T")
#: A network of either IP family.
N = TypeVar("N", IPv4Network, IPv6Network)
Words = Sequence[str] | Callable[[], Sequence[str]]


def whole(pattern: str, **more: Any) -> dict[str, Any]:
    """Return the JSON schema of a text that matches a pattern completely."""
    return {"type": "string", "pattern": f"^({pattern})$", **more}


def table(names: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of a mapping with names as keys."""
    return {"type": "object", "propertyNames": dict(names), "additionalProperties": dict(values)}


def block(properties: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return the JSON schema of a mapping with these keys, and those that are ignored."""
    return {
        "type": "object",
        "properties": dict(properties),
        **more,
        "patternProperties": {f"^{keys.EXTENSION}": {}},
        "additionalProperties": False,
    }


class Shape(ABC, Generic[T]):
    """A form of values."""

    @abstractmethod
    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of a value."""

    @abstractmethod
    def read(self, read: Reader, at: Tree | None) -> T | None:
        """Return the value, or None for a missing or an invalid one.

        An invalid value is added to the reader's problems.
        """

    def plain(self, value: T) -> Any:
        """Return a value in the form of a file."""
        return value


class Text(Shape[str]):
    """Any text."""

    def schema(self) -> dict[str, Any]:
        return {"type": "string"}

    def read(self, read: Reader, at: Tree | None) -> str | None:
        return read.text(at)


@dataclass(eq=False, repr=False)
class Name(Shape[str]):
    """A new name for ``what``, which matches a pattern and is not taken."""

    what: str
    pattern: str
    limit: int
    taken: tuple[Reserved, ...] = ()

    def schema(self) -> dict[str, Any]:
        more = reserved.schema(self.taken) if self.taken else {}
        return whole(self.pattern, maxLength=self.limit) | more

    def read(self, read: Reader, at: Tree | None) -> str | None:
        if at is None:
            return None
        return read.name(at, self.what, self.pattern, self.limit, taken=self.taken)


@dataclass(eq=False, repr=False)
class Reference(Shape[str]):
    """The name of another part of the file; a rule checks that it exists.

    With a ``hint``, a text that can't be such a name gets it.
    """

    to: Name
    wanted: str
    hint: str = ""

    def schema(self) -> dict[str, Any]:
        return self.to.schema()

    def read(self, read: Reader, at: Tree | None) -> str | None:
        def correct(text: str) -> str:
            to = self.to
            good = re.fullmatch(to.pattern, text) and not reserved.why(text, to.taken)
            return "" if good or not self.hint else self.hint

        return read.text(at, self.wanted, correct)


class Flag(Shape[bool]):
    """``true`` or ``false``."""

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}

    def read(self, read: Reader, at: Tree | None) -> bool | None:
        return read.boolean(at)


@dataclass(eq=False, repr=False)
class Integer(Shape[int]):
    """An integer from ``low`` to ``high``."""

    what: str
    low: int
    high: int

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.low, "maximum": self.high}

    def read(self, read: Reader, at: Tree | None) -> int | None:
        return read.integer(at, self.what, self.low, self.high)


class Cpus(Shape[float]):
    """A number of CPUs."""

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": keys.MIN_CPUS}

    def read(self, read: Reader, at: Tree | None) -> float | None:
        return read.cpus(at)


@dataclass(eq=False, repr=False)
class Memory(Shape[int]):
    """An amount of memory of ``least`` bytes or more, in bytes."""

    least: int = keys.MIN_MEMORY

    def schema(self) -> dict[str, Any]:
        return {
            "anyOf": [{"type": "integer", "minimum": self.least}, whole(keys.MEMORY)],
        }

    def read(self, read: Reader, at: Tree | None) -> int | None:
        return read.memory(at, self.least)


@dataclass(eq=False, repr=False)
class Duration(Shape[float]):
    """A duration, in seconds."""

    least: float = 0.001

    def schema(self) -> dict[str, Any]:
        return whole(keys.DURATION)

    def read(self, read: Reader, at: Tree | None) -> float | None:
        return read.duration(at, self.least)

    def plain(self, value: float) -> str:
        return duration(value)


def duration(seconds: float) -> str:
    """Return a duration as in a topology file, rounded to milliseconds.

    >>> duration(90), duration(0.5)
    ('90s', '500ms')
    """
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{round(seconds * 1000)}ms"


@dataclass(eq=False, repr=False)
class Choice(Shape[Any]):
    """One of a few words; a function returns those that are not known at import."""

    what: str
    words: Words

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(self.words() if callable(self.words) else self.words)

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.known)}

    def read(self, read: Reader, at: Tree | None) -> str | None:
        return read.choice(at, self.what, self.known) if at is not None else None


@dataclass(eq=False, repr=False)
class Choices(Shape[tuple[Any, ...]]):
    """A list of known words, each at most once."""

    wanted: str
    what: str
    words: Words

    def schema(self) -> dict[str, Any]:
        known = Choice(self.what, self.words).schema()
        return {"type": "array", "items": known, "uniqueItems": True}

    def read(self, read: Reader, at: Tree | None) -> tuple[str, ...] | None:
        if at is None:
            return None
        article = "an" if self.what[0] in "aeiou" else "a"
        one = Choice(f"{article} {self.what}", self.words)
        found: dict[str, None] = {}
        for item in read.items(at, self.wanted):
            name = one.read(read, item)
            if name in found:
                seen = f"{quote(name)} again"
                read.problems.add(item, f"each {self.what} once", seen, "remove one")
            elif name:
                found[name] = None
        return tuple(found)

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)


class Address(Shape[IPv4Address]):
    """An IPv4 address without a prefix."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.ADDRESS)

    def read(self, read: Reader, at: Tree | None) -> IPv4Address | None:
        return read.address(at)

    def plain(self, value: IPv4Address) -> str:
        return str(value)


@dataclass(eq=False, repr=False)
class Prefixed(Shape[IPv4Interface]):
    """An IPv4 address with a prefix of at most ``longest`` bits."""

    longest: int = 32

    def schema(self) -> dict[str, Any]:
        return whole(keys.PREFIXED)

    def read(self, read: Reader, at: Tree | None) -> IPv4Interface | None:
        return read.interface(at, self.longest)

    def plain(self, value: IPv4Interface) -> str:
        return str(value)


@dataclass(eq=False, repr=False)
class Subnet(Shape[IPv4Network]):
    """An IPv4 network with a prefix of ``low`` to ``high`` bits.

    ``six`` is the key beside it for IPv6, if there is one.
    """

    low: int
    high: int
    six: str = ""

    def schema(self) -> dict[str, Any]:
        return whole(keys.PREFIXED)

    def read(self, read: Reader, at: Tree | None) -> IPv4Network | None:
        if self.six and isinstance(at, tree.Scalar) and re.match(keys.ADDRESS6, at.text):
            hint = f'write {self.six}: "{at.text}"'
            read.problems.add(at, "an IPv4 network, like 10.168.0.0/24", quote(at.text), hint)
            return None
        return read.network(at, self.low, self.high)

    def plain(self, value: IPv4Network) -> str:
        return str(value)


@dataclass(eq=False, repr=False)
class Subnet6(Shape[IPv6Network]):
    """An IPv6 network with a prefix of ``low`` to ``high`` bits."""

    low: int
    high: int

    def schema(self) -> dict[str, Any]:
        return whole(keys.PREFIXED6)

    def read(self, read: Reader, at: Tree | None) -> IPv6Network | None:
        return read.network6(at, self.low, self.high)

    def plain(self, value: IPv6Network) -> str:
        return str(value)


@dataclass(eq=False, repr=False)
class Table(Shape[Mapping[str, T]]):
    """Values by name; a rule checks that the names exist."""

    names: Shape[str]
    value: Shape[T]
    wanted: str = "a mapping"

    def schema(self) -> dict[str, Any]:
        return table(self.names.schema(), self.value.schema())

    def read(self, read: Reader, at: Tree | None) -> dict[str, T] | None:
        found = read.table(at, self.wanted)
        if found is None:
            return None
        values = {name: self.value.read(read, e.value) for name, e in found.entries.items()}
        return {name: value for name, value in values.items() if value is not None}

    def plain(self, value: Mapping[str, T]) -> dict[str, Any]:
        return {name: self.value.plain(one) for name, one in value.items()}


@dataclass(eq=False, repr=False)
class OneOrEach(Shape[Any]):
    """One value for all nodes, or a mapping with a value for each node."""

    value: Shape[Any]

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [self.value.schema(), table(NODE_NAME.schema(), self.value.schema())]}

    def read(self, read: Reader, at: Tree | None) -> Any:
        if isinstance(at, tree.Mapping):
            return Table(NODE_NAME, self.value).read(read, at)
        return self.value.read(read, at)

    def plain(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return Table(NODE_NAME, self.value).plain(value)
        return self.value.plain(value)


@dataclass(eq=False, repr=False)
class Items(Shape[tuple[T, ...]]):
    """A list; invalid items are left out, and those that repeat one if each is ``unique``."""

    value: Shape[T]
    wanted: str
    unique: bool = False

    def schema(self) -> dict[str, Any]:
        more = {"uniqueItems": True} if self.unique else {}
        return {"type": "array", "items": self.value.schema(), **more}

    def read(self, read: Reader, at: Tree | None) -> tuple[T, ...] | None:
        if at is None:
            return None
        found: list[T] = []
        for item in read.items(at, self.wanted):
            value = self.value.read(read, item)
            if self.unique and value in found:
                seen = f"{quote(str(self.value.plain(value)))} again"
                read.problems.add(item, f"{self.wanted}, each once", seen, "remove one")
            elif value is not None:
                found.append(value)
        return tuple(found)

    def plain(self, value: tuple[T, ...]) -> list[Any]:
        return [self.value.plain(one) for one in value]


@dataclass(eq=False, repr=False)
class Command(Shape[tuple[str, ...]]):
    """A command and its arguments."""

    hint: str = "leave the key out for the image's own command"

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "items": {"type": "string"}, "minItems": 1}

    def read(self, read: Reader, at: Tree | None) -> tuple[str, ...] | None:
        if at is None:
            return None
        items = read.items(at, "a list: the command and its arguments")
        if isinstance(at, tree.Sequence) and not items:
            read.problems.add(at, "a command", "an empty list", self.hint)
        words = [read.text(item, "an argument as text") for item in items]
        return tuple(word for word in words if word is not None)

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)


class Interface(Shape[str]):
    """A network of a node, or the name of its port there."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.INTERFACE, maxLength=keys.INTERFACE_MAX)

    def read(self, read: Reader, at: Tree | None) -> str | None:
        known = tree.keys_at(read.root, "networks") if read.root else ()

        def correct(text: str) -> str:
            return "" if text in known else nearest(text, known)

        return read.text(at, "the name of a network, or ethN", correct) or None


class FilePath(Shape[str]):
    """A path on this machine, relative to :attr:`Topology.folder` unless it is absolute."""

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "minLength": 1}

    def read(self, read: Reader, at: Tree | None) -> str | None:
        return read.path(at)


class UsersPath(FilePath):
    """A path of the user who called sudo, or of this user; that user's home folder is ~."""

    def read(self, read: Reader, at: Tree | None) -> str | None:
        return read.path(at, expand=owner.expanded)


@dataclass(eq=False, repr=False)
class Paths(Shape[tuple[str, ...]]):
    """One file of this machine, or several, relative to the folder of the topology file."""

    what: str  #: for one file, with its article

    def schema(self) -> dict[str, Any]:
        one = {"type": "string", "minLength": 1}
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}

    def read(self, read: Reader, at: Tree | None) -> tuple[str, ...] | None:
        if at is None:
            return None
        items = at.items if isinstance(at, tree.Sequence) else (at,)
        if not items:
            read.problems.add(at, self.what, "an empty list", "name one, or remove the key")
        found = [self._path(read, item) for item in items]
        return tuple(path for path in found if path is not None)

    def _path(self, read: Reader, at: Tree) -> str | None:
        path = read.path(at, f"{self.what}, or a list of such paths")
        if path is None:
            return None
        # A record may outlive the file.
        folder = read.problems.folder_of(at)
        if at.line and not os.path.isfile(os.path.join(folder, path)):  # noqa: PTH113, PTH118  of any text
            hint = f"check the path, which is relative to {folder}"
            read.problems.add(at, self.what, f"no file {quote(path)}", hint)
            return None
        return path

    def plain(self, value: tuple[str, ...]) -> Any:
        return value[0] if len(value) == 1 else list(value)


class Variables(Shape[Mapping[str, str]]):
    """Environment variables."""

    @property
    def names(self) -> Pattern:
        wanted = "a variable of letters, digits and '_', no digit first"
        return Pattern(keys.VARIABLE, wanted, "rename it")

    def schema(self) -> dict[str, Any]:
        return table(self.names.schema(), {"type": "string"})

    def read(self, read: Reader, at: Tree | None) -> dict[str, str] | None:
        out = {}
        found = read.table(at, "a mapping of variables")
        for entry in found.entries.values() if found else ():
            name = self.names.read(read, entry.key)
            value = read.text(entry.value, "a variable's value as text")
            if name is not None and value is not None:
                out[name] = value
        return out if found else None

    def plain(self, value: Mapping[str, str]) -> dict[str, str]:
        return dict(value)


class Data(Shape[Mapping[str, Any]]):
    """A mapping of any values that JSON has."""

    def schema(self) -> dict[str, Any]:
        return {"type": "object"}

    def read(self, read: Reader, at: Tree | None) -> dict[str, Any] | None:
        found = read.table(at)
        if found is None:
            return None
        return {name: read.data(entry.value) for name, entry in found.entries.items()}

    def plain(self, value: Mapping[str, Any]) -> dict[str, Any]:
        return dict(value)


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of all parts; of several values the last one counts.

    Mappings, such as ``features`` of daemon.json, are merged by their keys. ``None`` removes a key.
    """
    out: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            before = out.get(name)
            both = isinstance(before, Mapping) and isinstance(value, Mapping)
            out[name] = {**before, **value} if both else value  # type: ignore[dict-item]
    return {name: value for name, value in out.items() if value is not None}


@dataclass(eq=False, repr=False)
class Pattern(Shape[str]):
    """A text that matches a pattern completely, and has at most ``limit`` characters."""

    pattern: str
    wanted: str
    hint: str
    limit: int = 0
    what: str = ""  #: names the value in the problem of one that is too long

    def schema(self) -> dict[str, Any]:
        return whole(self.pattern, **({"maxLength": self.limit} if self.limit else {}))

    def read(self, read: Reader, at: Tree | None) -> str | None:
        found = read.matching(at, self.pattern, self.wanted, self.hint)
        if at is not None and found is not None and 0 < self.limit < len(found):
            wanted = f"{self.what} of at most {self.limit} characters"
            read.problems.add(at, wanted, f"one with {len(found)}", "shorten it")
        return found


@dataclass(eq=False, repr=False)
class Amount(Shape[Fault]):
    """An amount of a fault of this kind, as a fault of a node without a name."""

    kind: str

    def schema(self) -> dict[str, Any]:
        return whole(keys.AMOUNTS[self.kind])

    def read(self, read: Reader, at: Tree | None) -> Fault | None:
        example = KINDS[cast("Kind", self.kind)].example.split()[2]
        text = read.text(at, f"a {self.kind}, like {example}")
        if at is None or text is None:
            return None
        try:
            return parse([self.kind, "node", *text.split()])
        except Unreadable as error:
            read.problems.add(at, error.wanted, error.seen, error.hint)
            return None

    def plain(self, value: Fault) -> str:
        return value.amount


LAB_NAME = Name("a lab", keys.LABEL, keys.LAB_MAX)
NODE_NAME = Name("a node", keys.LABEL, keys.NODE_MAX, reserved.NODES)
NETWORK_NAME = Name("a network", keys.LABEL, keys.NETWORK_MAX)
INTERFACE_NAME = Name("an interface", keys.INTERFACE, keys.INTERFACE_MAX, reserved.LINKS)
#: 68 is the least of IPv4 (RFC 791), the highest is that of veth (drivers/net/veth.c).
MTU_BYTES = Integer("an MTU in bytes", 68, 65535)
#: Both addresses of a /127 are of hosts (RFC 6164).
SUBNET6 = Subnet6(8, 127)
IMAGE = Pattern(
    keys.IMAGE,
    "an image, like nginx or registry.example:5000/team/web:1.2",
    "a repository is written in lower case, its tag after a colon",
    keys.IMAGE_MAX,
    "an image",
)
#: The node that a part is on.
NODE = Reference(NODE_NAME, "the name of a node", "write the name of a node")
#: The network for the traffic between nodes: the name or ethN, for all nodes or by node.
UNDERLAY = OneOrEach(Interface())


def number(
    read: Reader, at: Tree, digits: str, what: str, *, low: int = 1, high: int = 65535
) -> int | None:
    """Return the number in a text of digits.

    It has no leading zeros, and is from ``low`` to ``high``.
    """
    found = int(digits)
    if not low <= found <= high:
        read.problems.add(at, f"{what} from {low} to {high}", quote(digits), "change it")
    elif digits != str(found):
        read.problems.add(at, f"{what} without leading zeros", quote(digits), f"write {found}")
    else:
        return found
    return None


def by_node(value: Shape[T], wanted: str) -> Table[T]:
    """Return the shape of a mapping with node names as keys."""
    return Table(NODE_NAME, value, wanted)


def next_free(
    members: Iterable[str],
    network: N,
    given: Mapping[str, N],
    *,
    length: int,
) -> dict[str, N]:
    """Return the given subnets, and the next free ones for other members.

    The new ones have the given prefix length. The network's first subnet is not used, as in flannel
    (SubnetMin, pkg/subnet/config.go). Members for which there is no room are left out.
    """
    names = list(members)
    missing = [name for name in names if name not in given]
    if not missing:
        return dict(given)
    taken: list[Any] = [next(network.subnets(new_prefix=length)), *given.values()]
    free = (
        one
        for one in network.subnets(new_prefix=length)
        if not any(one.overlaps(other) for other in taken)
    )
    both = {**given, **dict(zip(missing, free, strict=False))}
    return {name: both[name] for name in names if name in both} | dict(given)
