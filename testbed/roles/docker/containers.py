"""Steps that start a topology's containers and test HTTP between nodes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.roles.base import still_alive
from testbed.roles.container import enter
from testbed.roles.docker.engine import ContainerState, Engine
from testbed.roles.docker.network_steps import are_early, are_joined, free_addresses, overlay_needs
from testbed.roles.docker.networks import OVERLAY, drivers
from testbed.roles.docker.settle import ending, has_ended, is_settled, removed, start_failed
from testbed.steps.step import Step
from testbed.steps.wait import Wait

if TYPE_CHECKING:
    from testbed.steps.context import Context
    from testbed.topology.containers import Container
    from testbed.topology.model import Topology

PAGE_IMAGE = "nginx"  # the image whose page shows its name and its client
PORT_VARIABLE = "PORT"
#: Keys of a container that the plan shows, if the file has them.
SHOWN = (
    "hostname", "mac_address", "entrypoint", "user", "privileged", "cap_add", "cap_drop", "devices",
    "sysctls", "ulimits", "cpus", "mem_limit", "pids_limit", "volumes", "tmpfs", "dns",
    "extra_hosts", "restart",
)  # fmt: skip
#: The answer for a container on an overlay network, after 20 s (moby, daemon/cluster).
NOT_ATTACHED = "attaching to network failed"
ATTEMPTS = 4
REACH_SECONDS = 30.0
ENDED_SECONDS = 1.0  # time in which the node's own step reports a container that has ended


def container_step(container: Container) -> str:
    """Return the name of the step after which the container runs."""
    return f"container {container.node}/{container.name}"


def container_steps(topology: Topology, node: str, after: str) -> Iterator[Step]:
    """Yield one step per container of a node, in the order of the file.

    Containers start one after the other. Docker assigns a bridge's addresses in the order of
    the starts, so the first container of the file gets the first address.
    """
    ahead = True
    for container in _in_order(topology, node):
        about = _about(container)
        # A port on one of the node's addresses has to wait for the node's networks.
        used = drivers(topology, container)
        here = all(port.address is None for port in container.publish)
        here &= not container.networks or (used <= {"bridge"} and are_early(topology, node))
        needs = (after, *overlay_needs(topology, node)) if OVERLAY in used else (after,)
        step = Step(
            container_step(container),
            about,
            needs,
            heavy=True,
            ahead=here and ahead,
            act=_make(topology, container),
        )
        ahead = step.ahead  # later containers must wait for this one
        yield step
        after = step.name


def _in_order(topology: Topology, node: str) -> list[Container]:
    """Return a node's containers, each after the one whose network it joins.

    Those with fixed addresses come first: Docker would give the addresses to others.
    """

    def turn(container: Container) -> tuple[bool, bool]:
        fixed = any(one.addresses for one in container.networks.values())
        return bool(container.shares), not fixed

    return sorted(topology.containers_on(node), key=turn)


def _about(container: Container) -> str:
    """Return the settings of a container for the plan."""
    about = f"{container.image}, network {container.network}"
    if container.networks:
        about = f"{container.image}, networks {', '.join(map(str, container.networks.values()))}"
    if container.publish:
        about += f", publishes {', '.join(map(str, container.publish))}"
    said = container.to_dict()
    for name in SHOWN:
        if name in said:
            about += f", {name} {_plainly(said[name])}"
    return about


def _plainly(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name}={_plainly(one)}" for name, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value).lower()


def _make(topology: Topology, container: Container) -> Callable[[Context], tuple[str, bool]]:
    digest = topology.container_digest(container.name)

    def act(context: Context) -> tuple[str, bool]:
        context.leave(f"{container.node}/{container.name}")
        with Engine(context.node(container.node)) as engine:
            found = engine.find(container.name)
            image = engine.image_id(container.image)
            if (
                found
                and found.image_id in {"", image}
                and _stays(found, container)
                and _as_wanted(context, found, container, digest)
                and are_joined(engine, container, found)
            ):
                context.containers[container.name] = found
                return _words(found), False
            if found:
                engine.remove(container.name)
            free_addresses(engine, context.topology, container)
            try:
                _start(context, engine, container, digest)
            except LabError as error:
                raise start_failed(engine, container, error) from error
            context.started[container.name] = time.monotonic()
            made = engine.inspect(container.name)
        context.containers[container.name] = made
        return _words(made), True

    return act


def _start(context: Context, engine: Engine, container: Container, digest: str) -> None:
    """Create a container and start it.

    A swarm lets no container of a node onto an overlay network as long as its other nodes take
    this one for that of the same address that has ended. So this is tried again.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return engine.start(context.lab, container, digest)
        except LabError as error:
            if not left or NOT_ATTACHED not in error.message or context.given_up.is_set():
                raise
            context.waiting(f"the swarm to let {container.node} onto its networks")
            engine.remove(container.name)
    return None


