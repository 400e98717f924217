"""Containers on nodes: their keys, and the forms of values that only they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias, cast

from testbed.topology import keys, reserved, tree
from testbed.topology.declare import Block, Draft, Nested, key
from testbed.topology.shapes import (
    IMAGE,
    NODE,
    Command,
    Duration,
    Integer,
    Items,
    Name,
    Pattern,
    Shape,
    Variables,
    number,
    whole,
)
from testbed.topology.tree import quote

if TYPE_CHECKING:
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

CONTAINER_NAME = Name("a container", keys.CONTAINER, keys.LABEL_MAX, reserved.CONTAINERS)
#: A port and its protocol.
Port: TypeAlias = "tuple[int, Literal['tcp', 'udp']]"


@dataclass(frozen=True, slots=True)
class Publish:
    """A published port: ``[address:]host_port:container_port/protocol``."""

    host_port: int
    container_port: int
    protocol: Literal["tcp", "udp"] = "tcp"
    address: IPv4Address | None = None

    def __str__(self) -> str:
        where = f"{self.address}:" if self.address else ""
        return f"{where}{self.host_port}:{self.container_port}/{self.protocol}"


class _Published(Shape[Publish]):
    """A published port."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.PUBLISH)

    def read(self, read: Reader, at: Tree | None) -> Publish | None:
        wanted = "a port as [address:]host_port:container_port[/tcp|/udp]"
        hint = 'like "8080:80" or "10.168.0.2:8080:80/udp"'
        value = read.matching(at, keys.PUBLISH, wanted, hint)
        if at is None or value is None:
            return None
        ports, _, protocol = value.partition("/")
        *address, host_port, container_port = ports.split(":")
        outer = number(read, at, host_port, "a port")
        inner = number(read, at, container_port, "a port")
        if outer is None or inner is None:
            return None
        try:
            ip = IPv4Address(address[0]) if address else None
        except ValueError:
            hint = "write four numbers from 0 to 255 with dots between"
            read.problems.add(at, "an IPv4 address", quote(address[0]), hint)
            return None
        # The default protocol is TCP, as in docker run.
        return Publish(outer, inner, cast("Literal['tcp', 'udp']", protocol or "tcp"), ip)

    def plain(self, value: Publish) -> str:
        return str(value)


class _Test(Shape[tuple[str, ...]]):
    """A health check's test; a single text is a shell command (CMD-SHELL), as in Compose."""

    hints: ClassVar[Mapping[str, str]] = {
        "CMD": "add a program after CMD",
        "CMD-SHELL": "write one line after CMD-SHELL, in quotes",
        "NONE": "write [NONE] alone to turn off the check",
    }

    def schema(self) -> dict[str, Any]:
        return {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        }

    def read(self, read: Reader, at: Tree | None) -> tuple[str, ...] | None:
        if isinstance(at, tree.Scalar):
            line = read.text(at)
            if line == "":
                read.problems.add(at, "a command", "none", "leave it out for the image's own")
            return ("CMD-SHELL", line) if line else None
        words = tuple(read.text(item) or "" for item in read.items(at, "a command line, or a list"))
        first = words[0] if words else ""
        if at is None or read.problems.touched(*at.path):
            return None
        length = {"NONE": 1, "CMD-SHELL": 2}.get(first, max(2, len(words)))
        if first not in keys.TESTS or len(words) != length:
            wanted = "[CMD, PROGRAM, ARGUMENT...], [CMD-SHELL, LINE] or [NONE]"
            hint = self.hints.get(first, "put CMD before a program and its arguments")
            read.problems.add(at, wanted, quote(" ".join(words)) if words else "none", hint)
            return None
        return words

    def plain(self, value: tuple[str, ...]) -> list[str]:
        return list(value)


class _Listens(Shape[Port]):
    """A port, as a number or with its protocol."""

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, whole(keys.PORT)]}

    def read(self, read: Reader, at: Tree | None) -> Port | None:
        if isinstance(at, tree.Scalar) and isinstance(at.value, int):
            one = read.integer(at, "a port", 1, 65535)
            return (one, "tcp") if one else None
        value = read.matching(at, keys.PORT, "a port, like 80 or 53/udp", "like 80 or 53/udp")
        if at is None or value is None:
            return None
        digits, _, protocol = value.partition("/")
        found = number(read, at, digits, "a port")
        return (found, "udp" if protocol == "udp" else "tcp") if found else None

    def plain(self, value: Port) -> str:
        return f"{value[0]}/{value[1]}"


