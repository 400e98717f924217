"""The steps of every lab: create the fabric and the nodes."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.labs import offers, packages, settings_steps
from testbed.labs.own_mark import OwnMark, is_connected
from testbed.nodes import wiring
from testbed.nodes.base import Ahead, NodeSpec
from testbed.nodes.marks import REWIRED, mark, marked
from testbed.spelling import counted
from testbed.steps.context import Batch, Context
from testbed.steps.step import Step, node_step, order

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node, Provider
    from testbed.nodes.wiring import Difference
    from testbed.topology.foreign import Foreign
    from testbed.topology.model import Node as NodeModel
    from testbed.topology.model import Topology

FABRIC = "fabric"
HOSTS = "/etc/hosts"
AHEAD = "ahead"  # mark: the steps done before the lab existed, with their results


def steps(topology: Topology) -> Iterator[Step]:
    if topology.foreign is not None:
        yield Step(FABRIC, f"what {topology.foreign.format} runs in", (), act=_make_fabric)
        yield from (_deploy_node(topology, topology.foreign, name) for name in topology.nodes)
        return
    given = topology.networks.values()
    networks = ", ".join(f"{n.name} {n.words}" for n in given if n.link < 0)
    links = ", ".join(f"{n.name} {n.subnet or ''}".rstrip() for n in given if n.link >= 0)
    about = f"networks: {networks or 'none'}" + (f"; links: {links}" if links else "")
    yield Step(FABRIC, about, (), act=_make_fabric)
    for node in topology.nodes.values():
        yield _make_node(topology, node)
        yield from packages.steps(node)
        yield from offers.steps(topology, node)


def _make_fabric(context: Context) -> tuple[str, bool]:
    before = context.provider.fabric(context.lab) is not None
    if before and context.nodes:
        context.differences.update(context.provider.differences(context.lab, context.topology))
    context.provider.create_fabric(context.lab, context.topology)
    if context.provider.fabric(context.lab) is None:  # its nodes are connected by something else
        return f"networks of {context.topology.provider}", False
    links = len(context.topology.links)
    words = f"{counted(len(context.topology.networks) - links, 'network')}, "
    words += f"{counted(links, 'link')}, " if links else ""
    names = ", ".join(network.name for network in context.topology.uplinks)
    words += f"uplink of {names}" if names else "no uplink"
    if context.topology.foreign is not None:
        words = f"for {context.topology.foreign.format}, no uplink"
    gone = context.differences.get("", [])
    return _with(words, gone), bool(gone) or not before


def _with(words: str, differences: Sequence[Difference]) -> str:
    """Return a step's description, with the links that it has restored."""
    return f"{words}, restored: {', '.join(map(str, differences))}" if differences else words


def node_spec(topology: Topology, node: NodeModel) -> NodeSpec:
    """Return the specification from which a provider creates a node."""
    digest = topology.node_digest(node.name)
    binds = settings_steps.binds(topology, node)
    interfaces = len(node.ports)
    return NodeSpec(
        node.name,
        digest,
        node.cpus,
        node.memory,
        interfaces,
        offers.hidden(topology, node),
        binds=binds,
        image=node.image,
        host=node.host,
        foreign=topology.foreign is not None,
    )


def full_spec(topology: Topology, node: NodeModel, provider: Provider, store: Store) -> NodeSpec:
    """Return :func:`node_spec` with the steps to do before the lab exists."""
    from testbed.registry import ROLES

    roles = [ROLES[name] for name in node.roles]
    own = [step for role in roles for step in role.steps(topology, node)]
    steps = ahead_of([*offers.steps(topology, node), *own])

    def act(machine: Node) -> None:
        context = Context(topology, provider, store, {node.name: machine})
        said = {}
        for step in steps:
            before = len(context.containers)
            words, _ = step.act(context)
            if len(context.containers) == before:  # its state is needed later
                said[step.name] = words
        mark(machine, AHEAD, json.dumps(said))

    def ahead() -> Ahead:
        facts = [fact for role in roles for fact in role.ahead(store, topology, node.name)]
        facts += offers.facts(store, topology, node)
        text = "\0".join([*(step.about for step in steps), *facts])
        return Ahead(hashlib.sha256(text.encode()).hexdigest()[:12], act)

    spec = replace(node_spec(topology, node), layers=packages.layers(store, node))
    return replace(spec, ahead=ahead if steps else None)


def ahead_of(steps: Iterable[Step]) -> list[Step]:
    """Return the steps that can be done before the lab exists, in order."""
    some = [step for step in steps if step.ahead]
    names = {step.name for step in some}
    among = [replace(s, needs=tuple(need for need in s.needs if need in names)) for s in some]
    return list(order(among).values())


def to_be_made(
    topology: Topology, there: Mapping[str, Node], provider: Provider, store: Store
) -> list[NodeSpec]:
    """Return the nodes that are missing or have other settings."""
    return [
        full_spec(topology, node, provider, store)
        for name, node in topology.nodes.items()
        if name not in there or not is_as_wanted(topology, there[name])
    ]


def is_as_wanted(topology: Topology, node: Node) -> bool:
    """Tell whether a running node is in the topology and has its settings."""
    return node.name in topology.nodes and node.digest == topology.node_digest(node.name)


def batches(topology: Topology, provider: Provider, specs: Iterable[NodeSpec]) -> dict[str, Batch]:
    """Return the batch of each node whose provider creates all nodes at once."""
    found: dict[str, Batch] = {}
    for spec in specs:
        if provider.together(spec.name):
            maker = topology.provider_of(spec.name)
            found.setdefault(maker, Batch(topology.name, provider)).specs.append(spec)
    return {spec.name: batch for batch in found.values() for spec in batch.specs}


