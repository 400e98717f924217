"""Addresses and networks of both IP families, MAC addresses, and lists that may be one value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
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
        value = read.matching(at, keys.ADDRESS6, wanted, hint)
        if at is None or value is None:
            return None
        try:
            found = IPv6Address(value)
        except ValueError:
            read.problems.add(at, wanted, quote(value), hint)
            return None
        if found.is_multicast:
            read.problems.add(at, wanted, f"{value}, a multicast address", "use another")
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
        wanted = "an IPv6 network, like fd00:1::/64"
        value = read.text(at, wanted)
        if value is None:
            return None
        low, high = BITS6
        try:
            # Without a prefix the library would take all bits.
            found = IPv6Network(value if "/" in value else "", strict=False)
        except ValueError:
            read.problems.add(at, wanted, quote(value), "add the prefix, like /64")
            return None
        if not low <= found.prefixlen <= high:
            read.problems.add(at, f"a prefix of {low} to {high} bits", quote(value), "change it")
        elif found.is_multicast or found.is_link_local or found.is_loopback:
            hint = "use a private one of fd00::/8 (RFC 4193)"
            read.problems.add(at, "an IPv6 network for hosts", quote(value), hint)
        elif found.network_address != IPv6Address(value.partition("/")[0]):
            hint = f"write {found}; the bits after the prefix are for hosts"
            read.problems.add(at, "a network's own address", quote(value), hint)
        else:
            return found
        return None

    def plain(self, value: Network) -> str:
        return str(value)


class Mac(Shape[str]):
    """A MAC address of one host, in lower case."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.MAC)

    def read(self, read: Reader, at: Tree | None) -> str | None:
        wanted = "a MAC address, like 02:00:00:00:00:10"
        hint = "write six pairs of hexadecimal digits with colons between, in quotes"
        value = read.matching(at, keys.MAC, wanted, hint)
        if at is None or value is None:
            return None
        # The lowest bit of the first octet marks a group address (IEEE 802).
        if int(value[:2], 16) & 1:
            read.problems.add(at, wanted, f"{value}, a multicast address", "begin it with 02")
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
class Values(Shape[dict[str, str]]):
    """Texts by names, both of them matching patterns."""

    names: Shape[str]
    value: Shape[str]
    wanted: str

    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "propertyNames": self.names.schema(),
            "additionalProperties": self.value.schema(),
        }

    def read(self, read: Reader, at: Tree | None) -> dict[str, str] | None:
        found = read.table(at, self.wanted)
        out = {}
        for entry in found.entries.values() if found else ():
            name = self.names.read(read, entry.key)
            value = self.value.read(read, entry.value)
            if name is not None and value is not None:
                out[name] = value
        return out if found else None

    def plain(self, value: Any) -> dict[str, str]:
        return dict(value)
