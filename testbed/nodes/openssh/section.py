"""Keys of a topology file: how ssh reaches the machines, and whether roles are installed there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.topology.declare import Block, Section, key
from testbed.topology.shapes import Flag, Integer, Pattern, UsersPath

if TYPE_CHECKING:
    from testbed.topology.model import Topology

PROVIDER = "ssh"
#: A word that begins with a hyphen would be an option of ssh.
WORD = r"[^-\s][^\s]*"
PORTS = range(1, 65536)


@dataclass(frozen=True, slots=True)
class Way(Block):
    """Options of ssh for a machine; what is not given comes from the user's ssh_config."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "host": "write address",
        "hostname": "write address",
        "identity": "write key",
        "password": "testbed asks nothing: use a key, or an agent",
        "proxy": "write jump, or ProxyCommand in a file of `config`",
    }

    user: str = key(
        Pattern(WORD, "the name of a user", "a name without spaces"),
        "User who logs in. One who is not root needs sudo without a password.",
        default="",
    )
    port: int | None = key(
        Integer("a TCP port", PORTS[0], PORTS[-1]),
        "TCP port of sshd. Default: 22, or that of ssh_config.",
        default=None,
    )
    key_file: str = key(
        UsersPath(),
        "File with the private key. Default: those of the agent and of ssh.",
        name="key",
        default="",
    )
    jump: str = key(
        Pattern(WORD, "a jump host, like admin@bastion:22", "several are separated by commas"),
        "Jump host, or several, as for ssh -J.",
        default="",
    )
    config: str = key(
        UsersPath(), "File for ssh -F (ssh_config(5)). Default: the user's own.", default=""
    )
    install: bool | None = key(
        Flag(),
        "Install the roles of the machine's node, and remove them at `down`. Default: false, the "
        "roles are only looked at.",
        default=None,
        shown=False,
    )

    def to_dict(self) -> dict[str, Any]:
        # A node may say false where all the others say true.
        return Block.to_dict(self) | ({} if self.install is None else {"install": self.install})

    def fixed(self) -> dict[str, Any]:
        return {}  # how a machine is reached is not part of its node


@dataclass(frozen=True, slots=True)
class WayToNode(Way):
    """The way by which ssh reaches one machine."""

    about: ClassVar[str] = "How ssh reaches this machine."

    address: str = key(
        Pattern(WORD, "an address, or a host of ssh_config", "without the user and the port"),
        "Address of the machine, or its Host in ssh_config. Default: the name of the node.",
        default="",
    )


@dataclass(frozen=True, slots=True)
class WayToAll(Way, Section):
    """The way by which ssh reaches all machines; keys of a node precede."""

    role: ClassVar[str] = PROVIDER
    implied: ClassVar[bool] = False
    about: ClassVar[str] = "How ssh reaches the machines; the same keys of a node precede."

    def digest(self, topology: Topology, node: str) -> Mapping[str, Any]:
        del topology, node
        return {}  # as in fixed()


def way_of(topology: Topology, node: str) -> WayToNode:
    """Return how ssh reaches a node, with the values for all nodes filled in."""
    values: dict[str, object] = {"address": node}
    own = topology.nodes[node].sections.get(PROVIDER)
    for part in (topology.sections.get(PROVIDER), own):
        if part is not None:
            given = {field.name: getattr(part, field.name) for field in fields(part)}  # type: ignore[arg-type]  # a Block is a dataclass
            values |= {name: value for name, value in given.items() if value not in ("", None)}
    return WayToNode(**values)  # type: ignore[arg-type]  # of the same fields
