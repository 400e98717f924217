"""A swarm of a lab's Docker nodes.

One step makes the swarm of a running lab what the file says. It is the first manager's, so that
commands of this node find the whole swarm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.nodes.marks import mark, marked
from testbed.roles.docker.engine import Engine
from testbed.roles.docker.section import ROLE, DockerSection
from testbed.roles.flannel.section import FlannelSection
from testbed.spelling import counted
from testbed.steps.step import Step
from testbed.steps.wait import Wait

if TYPE_CHECKING:
    from testbed.nodes.base import Node as Machine
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

#: TCP port of managers. Nodes also use TCP and UDP 7946 (gossip) and UDP 4789 (VXLAN) (Docker docs,
#: "Getting started with Swarm mode").
PORT = 2377
MEMBER = "swarm"  # mark: the node is in the lab's swarm, with a text; empty after it has left
SECONDS = 60.0
TRIES = 20
OUTDATED = "update out of sequence"  # the answer to a change of an older version of a record
#: Exists with the kernel's IP_VS, once it is loaded.
IP_VS = "/proc/net/ip_vs"
WITHOUT_IP_VS = (
    "this kernel has no ip_vs, so services need --endpoint-mode dnsrr, and --publish mode=host"
)
#: Overlay networks are /24 of this range, the first one for ingress (docker swarm init,
#: --default-addr-pool).
POOL = IPv4Network("10.0.0.0/8")
USED = 16  # prefix length of the part of the pool that a lab is likely to use


def swarm_step(node: str) -> str:
    """Return the name of the step after which the swarm is complete; it is the first manager's."""
    return f"swarm {node}"


def steps(topology: Topology, node: Node, docker: Mapping[str, str]) -> Iterator[Step]:
    """Yield the step of the first manager; ``docker`` has each node's step for its daemon."""
    managers = DockerSection.of(topology).swarm
    if node.name not in managers[:1]:
        return
    workers = [name for name in docker if name not in managers]
    about = f"managers {', '.join(managers)}; workers {', '.join(workers) or 'none'}"
    about += "; virtual addresses and ingress ports of services need ip_vs (`testbed doctor`)"
    yield Step(swarm_step(node.name), about, tuple(docker.values()), act=_act)


def _act(context: Context) -> tuple[str, bool]:
    with contextlib.ExitStack() as stack:
        engines = {
            node.name: stack.enter_context(Engine(context.node(node.name)))
            for node in context.topology.with_role(ROLE)
        }
        changed = Swarm(context, engines).converge()
    words = counted(len(engines), "node")
    first = DockerSection.of(context.topology).swarm[0]
    if not context.node(first).run(["test", "-e", IP_VS], check=False).ok:
        words += f"; {WITHOUT_IP_VS}"
    return words, changed


def pool(topology: Topology) -> str | None:
    """Return a range for overlay networks that is apart from the lab's networks.

    None is Docker's default, 10.0.0.0/8, of which the lab has no part that is used first.
    """
    taken = [one.subnet for one in topology.networks.values() if one.subnet]
    taken += [one.network for one in DockerSection.of(topology).bip.values()]
    if (flannel := FlannelSection.find(topology)) is not None:
        taken.append(flannel.network)
    parts = list(POOL.subnets(new_prefix=USED))
    free = [part for part in parts if not any(part.overlaps(one) for one in taken)]
    return None if not free or free[0] == parts[0] else str(free[0])


def leave(machine: Machine) -> None:
    """Take a node out of the swarm that testbed has put it into."""
    with Engine(machine) as engine:
        if Member.of(engine).state != "inactive":
            engine.reading("leave the swarm", engine.api.leave_swarm, force=True)
    mark(machine, MEMBER)


@dataclass(frozen=True, slots=True)
class Member:
    """A node's part in a swarm, as its daemon reports it (GET /info)."""

    id: str
    state: str  #: inactive, pending, active, error or locked
    is_manager: bool
    error: str

    @classmethod
    def of(cls, engine: Engine) -> Member:
        said = engine.reading("tell its part in a swarm", engine.api.info)["Swarm"]
        return cls(
            str(said["NodeID"]),
            str(said["LocalNodeState"]),
            bool(said["ControlAvailable"]),
            str(said.get("Error") or ""),
        )


def _role(entry: Mapping[str, Any]) -> str:
    """Return the role of a node of a swarm: manager or worker."""
    return str(entry["Spec"]["Role"])


