"""Machines that exist already: the plan of ``up`` looks at each of them.

Nothing is changed, except on machines for which the file says that roles are installed. These are
all checked before anything is installed on one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from testbed.labs import offers
from testbed.labs.base_steps import node_spec
from testbed.labs.status import expected_services
from testbed.nodes import wiring
from testbed.nodes.footprint import Footprint, shown
from testbed.registry import ROLES
from testbed.spelling import counted
from testbed.steps.step import Step, node_step

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node
    from testbed.nodes.wiring import Difference
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

#: Prints the kernel's release, and the name of the distribution (os-release(5)).
#: A shell ends if a file that it reads with the dot is missing: hence one of its own.
SYSTEM = (
    "uname -r; "
    """(. /etc/os-release && printf '%s\\n' "${PRETTY_NAME-}") 2> /dev/null || :"""
)


def steps(topology: Topology) -> Iterator[Step]:
    """Yield a step for each machine that looks at it, and those that install roles."""
    installs = topology.installs
    for name in topology.nodes:
        if name in installs:
            yield _check(topology, name)
        else:
            yield _look_at(topology, name)
    checks = tuple(_check_step(name) for name in installs)
    found: list[Step] = []
    for name, folder in installs.items():
        node = topology.nodes[name]
        found.append(_install(topology, name, folder, checks))
        found += offers.steps(topology, node)
        found += [step for role in node.roles for step in ROLES[role].steps(topology, node)]
    roles = {role for name in installs for role in topology.nodes[name].roles}
    for role in sorted(roles):
        found += ROLES[role].lab_steps(topology)
    # Roles of the other machines have no steps: they are expected to be there.
    known = {step.name for step in found} | {*checks, *map(node_step, topology.nodes)}
    yield from (replace(s, needs=tuple(one for one in s.needs if one in known)) for s in found)


def _check_step(name: str) -> str:
    """Return the name of the step after which roles can be installed on a machine."""
    return f"machine {name}"


def _check(topology: Topology, name: str) -> Step:
    about = f"check whether the machine with {_addresses(topology, name)} can have its roles"

    def act(context: Context) -> tuple[str, bool]:
        context.waiting("an answer of the machine")
        spec = node_spec(topology, topology.nodes[name])
        context.provider.prepare(context.lab, [spec])
        return "can have its roles", False

    return Step(_check_step(name), about, (), act=act)


def _install(topology: Topology, name: str, folder: str, needs: tuple[str, ...]) -> Step:
    roles = ", ".join(topology.nodes[name].roles)

    def act(context: Context) -> tuple[str, bool]:
        spec = node_spec(topology, topology.nodes[name])
        is_new = not context.provider.is_installed(context.lab, spec)
        if is_new:
            context.begun.add(name)
            context.provider.destroy(context.lab, [name])  # one that ended, or has other settings
            context.waiting("its node on the machine")
            context.provider.create_one(context.lab, spec)
        machine = context.nodes[name] = context.provider.nodes(context.lab)[name]
        wrong = [one for one in _differences(topology, machine) if one.kind != "setting"]
        words = [*system_of(machine), *_differing([f"{one.what} is {one.seen}" for one in wrong])]
        return ", ".join(words), is_new

    about = f"install on the machine, in {folder}: a node for {roles}"
    return Step(node_step(name), about, needs, act=act)


def listed(topology: Topology, store: Store) -> dict[str, dict[str, str]]:
    """Return what is installed on each machine, in words by kind.

    Nothing is fetched or built: what is not there yet has no version.
    """
    return {
        name: {kind: words for kind, words in _listed(topology, store, name, folder) if words}
        for name, folder in topology.installs.items()
    }


def _listed(topology: Topology, store: Store, node: str, folder: str) -> Iterator[tuple[str, str]]:
    roles = [ROLES[name] for name in topology.nodes[node].roles]
    versions: dict[str, str] = {}
    for role in roles:
        versions |= store.versions_of(role.versioned(topology), *role.parts(topology, node))
    footprint = Footprint.of_all(role.footprint(topology, node) for role in roles)
    images = {one.image for one in topology.containers_on(node)}
    services = (one for role in roles for one in role.services_on(topology, node))
    yield "folder", folder
    yield "programs", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    yield "services", ", ".join(services)
    yield "images", ", ".join(sorted(images))
    yield "ports", ", ".join(footprint.ports)
    yield "links", shown(footprint.links)
    yield "chains", shown(footprint.chains)
    yield "routes", ", ".join(footprint.routes)
    yield "settings", ", ".join(footprint.sysctls)
    stay = [one for one in footprint.modules if one not in footprint.filters]
    yield "modules", ", ".join([*footprint.filters, *(f"{one} (stays)" for one in stay)])


def _addresses(topology: Topology, name: str) -> str:
    node = topology.nodes[name]
    return ", ".join(map(str, (*node.addresses, *node.addresses6))) or "no address"


def _look_at(topology: Topology, name: str) -> Step:
    node = topology.nodes[name]
    wanted = "".join(f", {role}" for role in node.roles)
    about = f"look at the machine with {_addresses(topology, name)}{wanted}; nothing is changed"

    def act(context: Context) -> tuple[str, bool]:
        context.waiting("an answer of the machine")
        machine = context.provider.nodes(context.lab)[name]
        words = seen_on(topology, machine)
        new = name not in context.nodes
        context.nodes[name] = machine
        return words, new

    return Step(node_step(name), about, (), act=act)


def system_of(machine: Node) -> list[str]:
    """Return the distribution of a machine, if it is known, and its kernel, in words."""
    release, *names = machine.run(["sh", "-c", SYSTEM]).stdout.splitlines()
    return [*filter(None, names), f"kernel {release}"]


def seen_on(topology: Topology, machine: Node) -> str:
    """Return a machine's system in words, and how it differs from its topology."""
    words = system_of(machine)
    expected = expected_services(topology, machine.name)
    there = machine.services() if expected else {}
    if running := [name for name in expected if name in there]:
        words.append(f"{', '.join(running)} {'runs' if len(running) == 1 else 'run'}")
    missing = [f"no {name}" for name in expected if name not in there]
    missing += [f"{one.what} is {one.seen}" for one in _differences(topology, machine)]
    return ", ".join([*words, *_differing(missing)])


def _differences(topology: Topology, machine: Node) -> list[Difference]:
    return wiring.differences(topology, machine.name, wiring.look(machine.network))


def _differing(missing: list[str]) -> list[str]:
    """Return the words for what differs from the topology, if anything does."""
    return [f"{counted(len(missing), 'difference')}: {', '.join(missing)}"] if missing else []
