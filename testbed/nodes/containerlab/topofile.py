"""Read nodes and links from a topology file of containerlab.

The file is read for what commands of testbed need; containerlab itself deploys it. So unknown keys
and values are left to containerlab's own check.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from testbed.topology import keys
from testbed.topology.tree import Problems

PROVIDER = "containerlab"
#: Kinds that are no containers (https://containerlab.dev/manual/kinds/): bridges of the host, the
#: host itself, and clusters, whose machines are nodes of kind ext-container.
NO_NODES = frozenset({"bridge", "ovs-bridge", "host", "k8s-kind"})
#: Kinds of bridges that must exist on the host before the deployment.
BRIDGES = frozenset({"bridge", "ovs-bridge"})
#: The management network, as an end of links (manual/topo-def-file, "mgmt-net").
MANAGEMENT = "mgmt-net"
#: The interface of a container on the management network, which is its first one (moby).
MANAGED = "eth0"
#: Network modes of containers that are not on it (runtime/docker, processNetworkMode).
UNMANAGED = frozenset({"none", "host", "container"})
#: Between a bridge in a node and the node: ``br0|node``.
INSIDE = "|"
#: The kind of containers that somebody else has started.
OTHERS = "ext-container"
#: The kind whose addresses on links nobody sets: other kinds read them for their configuration.
PLAIN = "linux"
#: Tags for which YAML readers have types of their own (yaml.org/type).
TAGS = (
    "binary", "bool", "float", "int", "null", "omap", "pairs", "set", "timestamp",
)  # fmt: skip


def read(text: str, path: Path, problems: Problems) -> dict[str, Any]:
    """Return the topology of a file in plain form.

    ``text`` is its content with all variables filled in, ``path`` its place. Adds a problem for a
    file that is not YAML or has no nodes.
    """
    root = parse(text, problems)
    if problems:
        return {}
    topology = Definitions(root)
    nodes = [name for name in topology.nodes if topology.kind(name) not in NO_NODES]
    if not nodes:
        seen = "no node that is a container" if topology.nodes else "no topology.nodes"
        problems.add_at(0, 0, "a file of containerlab with nodes", seen, "add a node")
        return {}
    for name in nodes:
        if other := topology.outsider(name):
            wanted = "nodes that containerlab creates: its engine in the lab has no other container"
            hint = "make that container a node of the kind linux, with its image"
            problems.add_at(line_of(other, text), 0, wanted, f"{name}, which needs {other}", hint)
    links = list(topology.links())
    lab = str(root.get("name") or "")
    # Paths in the file are relative to the folder of a link to it, not to that of the target.
    place = os.path.abspath(path)  # noqa: PTH100  it does not resolve the link
    return {
        "name": lab_name(lab),
        "provider": PROVIDER,
        "nodes": {name: {} for name in nodes},
        "foreign": {
            "lab": lab,
            "file": place,
            "text": text,
            "nodes": {name: topology.plain(name) for name in nodes},
            "links": [{"ends": ends} for ends in links],
        },
    }


def parse(text: str, problems: Problems) -> dict[str, Any]:
    """Return the root of a YAML text; all scalars are texts.  Adds a problem for other texts."""
    import yaml

    try:
        root = yaml.load(text, Loader=_loader())  # noqa: S506  it creates texts, lists and dicts only
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        seen = " ".join(filter(None, (error.problem, error.context))) or "something else"
        problems.add_at(line, column, "YAML", seen, "correct the file")
        return {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.add_at(0, 0, "YAML", str(error).partition("\n")[0], "correct the file")
        return {}
    if not isinstance(root, dict):
        problems.add_at(1, 1, "a mapping with 'name' and 'topology'", "something else", "add them")
        return {}
    return root


def _loader() -> Any:
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """A loader that takes every scalar for text, whatever its tag, but for merge keys."""

        yaml_implicit_resolvers = {  # noqa: RUF012  the form that PyYAML wants
            "<": [("tag:yaml.org,2002:merge", re.compile("<<"))]
        }

    def construct(loader: Any, node: Any) -> Any:
        if isinstance(node, yaml.ScalarNode):
            return loader.construct_scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return loader.construct_sequence(node, deep=True)
        return loader.construct_mapping(node, deep=True)

    for tag in TAGS:
        Loader.add_constructor(f"tag:yaml.org,2002:{tag}", construct)
    return Loader


def line_of(name: str, text: str) -> int:
    """Return the first line of a text with a name; 0 if there is none."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", line):
            return number
    return 0


