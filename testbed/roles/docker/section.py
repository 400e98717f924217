"""Docker's section of a topology file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from testbed.artifacts.engines import BUILT
from testbed.nodes.engine import OF_A_FOLDER, OLDEST, Release, number_of, version_in
from testbed.roles.docker.daemon_json import ELSEWHERE, DaemonJson
from testbed.roles.docker.networks import NAME, DockerNetwork
from testbed.roles.flannel.section import FlannelSection
from testbed.topology import tree
from testbed.topology.declare import Block, Draft, Named, Section, Underlay, key
from testbed.topology.shapes import (
    IMAGE,
    NODE,
    Choice,
    Items,
    OneOrEach,
    Prefixed,
    Shape,
    merged,
    whole,
)

if TYPE_CHECKING:
    from testbed.topology.model import Node, Topology
    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

ROLE = "docker"
ENGINES: tuple[Release, ...] = ("20.10", *BUILT)
DEFAULT_ENGINE: Release = "20.10"
#: Other names of an engine, also by the version that is built. 20.10 without quotes is a number,
#: which YAML reads as 20.1.
#: Debian's engine has the name of Debian 12's release, even if this machine has another one.
ENGINE_ALIASES: Mapping[str, Release] = {
    "debian": "20.10", "20": "20.10", "20.1": "20.10",
    **{name: release for release, built in BUILT.items() for name in built.names},
}  # fmt: skip
OTHERS = "for others write the path of a folder with the engine's programs: ./docker-25.0.5"
#: Back ends for Docker's packet filter rules.  ``iptables`` is the machine's default variant;
#: ``nftables`` is the engine's native back end, without iptables.
Firewall = Literal["iptables", "iptables-legacy", "iptables-nft", "nftables"]
FIREWALLS: tuple[Firewall, ...] = ("iptables", "iptables-legacy", "iptables-nft", "nftables")
DEFAULT_FIREWALL: Firewall = "iptables"
#: docker0 of a daemon without settings: the first address of Docker's first pool.
DEFAULT_BIP = "172.17.0.1/16"
#: The fact of a lab whose nodes have several engines, or several packet filters.
MIXED = "mixed"


class _Release(Shape[Release]):
    """A release of the engine, as text or as a number, or a folder with another one."""

    def schema(self) -> dict[str, Any]:
        texts = (*ENGINES, *ENGINE_ALIASES)
        numbers = {float(one) for one in texts if one.replace(".", "", 1).isdigit()}
        plain = [int(one) if one.is_integer() else one for one in sorted(numbers)]
        releases = {"enum": [*texts, *plain]}
        return {"anyOf": [releases, whole(r"[^\0\n]*/[^\0\n]*")]}

    def read(self, read: Reader, at: Tree | None) -> Any:
        if isinstance(at, tree.Scalar) and "/" in at.text:
            return self._folder(read, at)
        return read.release(at, "an engine", ENGINES, ENGINE_ALIASES, OTHERS)

    @staticmethod
    def _folder(read: Reader, at: tree.Scalar) -> Release | None:
        """Read the path of a folder, relative to that of the file.

        A record has it as it was: the lab runs, whatever has become of the folder.
        """
        if not at.line:
            return at.text
        folder = Path(read.problems.folder_of(at), Path(at.text).expanduser())
        wanted = f"a folder with an engine's programs: {', '.join(OF_A_FOLDER)}"
        hint = "unpack a static build of Docker, and name its folder"
        lacking = [name for name in OF_A_FOLDER if not os.access(folder / name, os.X_OK)]
        if lacking:
            seen = f"no folder {folder}" if not folder.is_dir() else f"no {', '.join(lacking)}"
            read.problems.add(at, wanted, seen, hint)
            return None
        release = str(folder.resolve())
        version = number_of(release)
        if version < OLDEST:
            seen = version_in(release) or "a dockerd that does not run here"
            read.problems.add(at, "an engine of release 19.03 or later", seen, hint)
            return None
        return release


ENGINE = _Release()
FIREWALL = Choice("a packet filter", FIREWALLS)
DAEMON = DaemonJson()


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerOfNode(Block):
    """Docker's settings on one node, instead of the lab's; None is as in the lab."""

    about: ClassVar[str] = "Docker's settings on this node, instead of those of the lab."
    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE

    engine: Release | None = key(
        ENGINE, "Release of Docker Engine on this node. Default: that of the lab.", default=None
    )
    firewall: Firewall | None = key(
        FIREWALL,
        "Packet filter for Docker's rules on this node. Default: that of the lab.",
        default=None,
    )
    daemon: Mapping[str, Any] = key(
        DAEMON,
        "Keys of daemon.json on this node, in addition to those of the lab, or instead of them. "
        "null removes one.",
        default={},
    )

    def fixed(self) -> dict[str, Any]:
        # The section's digest has the engine and the packet filter, wherever the file has them.
        # Other settings change on a running node.
        return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerSection(Section):
    """Docker's settings.

    ``bip`` is docker0's address with its prefix by node. ``engine`` is the engine's release, and
    ``firewall`` the packet filter, of every Docker node without its own: read them with
    :func:`engine_of` and :func:`firewall_of`. ``daemon`` are keys of daemon.json: read them with
    :func:`daemon_of`. ``swarm`` are the managers of a swarm of all Docker nodes, ``images`` those
    to load on each node besides those of its containers.
    """

    role: ClassVar[str] = ROLE
    about: ClassVar[str] = "Docker's settings."
    elsewhere: ClassVar[Mapping[str, str]] = ELSEWHERE

    bip: Mapping[str, IPv4Interface] = key(
        OneOrEach(Prefixed(longest=30)),
        "Address of docker0 with its prefix: one for all Docker nodes without flannel, "
        "or one for each node.",
        default={},
        shown=DEFAULT_BIP,
    )
    engine: Release = key(
        ENGINE,
        f"Release of Docker Engine: {', '.join(BUILT)}, or Debian's package (`debian` or 20.10; "
        "26.1 on Debian 13); or the path of a folder with the programs of another one, such as a "
        "static build.",
        default=DEFAULT_ENGINE,
    )
    firewall: Firewall = key(
        FIREWALL,
        "Packet filter for Docker's rules. `iptables` is the variant that this machine uses, "
        "iptables-legacy or iptables-nft; `nftables` needs engine 29.",
        default=DEFAULT_FIREWALL,
    )
    daemon: Mapping[str, Any] = key(
        DAEMON,
        "Keys of daemon.json on all Docker nodes, such as icc. null removes one.",
        default={},
    )
    networks: Mapping[str, DockerNetwork] = key(
        Named(NAME, DockerNetwork, hollow=True, bare=True),
        "Docker networks, by name, with Compose's keys.",
        default={},
    )
    swarm: tuple[str, ...] = key(
        Items(NODE, "a list of nodes", unique=True),
        "Managers of a swarm. All other Docker nodes are its workers.",
        default=(),
    )
    images: tuple[str, ...] = key(
        Items(IMAGE, "a list of images", unique=True),
        "Images to load on all Docker nodes, for services of a swarm and containers that you "
        "create. They are found as those of containers.",
        default=(),
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        return cls(**{**given, "bip": _bips(given.get("bip"), draft)})

    def image_names(self) -> tuple[str, ...]:
        return self.images

    def meshes(self, topology: Topology) -> Iterable[tuple[Underlay, tuple[Node, ...]]]:
        if self.swarm:
            yield "", topology.with_role(ROLE)

    def digest(self, topology: Topology, node: str) -> Mapping[str, Any]:
        engine, firewall = engine_of(topology, node), firewall_of(topology, node)
        return {"bip": str(self.bip.get(node)), ROLE: [engine, firewall]}


def own(node: Node) -> DockerOfNode:
    """Return the settings that a node has of its own."""
    found = node.sections.get(ROLE)
    return found if isinstance(found, DockerOfNode) else DockerOfNode()


def engine_of(topology: Topology, node: str) -> Release:
    """Return the release of a Docker node's engine: its own, or the lab's."""
    return own(topology.nodes[node]).engine or DockerSection.of(topology).engine


def firewall_of(topology: Topology, node: str) -> Firewall:
    """Return the packet filter of a Docker node: its own, or the lab's."""
    return own(topology.nodes[node]).firewall or DockerSection.of(topology).firewall


