"""Addresses and networks of both IP families, MAC addresses, and lists that may be one value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from testbed.topology import keys, tree
from testbed.topology.shapes import Items, Shape, whole
from testbed.topology.tree import describe, quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

T = TypeVar("T")

Address: TypeAlias = "IPv4Address | IPv6Address"
Network: TypeAlias = "IPv4Network | IPv6Network"

#: Prefix lengths of networks with hosts.
BITS4, BITS6 = (8, 30), (16, 126)


class Address6(Shape[IPv6Address]):
    """An IPv6 address of a host, without a prefix."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.ADDRESS6)

    def read(self, read: Reader, at: Tree | None) -> IPv6Address | None:
        wanted = "an IPv6 address, like fd00:1::10"
        hint = "write groups of hexadecimal digits with colons between, without a prefix"
        found = read.address6(at)
        if at is not None and isinstance(found, IPv6Interface):
            read.problems.add(at, wanted, quote(str(found)), hint)
            return None
        return found

    def plain(self, value: IPv6Address) -> str:
        return str(value)


class AnyAddress(Shape[Address]):
    """An IPv4 or IPv6 address, without a prefix."""

    def schema(self) -> dict[str, Any]:
        return whole(f"{keys.ADDRESS}|{keys.ADDRESS6}")

    def read(self, read: Reader, at: Tree | None) -> Address | None:
        if isinstance(at, tree.Scalar) and ":" in at.text:
            return Address6().read(read, at)
        return read.address(at)

    def plain(self, value: Address) -> str:
        return str(value)


class AnyNetwork(Shape[Network]):
    """An IPv4 or IPv6 network."""

    def schema(self) -> dict[str, Any]:
        return whole(rf"{keys.PREFIXED}|{keys.ADDRESS6}/[0-9]{{1,3}}")

    def read(self, read: Reader, at: Tree | None) -> Network | None:
        if not (isinstance(at, tree.Scalar) and ":" in at.text):
            return read.network(at, *BITS4)
        return read.network6(at, *BITS6)

    def plain(self, value: Network) -> str:
        return str(value)


class Mac(Shape[str]):
    """The MAC address of one interface, in lower case."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.MAC)

    def read(self, read: Reader, at: Tree | None) -> str | None:
        wanted = "a MAC address, like 02:00:00:00:00:01"
        hint = "write six pairs of hexadecimal digits with colons between"
        value: str | None
        if isinstance(at, tree.Scalar) and re.fullmatch(keys.MAC, at.text):
            value = at.text  # also without quotes, where YAML 1.1 has numbers with colons
        else:
            value = read.matching(at, keys.MAC, wanted, hint)
        if at is None or value is None:
            return None
        # The lowest bit of the first byte marks a group (IEEE 802, section 8.2.2).
        if int(value[:2], 16) & 1 or not re.search("[1-9a-fA-F]", value):
            hint = "make its first byte even, and one byte not 0"
            read.problems.add(at, "the MAC address of one interface", value, hint)
            return None
        return value.lower()


@dataclass(eq=False, repr=False)
class OneOrMore(Shape[tuple[T, ...]]):
    """One value, or a list of values."""

    value: Shape[T]
    wanted: str

    def schema(self) -> dict[str, Any]:
        many = Items(self.value, self.wanted).schema() | {"minItems": 1}
        return {"anyOf": [self.value.schema(), many]}

    def read(self, read: Reader, at: Tree | None) -> tuple[T, ...] | None:
        if isinstance(at, tree.Sequence):
            if not at.items:
                read.problems.add(at, self.wanted, "an empty list", "leave the key out")
            return Items(self.value, self.wanted).read(read, at)
        found = self.value.read(read, at)
        return None if found is None else (found,)

    def plain(self, value: tuple[T, ...]) -> Any:
        all_ = [self.value.plain(one) for one in value]
        return all_[0] if len(all_) == 1 else all_


@dataclass(eq=False, repr=False)
class Plainly(Shape[str]):
    """A line of text that may be written as a number or as true or false, as in Compose.

    It matches a pattern completely, if there is one.
    """

    wanted: str
    hint: str
    pattern: str = ""
    boolean: bool = True  #: False for a text or a whole number alone

    def schema(self) -> dict[str, Any]:
        text = whole(self.pattern) if self.pattern else {"type": "string"}
        others = ("number", "boolean") if self.boolean else ("integer",)
        return {"anyOf": [text, *({"type": one} for one in others)]}

    def read(self, read: Reader, at: Tree | None) -> str | None:
        others: tuple[type, ...] = (int, float) if self.boolean else (int,)
        if isinstance(at, tree.Scalar) and isinstance(at.value, others):
            if isinstance(at.value, bool) and not self.boolean:
                read.problems.add(at, self.wanted, describe(at), self.hint)
                return None
            text = str(at.value).lower() if isinstance(at.value, bool) else at.text
            if re.fullmatch(self.pattern or ".*", text):
                return text
            read.problems.add(at, self.wanted, quote(text), self.hint)
            return None
        return read.matching(at, self.pattern or "[^\\0\\n]*", self.wanted, self.hint)


@dataclass(eq=False, repr=False)
class Values(Shape[dict[str, T]]):
    """Values by names that match a pattern."""

    names: Shape[str]
    value: Shape[T]
    wanted: str

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": self.names.schema(),
            "additionalProperties": self.value.schema(),
        }

    def read(self, read: Reader, at: Tree | None) -> dict[str, T] | None:
        found = read.table(at, self.wanted)
        out: dict[str, T] = {}
        for entry in found.entries.values() if found else ():
            name = self.names.read(read, entry.key)
            value = self.value.read(read, entry.value)
            if name is not None and value is not None:
                out[name] = value
        return out if found else None

    def plain(self, value: Any) -> dict[str, Any]:
        return {name: self.value.plain(one) for name, one in value.items()}