class Swarm:
    """The swarm of a running lab; ``engines`` are the clients of all Docker nodes, by node."""

    def __init__(self, context: Context, engines: Mapping[str, Engine]) -> None:
        self._context = context
        self._topology = context.topology
        self._engines = engines
        self._managers = DockerSection.of(context.topology).swarm
        self._changed = False
        self._known: dict[str, Member] = {}

    def _member(self, name: str) -> Member:
        """Return a node's part in the swarm, as it was after the last change by testbed."""
        if name not in self._known:
            self._known[name] = Member.of(self._engines[name])
        return self._known[name]

    def _changes(self) -> None:
        """Note that a request has changed the swarm."""
        self._changed = True
        self._known.clear()

    def converge(self) -> bool:
        """Make the swarm what the file says; return whether anything changed."""
        leader = self._leader()
        self._forget(leader)
        for name in sorted(self._engines, key=lambda one: one not in self._managers):
            if name != leader and not self._is_member(leader, name):
                self._join(leader, name)
        for name in self._managers:
            self._give_role(leader, name)
        leader = self._await_managers()
        for name in self._engines:  # those that are to be no managers any more
            self._give_role(leader, name)
        self._await_ready(leader)
        for name in self._engines:
            if not marked(self._context.node(name), MEMBER):
                mark(self._context.node(name), MEMBER, "yes")
        return self._changed

    def _listed(self, leader: str) -> list[dict[str, Any]]:
        """Return the swarm's nodes as a manager knows them (GET /nodes)."""
        engine = self._engines[leader]
        return engine.reading("list the nodes of the swarm", lambda: list(engine.api.nodes()))

    def _leader(self) -> str:
        """Return a manager that can change the swarm; without one, make one.

        The services of a swarm that has lost most of its managers stay (docker swarm init,
        --force-new-cluster).
        """
        members = {name: self._member(name) for name in self._engines}
        managing = [name for name, one in members.items() if one.is_manager]
        managing.sort(key=lambda one: one not in self._managers)
        ids = {members[name].id for name in managing}
        for name in managing:
            with contextlib.suppress(LabError):
                all_of_them = {e["ID"] for e in self._listed(name) if _role(e) == "manager"}
                if 2 * len(ids & all_of_them) > len(all_of_them):  # Raft needs a majority
                    return name
        first = managing[0] if managing else self._managers[0]
        if not managing:
            self._leave(first)
        address = str(self._topology.address(first))
        engine = self._engines[first]
        engine.reading(
            "create a swarm",
            engine.api.init_swarm,
            advertise_addr=address,
            data_path_addr=address,
            listen_addr=f"0.0.0.0:{PORT}",
            default_addr_pool=None if (found := pool(self._topology)) is None else [found],
            force_new_cluster=bool(managing),
        )
        self._changes()
        return first

    def _is_member(self, leader: str, name: str) -> bool:
        member = self._member(name)
        known = {one["ID"] for one in self._listed(leader)}
        return member.state == "active" and member.id in known

    def _forget(self, leader: str) -> None:
        """Remove entries of nodes that are no longer the lab's, or were created again."""
        mine = {self._member(name).id for name in self._engines}
        api = self._engines[leader].api
        for entry in self._listed(leader):
            if entry["ID"] in mine:
                continue
            if _role(entry) == "manager":
                with contextlib.suppress(LabError):  # it may have left the managers' store already
                    self._update(leader, entry["ID"], "worker")
            what = f"remove {entry['Description'].get('Hostname')} from the swarm"
            self._engines[leader].reading(what, api.remove_node, entry["ID"], force=True)
            self._changes()

    def _leave(self, name: str) -> None:
        engine = self._engines[name]
        if self._member(name).state != "inactive":
            engine.reading("leave the swarm", engine.api.leave_swarm, force=True)
            self._changes()

    def _join(self, leader: str, name: str) -> None:
        self._leave(name)
        first, engine = self._engines[leader], self._engines[name]
        swarm = first.reading("inspect the swarm", first.api.inspect_swarm)
        role = "Manager" if name in self._managers else "Worker"
        address = str(self._topology.address(name))
        self._context.waiting(f"{name} to join the swarm at {leader}")
        engine.reading(
            "join the swarm",
            engine.api.join_swarm,
            remote_addrs=[f"{self._topology.address_for(name, leader)}:{PORT}"],
            join_token=swarm["JoinTokens"][role],
            advertise_addr=address,
            data_path_addr=address,
            listen_addr=f"0.0.0.0:{PORT}",
        )
        self._changes()

    def _give_role(self, leader: str, name: str) -> None:
        mine = self._member(name).id
        role = "manager" if name in self._managers else "worker"
        for entry in self._listed(leader):
            if entry["ID"] == mine and _role(entry) != role:
                self._update(leader, mine, role)
                self._changes()

    def _await_managers(self) -> str:
        """Wait until the managers of the file manage the swarm; return the first one."""
        wait = Wait(self._context, f"{', '.join(self._managers)} to manage the swarm", SECONDS)
        for name in self._managers:
            while not self._member(name).is_manager:
                self._known.clear()
                wait.pause()
        return self._managers[0]

    def _update(self, leader: str, node: str, role: str) -> None:
        """Give a node of the swarm, by its ID, another role."""
        engine = self._engines[leader]

        def update() -> None:
            one = engine.api.inspect_node(node)
            engine.api.update_node(node, one["Version"]["Index"], {**one["Spec"], "Role": role})

        for left in reversed(range(TRIES)):
            try:
                return engine.reading(f"make a node of the swarm a {role}", update)
            except LabError as error:
                # The swarm itself has changed its record of the node meanwhile.
                if not left or OUTDATED not in error.message:
                    raise
        return None

    def _await_ready(self, leader: str) -> None:
        """Wait until all nodes are ready."""
        wait = Wait(
            self._context,
            f"all nodes to be ready in the swarm of {leader}",
            SECONDS,
            hint=f"keep a failed lab with `testbed up --keep`: "
            f"testbed exec -l {self._context.lab} {leader} docker node ls",
        )
        while True:
            states = {
                one["Description"].get("Hostname", "?"): one["Status"]["State"]
                for one in self._listed(leader)
            }
            if set(states.values()) == {"ready"} and len(states) == len(self._engines):
                return
            wait.saw(", ".join(f"{name} {state}" for name, state in states.items()))
            wait.pause()