class _Expect(Shape[int]):
    """The exit status of a container that ends; ``running`` is no value."""

    def schema(self) -> dict[str, Any]:
        return whole(keys.EXPECT)

    def read(self, read: Reader, at: Tree | None) -> int | None:
        wanted = "running, or the exit status of a container that ends, like exit 0"
        value = read.matching(at, keys.EXPECT, wanted, "write 'expect: exit 0'")
        if at is None or value is None or value == "running":
            return None
        return number(read, at, value.removeprefix("exit "), "an exit status", low=0, high=255)

    def plain(self, value: int) -> str:
        return f"exit {value}"


@dataclass(frozen=True, slots=True)
class Healthcheck(Block):
    """Docker's health check of a container.

    None and () mean the image's or Docker's default. ``test`` begins with CMD, CMD-SHELL or NONE.
    Times are in seconds.
    """

    test: tuple[str, ...] = key(
        _Test(),
        "Command that checks the health of the container: a command line of a shell, or a "
        "list that begins with CMD or CMD-SHELL. [NONE] turns off the check of the image.",
        default=(),
    )
    interval: float | None = key(
        Duration(), "Time between two checks, like 1s or 1m30s.", default=None
    )
    timeout: float | None = key(Duration(), "Time limit of one check.", default=None)
    retries: int | None = key(
        Integer("a number of checks", 1, 1000),
        "Number of consecutive failures after which the container is unhealthy.",
        default=None,
    )
    start_period: float | None = key(
        Duration(0.0), "Time at the start in which a failed check does not count.", default=None
    )


@dataclass(frozen=True, slots=True)
class Ready(Block):
    """The readiness test of a container.

    It is ready when it listens on ``listens`` and ``command`` succeeds; only what is not None
    counts. ``timeout`` is in seconds.
    """

    rules: ClassVar[Mapping[str, Any]] = {
        "anyOf": [{"required": ["port"]}, {"required": ["command"]}]
    }

    listens: Port | None = key(
        _Listens(), "A port on which it listens: 80 or 53/udp.", name="port", default=None
    )
    command: tuple[str, ...] | None = key(
        Command("add a command, or leave the key out"),
        "Command and arguments that must succeed in the container.",
        default=None,
    )
    timeout: float = key(Duration(), "Time after which `up` fails.", default=keys.READY_SECONDS)

    @property
    def port(self) -> int:
        """The port, or 0 if only the command counts."""
        return self.listens[0] if self.listens else 0

    @property
    def protocol(self) -> str:
        return self.listens[1] if self.listens else "tcp"

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        if not {"port", "command"} & draft.body.entries.keys():
            hint = "like {port: 80}"
            draft.read.problems.add(draft.body, "a port or a command", "none", hint)
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Container(Block):
    """A container on a node.

    ``network`` is ``bridge``, ``host``, ``none`` or ``container:NAME``; ``command`` None means
    the image's default. ``expect`` is the expected exit status of a container that ends, None for
    a container that keeps running.
    """

    name: str
    node: str = key(NODE, "Node that it is on.", required=True, default="")
    image: str = key(
        IMAGE,
        "Image of the container.",
        default=keys.DEFAULT_IMAGE,
    )
    network: str = key(
        Pattern(
            keys.NETWORK_MODE,
            "bridge, host, none or container:NAME",
            "leave it out for Docker's bridge; the lab's networks are joined by nodes alone",
        ),
        "Network mode: bridge, host, none, or container:NAME to share another container's.",
        default="bridge",
    )
    publish: tuple[Publish, ...] = key(
        Items(_Published(), "a list of ports", unique=True),
        "Published ports: [address:]host_port:container_port[/tcp|/udp].",
        default=(),
    )
    command: tuple[str, ...] | None = key(
        Command(), "The command and its arguments, instead of the image's own.", default=None
    )
    env: Mapping[str, str] = key(Variables(), "Environment variables.", default={})
    expect: int | None = key(
        _Expect(),
        "Expected state: running, or `exit N` for a command that ends.",
        default=None,
        shown="running",
    )
    healthcheck: Healthcheck | None = key(
        Nested(Healthcheck),
        "Docker's health check, with Compose's keys; `up` waits until it is healthy.",
        default=None,
    )
    ready: Ready | None = key(
        Nested(Ready), "Readiness condition that `up` waits for.", default=None
    )