def daemon_of(topology: Topology, node: str) -> dict[str, Any]:
    """Return the keys of daemon.json that the file has for a Docker node."""
    return merged(DockerSection.of(topology).daemon, own(topology.nodes[node]).daemon)


def engines(topology: Topology) -> dict[Release, str]:
    """Return the engines of a lab, each with the first node that has it."""
    found: dict[Release, str] = {}
    for node in topology.with_role(ROLE):
        found.setdefault(engine_of(topology, node.name), node.name)
    return found


def firewalls(topology: Topology) -> tuple[Firewall, ...]:
    """Return the packet filters of a lab's Docker nodes, without duplicates."""
    nodes = topology.with_role(ROLE)
    return tuple(dict.fromkeys(firewall_of(topology, node.name) for node in nodes))


def _bips(bip: Any, draft: Draft) -> dict[str, IPv4Interface]:
    """Return every Docker node's docker0: the file's, or the default."""
    given: dict[str, IPv4Interface] = dict(bip) if isinstance(bip, Mapping) else {}
    plain = bip if isinstance(bip, IPv4Interface) else IPv4Interface(DEFAULT_BIP)
    at = draft.body.get("bip")
    members = [node for node in draft.nodes.values() if ROLE in node.roles]
    alone = [node for node in members if FlannelSection.role not in node.roles]
    if at is not None and not isinstance(at, tree.Mapping) and not alone:
        wanted = "a node with the role docker and without flannel"
        hint = "write {node: address} for other nodes" if members else "give a node the role"
        draft.read.problems.add(at, wanted, "none", f"{hint}, or remove bip")
    flannel = draft.section(FlannelSection)
    out: dict[str, IPv4Interface] = {}
    for node in members:
        if node.name in given:
            continue
        if node in alone:
            out[node.name] = plain
        elif flannel and (subnet := flannel.subnets.get(node.name)):
            out[node.name] = IPv4Interface((subnet.network_address + 1, subnet.prefixlen))
    return given | out