def _make_node(topology: Topology, node: NodeModel) -> Step:
    addresses = ", ".join(map(str, (*node.addresses, *node.addresses6))) or (
        "no address" if node.ports else "no network"
    )

    def act(context: Context) -> tuple[str, bool]:
        context.leave(node.name)
        found = context.nodes.get(node.name)
        names = hosts(topology, node.name)
        own = None if found is None else OwnMark.read(found)
        if found is not None and own is not None:
            is_new = own.names != names  # the node stays, but its peers have changed
            if is_new:
                found.put(names.encode(), HOSTS)
                own.introduce(names)
            gone = _restore(context, found)
            words, changes = settings_steps.apply(context, found, own)
            said = ", ".join([_with(", ".join([addresses, *words]), gone), *changes])
            return said, is_new or bool(gone) or bool(changes)
        if found is not None:
            context.provider.destroy(context.lab, [node.name])
        spec = full_spec(topology, node, context.provider, context.store)
        context.waiting(f"its machine (provider {topology.provider_of(node.name)})")
        batch = context.batches.get(node.name)
        made = batch.node(spec) if batch else context.provider.create_one(context.lab, spec)
        if spec.ahead and made.wakes:
            context.done_ahead.update(json.loads(marked(made, AHEAD) or "{}"))
        words, _ = settings_steps.apply(context, made, join(context, made))
        about = [made.about] if made.about else []
        return ", ".join([addresses, *about, *words]), True

    other = topology.provider_of(node.name) != topology.provider
    machine = f"{node.provider} machine" if other else "machine"
    machine += f" of the image {node.image}" if node.image else ""
    tagged = [f"{port.name} in {port.vlans}" for port in node.ports if port.vlans]
    about = "; ".join(
        [f"{machine} with {addresses}", *tagged, *settings_steps.about(topology, node)]
    )
    return Step(node_step(node.name), about, (FABRIC,), act=act)


def _deploy_node(topology: Topology, foreign: Foreign, name: str) -> Step:
    """Return the step for a node that another tool creates, with its links and addresses."""
    node = foreign.nodes[name]
    about = ", ".join(word for word in (node.kind, node.image) if word)

    def act(context: Context) -> tuple[str, bool]:
        context.leave(name)
        if (there := context.nodes.get(name)) is not None:
            gone = _restore_foreign(context, foreign, there)
            return _with(about, gone), bool(gone)
        context.waiting(foreign.format)
        spec = node_spec(topology, topology.nodes[name])
        batch = context.batches.get(name)
        made = batch.node(spec) if batch else context.provider.create_one(context.lab, spec)
        context.nodes[name] = made
        return about, True

    return Step(node_step(name), about, (FABRIC,), act=act)


def _restore_foreign(context: Context, foreign: Foreign, node: Node) -> list[Difference]:
    """Restore missing links and addresses of a node that another tool has created.

    Raises LabError if one is still missing afterwards.
    """

    def differences() -> list[Difference]:
        seen = wiring.look(context.provider.network_of(context.lab, node))
        return wiring.foreign_differences(foreign, node.name, seen)

    gone = differences()
    if gone:
        context.provider.restore(context.lab, context.topology, node, gone)
        _refuse_left(context, node, differences())
    return gone


def _refuse_left(context: Context, node: Node, left: Sequence[Difference]) -> None:
    """Raise LabError if a part of a node's wiring could not be restored."""
    if left:
        raise LabError(
            f"{node.name} still differs from its topology: {', '.join(map(str, left))}",
            hint=f"remove the lab with `testbed down {context.lab}`, then repeat the same `up`",
        )


def _restore(context: Context, node: Node) -> list[Difference]:
    """Restore a node's missing links and return them.

    Raises LabError if one is still missing afterwards.
    """
    topology = context.topology
    outside = context.differences.get(node.name, [])
    gone = [*outside, *wiring.differences(topology, node.name, wiring.look(node.network))]
    if not gone:
        return gone
    context.provider.restore(context.lab, topology, node, gone)
    left = wiring.differences(topology, node.name, wiring.look(node.network))
    _refuse_left(context, node, left)
    mark(node, REWIRED, uuid.uuid4().hex)
    return gone


def join(context: Context, node: Node) -> OwnMark:
    """Connect a running machine to the lab's networks and peers, and mark it as connected.

    Peers are entered by name in /etc/hosts.
    """
    context.provider.connect(context.lab, context.topology, node)
    names = hosts(context.topology, node.name)
    node.put(names.encode(), HOSTS)
    own = OwnMark.of_new(node, names)
    context.nodes[node.name] = node
    return own


def is_joined(node: Node) -> bool:
    """Tell whether a machine is connected to its lab."""
    return is_connected(node)


def hosts(topology: Topology, me: str) -> str:
    """Return the text of /etc/hosts: the node itself and all others.

    ``localhost`` is not a name of ::1, because getaddrinfo(3) would return that first, and
    clients would try it before a daemon that listens only on 127.0.0.1.
    """
    lines = ["127.0.0.1 localhost", "::1 ip6-localhost ip6-loopback"]
    mine = topology.nodes[me]
    if not mine.addresses:
        lines.append(f"127.0.1.1 {me}")
    lines += topology.names_for(me)
    return "\n".join(lines) + "\n"
