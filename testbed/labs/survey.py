"""Write a topology of machines that exist already, from another tool's list of them."""

from __future__ import annotations

import itertools
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import TestbedError, TopologyError, UsageError
from testbed.labs.existing import system_of
from testbed.limits import FILES_PER_NODE, at_once
from testbed.nodes import wiring
from testbed.registry import PROVIDERS, ROLES
from testbed.topology import keys, reserved
from testbed.topology.load import STDIN, load_data

if TYPE_CHECKING:
    from testbed.labs.lab import Settings
    from testbed.nodes.attachable import Listed
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

TOGETHER = 16  # machines looked at at once
#: Prints the name of each process in the machine's own pid namespace, where no container's are.
RUNNING = """\
own=$(readlink /proc/1/ns/pid)
for folder in /proc/[0-9]*; do
  [ "$(readlink "$folder/ns/pid")" = "$own" ] && cat "$folder/comm"
done 2> /dev/null
:
"""
NETWORK = "lan"


@dataclass(slots=True)
class Found:
    """A machine, as it was seen.  ``error`` is why it was not."""

    error: str = ""
    words: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    addresses: list[tuple[str, IPv4Interface]] = field(default_factory=list)  #: with their links
    way: str = ""  #: the link of the default route


@dataclass(frozen=True, slots=True)
class Survey:
    """A topology in plain form, what was seen on each node, and what was left out."""

    what: str
    plain: dict[str, Any]
    found: Mapping[str, Found]
    left: Mapping[str, str]


def survey(
    settings: Settings, source: str, name: str | None, chosen: Mapping[str, str] | None = None
) -> Survey:
    """Look at the machines that a file lists, and return a topology of them.

    ``source`` is a path, or - for standard input; ``name`` is that of the lab, by default the
    file's. ``chosen`` has options of the provider that reads the file, by their names. Nothing is
    recorded. Raises UsageError, MachineError, LabError.
    """
    path, text = _read(source)
    provider, listed = _listed(source, path, text, chosen or {})
    if not listed.machines:
        raise UsageError(
            f"{source} lists no machine that can be reached",
            hint="; ".join(f"{one}: {why}" for one, why in listed.left.items()) or None,
        )
    lab = _label(name or listed.name or (Path(path).stem if path else "machines"), keys.LAB_MAX)
    names = _names(listed.machines)
    plain: dict[str, Any] = {"name": lab, "provider": provider}
    plain |= {provider: dict(listed.shared)} if listed.shared else {}
    plain["nodes"] = {
        node: _keys(provider, node, theirs, listed.machines[theirs])
        for node, theirs in names.items()
    }
    said = {node: listed.words.get(theirs, ()) for node, theirs in names.items()}
    found = _looked(settings, provider, load_data({**plain, "name": _new_name()}, source), said)
    plain = _with_networks(plain, found)
    return Survey(listed.what, _with_roles(plain, found), found, listed.left)