def lab_name(name: str) -> str:
    """Return the name of a file's lab as testbed can have it: a label of a host name.

    >>> lab_name("My_Lab"), lab_name("frr01")
    ('my-lab', 'frr01')
    """
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return word[: keys.LAB_MAX].strip("-") or "lab"


class Definitions:
    """The section ``topology`` of a file, with values from groups, kinds and defaults.

    The order is containerlab's own: the node, its group, its kind, the defaults
    (types/topology.go).
    """

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root
        topology = _table(root.get("topology"))
        self._nodes = _table(topology.get("nodes"))
        self._groups = _table(topology.get("groups"))
        self._kinds = _table(topology.get("kinds"))
        self._defaults = _table(topology.get("defaults"))
        self._links = topology.get("links")

    @property
    def nodes(self) -> list[str]:
        return list(self._nodes)

    def _node(self, name: str) -> Mapping[str, Any]:
        return _table(self._nodes.get(name))

    def _group(self, name: object) -> Mapping[str, Any]:
        return _table(self._groups.get(str(name or "")))

    def kind(self, name: str) -> str:
        own = self._node(name)
        found = (
            own.get("kind")
            or self._group(own.get("group")).get("kind")
            or self._group(self._defaults.get("group")).get("kind")
            or self._defaults.get("kind")
        )
        return str(found or "").lower()

    def group(self, name: str) -> str:
        of_kind = _table(self._kinds.get(self.kind(name))).get("group")
        return str(self._node(name).get("group") or of_kind or self._defaults.get("group") or "")

    def _layers(self, name: str) -> list[Mapping[str, Any]]:
        return [
            self._node(name),
            self._group(self.group(name)),
            _table(self._kinds.get(self.kind(name))),
            self._defaults,
        ]

    def image(self, name: str) -> str:
        return str(next((one["image"] for one in self._layers(name) if one.get("image")), ""))

    def lists(self, name: str, key: str) -> list[str]:
        """Return the items of a list of a node, of all layers."""
        found = [one.get(key) for one in self._layers(name)]
        return [str(item) for items in found if isinstance(items, list) for item in items]

    def startup_config(self, name: str) -> str:
        """Return the file of a node's configuration, or the configuration itself."""
        found = (one["startup-config"] for one in self._layers(name) if one.get("startup-config"))
        return str(next(found, ""))

    def outsider(self, name: str) -> str:
        """Return the container that somebody else must have started for a node, or its kind."""
        if self.kind(name) == OTHERS:
            return OTHERS
        mode, _, other = self._network_mode(name).partition(":")
        return other if mode == "container" and other not in self._nodes else ""

    def _network_mode(self, name: str) -> str:
        modes = (str(one["network-mode"]) for one in self._layers(name) if one.get("network-mode"))
        return next(modes, "")

    def networks(self, name: str) -> list[str]:
        """Return the networks that a node is on beside its links to nodes.

        They are the management network, bridges of the host, and each port of a bridge in a node,
        which joins two nodes as a link does.
        """
        found = []
        if self._network_mode(name).partition(":")[0] not in UNMANAGED:
            found.append(MANAGEMENT)
        for ends in self.links():
            for end, peer in (ends, ends[::-1]):
                if INSIDE in peer["at"] and name in (end["at"], owner(peer["at"])):
                    found.append("{at}:{interface}".format(**peer))
                elif end["at"] == name and self.is_network(peer["at"]):
                    found.append(peer["at"])
        return list(dict.fromkeys(found))

    def is_network(self, name: str) -> bool:
        """Tell whether an end of a link is a bridge of the host."""
        return name == MANAGEMENT or (name in self._nodes and self.kind(name) in BRIDGES)

    def digest(self, name: str) -> str:
        """Return a digest of everything that the file says about a node and its links."""
        links = self._links if isinstance(self._links, list) else []
        mine = [link for link in links if name in {end["at"] for end in self._ends(link)}]
        rest = {key: self.root.get(key) for key in ("prefix", "mgmt", "settings")}
        data = json.dumps([self._layers(name), mine, rest], sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()[:12]

    def plain(self, name: str) -> dict[str, Any]:
        """Return a node in plain form (:class:`testbed.topology.foreign.ForeignNode`)."""
        networks = self.networks(name)
        return {
            "kind": self.kind(name),
            "image": self.image(name),
            "digest": self.digest(name),
            **({"networks": networks} if networks else {}),
        }

    def links(self) -> Iterator[list[dict[str, Any]]]:
        """Yield both ends of each link."""
        for link in self._links if isinstance(self._links, list) else ():
            if ends := self._ends(link):
                yield ends

    def _ends(self, link: object) -> list[dict[str, Any]]:
        """Return the ends of a link in plain form; none for a link that is incomplete."""
        link = _table(link)
        kind = str(link.get("type") or "")
        if isinstance(ends := link.get("endpoints"), list):
            found = [self._end(link, ends, index) for index in range(len(ends))]
        else:
            found = [self._full_end(_table(link.get("endpoint")))]
            found.append(
                {"at": _place(kind, link), "interface": str(link.get("host-interface", ""))}
            )
        return found if len(found) == 2 and all(end["at"] for end in found) else []

    def _end(self, link: Mapping[str, Any], ends: list[Any], index: int) -> dict[str, Any]:
        if isinstance(ends[index], dict):
            return self._full_end(ends[index])
        at, _, interface = str(ends[index]).partition(":")
        both = [link.get("ipv4"), link.get("ipv6")]
        given = [one[index] for one in both if isinstance(one, list) and index < len(one)]
        return self._with({"at": at.strip(), "interface": interface.strip()}, given)

    def _full_end(self, end: Mapping[str, Any]) -> dict[str, Any]:
        found = {"at": str(end.get("node", "")), "interface": str(end.get("interface", ""))}
        return self._with(found, [end.get("ipv4"), end.get("ipv6")])

    def _with(self, end: dict[str, Any], given: list[Any]) -> dict[str, Any]:
        """Return an end with its addresses, if it is one of a plain node."""
        addresses = [str(one) for one in given if one]
        if addresses and end["at"] in self._nodes and self.kind(end["at"]) == PLAIN:
            end["addresses"] = addresses
        return end


def owner(name: str) -> str:
    """Return the node that a bridge is in; empty for a bridge of the host.

    >>> owner("br0|node1"), owner("br0")
    ('node1', '')
    """
    return name.partition(INSIDE)[2]


def host_links(text: str) -> list[str]:
    """Return the links that must exist on the host of containerlab: bridges, macvlan's parents.

    A bridge in the network namespace of a node, ``NAME|NODE``, is containerlab's own affair.
    """
    found = Definitions(parse(text, Problems("")))
    names = [name for name in found.nodes if found.kind(name) in BRIDGES and INSIDE not in name]
    for ends in found.links():
        names += [end["interface"] for end in ends if end["at"] == "macvlan"]
    return list(dict.fromkeys(names))


def _place(kind: str, link: Mapping[str, Any]) -> str:
    """Return the other end of a link that has one endpoint, in words."""
    remote = link.get("remote")
    return f"{kind} {remote}" if remote else kind


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
