"""The networks of a container: their names, and its address and names on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any

from testbed.topology import keys, tree
from testbed.topology.declare import (
    Block,
    Composed,
    Draft,
    key,
    keys_of,
    read_block,
    schema_of,
)
from testbed.topology.families import Address6, Mac, Plainly, Values
from testbed.topology.shapes import (
    INTERFACE_NAME,
    Address,
    Integer,
    Items,
    Pattern,
    table,
    whole,
)
from testbed.topology.tree import quote

if TYPE_CHECKING:
    from testbed.topology.tree import Tree

#: Names of Docker's own networks, each with the other way to say it, or none.
BRIDGE = "bridge"  #: Docker's default network, docker0
OWN = ("host", "none", "default")
NETWORK = Pattern(
    keys.DOCKER_NAME,
    "the name of a Docker network of letters, digits and '_', '-', '.'",
    "docker: {networks: {NAME: {}}} declares one",
    keys.LABEL_MAX,
    "a Docker network",
)
#: Driver options and other settings, as in Docker's own files.
OPTIONS = Values(
    Pattern(keys.OPTION, "the name of an option", "write it as Docker does"),
    Plainly("an option's value as text, number, true or false", "write one value"),
    "a mapping of options",
)


@dataclass(frozen=True, slots=True)
class Attachment(Block):
    """A container's place on a network; None and () leave it to Docker."""

    name: str
    ipv4_address: IPv4Address | None = key(
        Address(), "Fixed IPv4 address in a subnet of the network.", default=None
    )
    ipv6_address: IPv6Address | None = key(
        Address6(), "Fixed IPv6 address in a subnet of the network.", default=None
    )
    mac_address: str | None = key(Mac(), "MAC address of the container's interface.", default=None)
    aliases: tuple[str, ...] = key(
        Items(Pattern(keys.HOST_NAME, "a host name", "write a DNS name"), "a list of names"),
        "More names of the container for others on the network.",
        default=(),
    )
    gw_priority: int | None = key(
        Integer("a priority", -(1 << 31), (1 << 31) - 1),
        "The default route goes through the network with the highest priority. Default: 0. "
        "Engine 28 or later.",
        default=None,
    )
    interface_name: str | None = key(
        INTERFACE_NAME,
        "Name of the interface in the container. Default: ethN. Engine 28 or later.",
        default=None,
    )
    driver_opts: Mapping[str, str] = key(
        OPTIONS, "Options of the network's driver for this container.", default={}
    )

    @property
    def addresses(self) -> tuple[IPv4Address | IPv6Address, ...]:
        return tuple(one for one in (self.ipv4_address, self.ipv6_address) if one is not None)

    def __str__(self) -> str:
        words = [*map(str, self.addresses), *([self.mac_address] if self.mac_address else [])]
        if self.aliases:
            words.append(f"alias {', '.join(self.aliases)}")
        if self.gw_priority is not None:
            words.append(f"gateway priority {self.gw_priority}")
        if self.interface_name is not None:
            words.append(f"interface {self.interface_name}")
        return " ".join([self.name, *([f"({', '.join(words)})"] if words else [])])


class Attachments(Composed):
    """Names of networks in a list, or as a mapping with settings, as in Compose."""

    def schema(self) -> dict[str, Any]:
        names = whole(keys.DOCKER_NAME, maxLength=keys.LABEL_MAX)
        one = {"anyOf": [schema_of(Attachment), {"type": "null"}]}
        return {
            "anyOf": [
                {"type": "array", "items": names, "uniqueItems": True, "minItems": 1},
                table(names, one) | {"minProperties": 1},
            ]
        }

    def read_in(self, draft: Draft, at: Tree) -> dict[str, Attachment] | None:
        read = draft.read
        found: dict[str, Attachment] = {}
        if isinstance(at, tree.Sequence):
            for item in at.items:
                name = NETWORK.read(read, item)
                if name in found:
                    read.problems.add(
                        item, "each network once", f"{quote(name)} again", "remove it"
                    )
                elif name is not None:
                    found[name] = Attachment(name)
            empty = not at.items
        else:
            hint = "write a list of names, or a mapping of names to settings"
            wanted = "the names of Docker networks"
            body = read.table(at, wanted, empty=False, hint=hint)
            for entry in body.entries.values() if body else ():
                name, value = NETWORK.read(read, entry.key), entry.value
                if isinstance(value, tree.Scalar) and value.value is None:  # as in Compose
                    part: Attachment | None = Attachment(entry.key.text)
                elif isinstance(value, tree.Mapping):
                    part = read_block(draft, Attachment, value, name=entry.key.text)
                else:
                    read.mapping(value, keys_of(Attachment))
                    part = None
                if name is not None and part is not None:
                    found[name] = part
            empty = body is not None and not body.entries
        if empty:
            hint = "leave the key out for Docker's bridge, or write 'network: none'"
            read.problems.add(at, "at least one network", "none", hint)
        return found or None

    def plain(self, value: Mapping[str, Attachment]) -> dict[str, Any]:
        return {name: one.to_dict() for name, one in value.items()}