def _keys(provider: str, node: str, theirs: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a node, whose machine has the name ``theirs`` for the other tool."""
    own = {key: value for key, value in given.items() if (key, value) != ("address", node)}
    keys_of = {provider: own} if own else {}
    return keys_of | ({"on": theirs} if PROVIDERS[provider].hosts and theirs != node else {})


def _new_name() -> str:
    """Return a name for the time of the look: a lab of the same machines may be in use."""
    return f"attach-{secrets.token_hex(3)}"


def _looked(
    settings: Settings, provider: str, topology: Topology, said: Mapping[str, Sequence[str]]
) -> dict[str, Found]:
    """Look at all machines of a topology.  ``said`` is what their list says, by node."""
    machines = settings.makers(topology)
    try:
        machines.prepare(topology.name, ())
        nodes = machines.nodes(topology.name)
        with ThreadPoolExecutor(at_once(min(TOGETHER, len(nodes)), files=FILES_PER_NODE)) as pool:
            seen = pool.map(lambda node: _look(node, said[node.name]), nodes.values())
            return dict(zip(nodes, seen, strict=True))
    finally:
        settings.provider(provider).disconnect(topology.name)


def _read(source: str) -> tuple[str, str]:
    if source == STDIN:
        return "", sys.stdin.read()
    path = Path(source).expanduser().absolute()
    try:
        return str(path), path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {error.strerror}",
            hint="name a file that lists machines; - is standard input",
        ) from error


def _listed(source: str, path: str, text: str, chosen: Mapping[str, str]) -> tuple[str, Listed]:
    for name, kind in PROVIDERS.usable().items():
        found = kind.listed(path, text, chosen)
        if found is not None:
            if unused := [*chosen.keys() - {option.name for option in kind.list_options}]:
                raise UsageError(
                    f"{source} lists {found.what}", where=f"--{unused[0]}", hint="leave it out"
                )
            return name, found
    raise UsageError(
        f"{source} is no list of machines",
        hint="an Ansible inventory, an ssh_config, a kubeconfig, or the output of "
        "`vagrant ssh-config` or `docker context ls`",
    )


def _names(theirs: Mapping[str, object]) -> dict[str, str]:
    """Return a name of a node for each name of the other tool."""
    found: dict[str, str] = {}
    taken: dict[str, int] = {}  # the next number for a name
    for name in theirs:
        plain = label = _label(name, keys.NODE_MAX)
        if reserved.why(label, reserved.NODES):
            plain = label = _label(f"m-{label}", keys.NODE_MAX)
        ends = itertools.count(taken.get(plain, 2))
        while label in found:
            end = f"-{next(ends)}"
            label = plain[: keys.NODE_MAX - len(end)] + end
        taken[plain] = next(ends)
        found[label] = name
    return found


def _label(text: str, most: int) -> str:
    plain = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"m-{plain}"
    return plain[:most].rstrip("-")


def _look(node: Node, said: Iterable[str]) -> Found:
    found = Found()
    try:
        found.words += [*system_of(node), *said]
        seen = wiring.look(node.network)
        found.way = next((one.device for one in seen.routes if one.destination == "default"), "")
        found.addresses = [
            (link.name, IPv4Interface(text))
            for link in seen.links.values()
            for text in link.addresses
            if link.name != "lo"
        ]
        running = frozenset(node.run(["sh", "-c", RUNNING]).stdout.split())
        for role in ROLES.usable().values():
            if words := role.noticed(node, running):
                found.words.append(words)
            if role.seen and role.services and running.issuperset(role.services):
                found.roles.append(role.name)
    except TestbedError as error:
        found.error = str(error)
    return found


def _with_networks(plain: dict[str, Any], found: Mapping[str, Found]) -> dict[str, Any]:
    """Return the topology with the address of each node on the network of most nodes."""
    held = Counter(one.ip for seen in found.values() for _, one in seen.addresses)
    # The same address on several machines is that of a bridge of their own.
    own = {
        name: [(link, one) for link, one in seen.addresses if held[one.ip] == 1]
        for name, seen in found.items()
    }
    members = Counter(one.network for mine in own.values() for _, one in mine)
    names: dict[IPv4Network, str] = {}
    nodes = {}
    for name, node in plain["nodes"].items():
        nodes[name] = node
        mine = [pair for pair in own[name] if _is_of_a_network(pair[1])]
        if not mine:
            continue
        way = found[name].way
        link, one = max(mine, key=lambda pair: (members[pair[1].network], pair[0] == way))
        network = names.setdefault(one.network, f"{NETWORK}{len(names) + 1 if names else ''}")
        nodes[name] = {"networks": {network: {"address": str(one.ip), "name": link}}, **node}
    networks = {name: {"subnet": str(subnet)} for subnet, name in names.items()}
    before = {key: value for key, value in plain.items() if key != "nodes"}
    return {**before, **({"networks": networks} if networks else {}), "nodes": nodes}


def _is_of_a_network(one: IPv4Interface) -> bool:
    """Tell whether a network of a topology can have an address."""
    network = one.network
    return 8 <= network.prefixlen <= 30 and not one.is_loopback and one.ip != network[0]


def _with_roles(plain: dict[str, Any], found: Mapping[str, Found]) -> dict[str, Any]:
    """Return the topology with the roles that were seen, as far as the file can have them."""
    roles = [(name, role) for name, seen in found.items() for role in seen.roles]
    # Mostly all of them fit: one by one takes the square of the number of machines.
    if whole := _fitting(plain, roles):
        return whole
    for name, role in roles:
        if more := _fitting(plain, [(name, role)]):
            plain = more
        else:
            found[name].words.append(f"not as role {role}, which needs more in the file")
    return plain


def _fitting(plain: dict[str, Any], roles: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
    """Return the topology with roles of nodes; None if it cannot have them."""
    nodes = dict(plain["nodes"])
    for name, role in roles:
        nodes[name] = {**nodes[name], "roles": [*nodes[name].get("roles", ()), role]}
    more = {**plain, "nodes": nodes}
    try:
        load_data(more, "the topology")
    except TopologyError:
        return None
    return more


def lines(survey: Survey) -> Iterator[str]:
    """Yield a line for each machine, and for what was left out."""
    width = max(map(len, survey.found))
    for name, seen in survey.found.items():
        addresses = [f"{one} {link}" for link, one in seen.addresses]
        words = ", ".join([*seen.words, *addresses])
        yield f"{name:<{width}}  {seen.error or words}"
    for what, why in survey.left.items():
        yield f"left out: {what} ({why})"
