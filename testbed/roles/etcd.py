"""etcd: a single member with the v3 API on the node's first address."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, ClassVar

from testbed.limits import Takes
from testbed.nodes.base import Service, note_packages
from testbed.nodes.footprint import Footprint
from testbed.roles.base import Offer, Role, digest_of, start
from testbed.steps.step import Step, node_step
from testbed.topology.check.look import Look

if TYPE_CHECKING:
    from testbed.steps.context import Context
    from testbed.topology.model import Node, Topology

ROLE = "etcd"
SERVICE = "etcd"
CLIENT_PORT = 2379  # IANA: etcd-client
DATA = "/var/lib/etcd"
PEER_PORT = 2380  # IANA: etcd-server
#: Even a single member waits up to one election timeout before it leads.  The timeout must be at
#: least five heartbeats; the defaults of 100 ms and 1000 ms are for members that are far apart.
#: etcd wakes up at each heartbeat: at 10 ms it uses twice as much of an idle processor as at
#: 50 ms, and is ready only 0.1 s earlier, while dockerd still starts.
TIMING = ("--heartbeat-interval=50", "--election-timeout=250")
#: By default etcdctl gives up after 5 s, within which a busy emulated machine may not answer.
PATIENCE = ("--dial-timeout=30s", "--command-timeout=30s")


def etcd_step(node: str) -> str:
    """Return the name of the step after which etcd answers on the node."""
    return f"etcd {node}"


def member(topology: Topology) -> Node | None:
    """Return the node that runs etcd, or None."""
    return next(iter(topology.with_role(ROLE)), None)


def store_of(topology: Topology) -> Node:
    """Return the node that runs etcd.  The topology must have one."""
    node = member(topology)
    assert node is not None, "a checked topology that uses etcd has a node with it"
    return node


def endpoint(topology: Topology) -> str:
    """Return the URL for clients.  The topology must have an etcd node."""
    return f"http://{topology.address(store_of(topology).name)}:{CLIENT_PORT}"


def etcdctl(topology: Topology, context: Context, *args: str) -> list[str]:
    """Return the argv of etcdctl, for the node that runs etcd."""
    program = context.node(store_of(topology).name).provide(context.store.binary("etcdctl"))
    return [program, f"--endpoints=http://127.0.0.1:{CLIENT_PORT}", *PATIENCE, *args]


class EtcdChecks(Look):
    """Rules for etcd."""

    def rules(self) -> tuple[Callable[[], None], ...]:
        return (self.one_member,)

    def one_member(self) -> None:
        members = self.t.with_role(ROLE)
        for node in members[1:]:
            wanted = "one node with the role etcd, a cluster of a single member"
            seen = f"{node.name} besides {members[0].name}"
            self.add(self.role(node, ROLE), wanted, seen, "keep one of them")


class Etcd(Role):
    name = ROLE
    seen = True
    checks = (EtcdChecks,)
    needs: ClassVar[dict[str, str]] = {"etcd": "a node with etcd"}
    artifacts = ("etcd", "etcdctl")
    services = (SERVICE,)
    processes = ("etcd",)
    folders = (DATA,)
    offers = (Offer("etcd"), Offer("etcdctl"))

    def takes(self, topology: Topology, node: str) -> Takes:
        del node
        # One connection per flanneld, and those of etcdctl.
        return Takes(files=64 + 2 * len(topology.nodes), tasks=10)

    def footprint(self, topology: Topology, node: str) -> Footprint:
        del topology, node
        ports = (f"tcp/{CLIENT_PORT}", f"tcp/{PEER_PORT}")
        return Footprint(daemons=(SERVICE,), ports=ports)

    def steps(self, topology: Topology, node: Node) -> Iterable[Step]:
        address = topology.address(node.name)

        def act(context: Context) -> tuple[str, bool]:
            machine = context.node(node.name)
            # In a machine that is saved with etcd running, etcd starts before the addresses.
            listen = (str(address), "127.0.0.1") if not machine.wakes else ("0.0.0.0",)
            urls = ",".join(f"http://{each}:{CLIENT_PORT}" for each in listen)
            argv = (
                machine.provide(context.store.binary("etcd")),
                "--name=default",
                f"--data-dir={DATA}",
                f"--listen-client-urls={urls}",
                f"--advertise-client-urls=http://{address}:{CLIENT_PORT}",
                f"--listen-peer-urls=http://127.0.0.1:{PEER_PORT}",
                *TIMING,
                "--logger=zap",
                "--log-level=warn",
                "--unsafe-no-fsync",  # the lab's data end with the lab
            )
            digest = digest_of(str(address), *TIMING)
            service = Service(SERVICE, argv, notify=True, digest=digest)
            changed = start(machine, service, timeout=180, context=context)
            if changed and not machine.has_system:
                note_packages(machine, context.store.packages(SERVICE))
            return f"etcd {context.store.version('etcd')} at {address}:{CLIENT_PORT}", changed

        yield Step(
            etcd_step(node.name),
            f"etcd on {address}:{CLIENT_PORT}",
            (node_step(node.name),),
            ahead=True,
            act=act,
        )