def _stays(found: ContainerState, container: Container) -> bool:
    """Tell whether `up` leaves a container as it is.

    At most it waits for the container's exit.
    """
    if container.expect is not None and found.running:
        return True
    return is_settled(container, found) or (found.running and found.health == "starting")


def _as_wanted(context: Context, found: ContainerState, container: Container, digest: str) -> bool:
    if container.shares:
        # Docker keeps the ID: if the partner was created again, this one has the old namespace.
        owner = context.containers[container.shares].id
        return found.digest == digest and found.network.endswith(owner)
    return found.digest == digest


def _words(state: ContainerState) -> str:
    if not state.running:
        return ending(state.exit)
    if len(state.networks) > 1:
        return ", ".join(f"{one.address} on {name}" for name, one in state.networks.items())
    addresses = filter(None, (state.address, state.address6))
    return ", ".join(addresses) or state.network.partition(":")[0]


def _still_running(context: Context, container: Container) -> None:
    """Raise ContainerError if a container has exited.

    A longer wait cannot succeed then.
    """
    node = context.node(container.node)
    with Engine(node) as engine:
        state = engine.find(container.name)
        if state is None:
            raise removed(container)
        if not state.running:
            raise has_ended(node, engine, container, state)


def reach_steps(topology: Topology) -> Iterator[Step]:
    """Yield steps that fetch a page from each flannel node's neighbour.

    They prove that the overlay works before `up` succeeds.
    """
    from testbed.roles.flannel.daemon import flannel_step
    from testbed.roles.flannel.section import FlannelSection

    flannel = FlannelSection.find(topology)
    if flannel is None or not flannel.allow_direct_routing:
        return
    servers = []
    for node in topology.with_role("flannel"):
        pages = [
            c
            for c in topology.running_on(node.name)
            if (c.network, c.image, c.command) == ("bridge", PAGE_IMAGE, None)
        ]
        servers += pages[:1]
    if len(servers) < 2:
        return
    for client, server in zip(servers, [*servers[1:], servers[0]], strict=True):
        needs = tuple(
            name
            for container in (client, server)
            for name in (container_step(container), flannel_step(container.node))
        )
        about = f"{client.name} on {client.node} fetches the page of {server.name} on {server.node}"
        yield Step(
            f"reach {client.name} -> {server.name}",
            about,
            needs,
            act=_reach(client, server, six=flannel.ipv6 is not None),
        )


def _reach(
    client: Container, server: Container, *, six: bool
) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        target = context.containers[server.name]
        hosts = {target.address: "ip route"}
        if six:
            hosts[f"[{target.address6}]"] = "ip -6 route"
        pages = [_fetch(context, client, server, *host) for host in hosts.items()]
        seen = ", ".join(page["client"].rpartition(":")[0].strip("[]") for page in pages)
        return f"{pages[0]['name']} saw {seen}", False

    return act


def _fetch(
    context: Context, client: Container, server: Container, host: str, routes: str
) -> dict[str, str]:
    """Return a container's page, as another one sees it."""
    source, node = context.containers[client.name], context.node(client.node)
    url = f"http://{host}:{server.env.get(PORT_VARIABLE, '80')}/"
    argv = [*enter(source.pid, mounts=False), "curl", "-sS", "--max-time", "2", url]
    wait = Wait(
        context,
        f"{client.name} on {client.node} to reach {url} ({server.name} on {server.node})",
        REACH_SECONDS,
        hint=f"look at the routes (keep a failed lab with `testbed up --keep`): "
        f"testbed exec -l {context.lab} {client.node} {routes}",
    )
    while not (result := node.run(argv, check=False)).ok:
        still_alive(node)
        if wait.gone > ENDED_SECONDS:
            for container in (client, server):
                _still_running(context, container)
        wait.saw(result.stderr.strip())
        wait.pause()
    return dict(json.loads(result.stdout))
