"""Checks of NetworkPolicy: a table of policies, each probed from Pod to Pod.

The Pods are two clients and two servers in the checks' namespace, and a client in another.
A probe is one TCP connection; all probes of a policy run at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from testbed.errors import Unsettled
from testbed.limits import FILES_PER_NODE, at_once
from testbed.roles.kubernetes.plugins import plugin_of
from testbed.suites import helpers
from testbed.suites.cluster import NAMESPACE, pod, web
from testbed.suites.helpers import comes, wait_until

if TYPE_CHECKING:
    from testbed.claims.observation import Observation
    from testbed.nodes.base import Node
    from testbed.suites.cluster import Cluster, Pod

OTHER = "checks-other"  #: a namespace beside NAMESPACE
IN_FORCE = 3.0  #: seconds in which a policy would take effect, for clusters that do not enforce it
ANSWER = 0.4  #: seconds to wait for a connection: before its SYN is sent again (RFC 6298)
LONGEST = 10.0  #: the same after repeated timeouts: a busy machine answers late
PORTS = (80, 8080)
#: Connects to each ADDRESS:PORT in its arguments, all at once; prints those that answered.
PROBE = """
import json, selectors, socket, sys, time
seconds, wanted = float(sys.argv[1]), sys.argv[2:]
waiting, answered = selectors.DefaultSelector(), []
for name in wanted:
    address, _, port = name.rpartition(":")
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex((address, int(port)))
    waiting.register(one, selectors.EVENT_WRITE, name)
end = time.monotonic() + seconds
while waiting.get_map() and time.monotonic() < end:
    for key, _ in waiting.select(max(0, end - time.monotonic())):
        if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            answered.append(key.data)
        waiting.unregister(key.fileobj)
print(json.dumps(answered))
"""

Pair = tuple[str, str]  #: client and target: ("a", "s:80")


@dataclass(frozen=True, slots=True)
class Players:
    """The Pods by their names, and targets outside the cluster by theirs."""

    pods: Mapping[str, Pod]
    outside: Mapping[str, str]  #: address and port

    @property
    def targets(self) -> dict[str, str]:
        """The address of each server, by the name that probes use."""
        servers = {
            f"{name}:{port}": f"{self.pods[name].address}:{port}"
            for name in ("s", "t")
            for port in PORTS
        }
        return servers | dict(self.outside)

    def probe(self, seconds: float = ANSWER) -> set[Pair]:
        """Return all connections that are answered now, within some seconds."""
        names = {address: name for name, address in self.targets.items()}
        clients = [one for name, one in self.pods.items() if name in ("a", "b", "o")]

        def ask(one: Pod) -> set[Pair]:
            argv = ["python3", "-c", PROBE, f"{seconds:g}", *names]
            answered = json.loads(one.run(argv).stdout)
            return {(one.name, names[address]) for address in answered}

        with ThreadPoolExecutor(at_once(len(clients), files=FILES_PER_NODE)) as pool:
            return set().union(*pool.map(ask, clients))

    def everything(self) -> set[Pair]:
        """Return all possible connections."""
        return {(who, to) for who in ("a", "b", "o") for to in self.targets}


@dataclass(frozen=True, slots=True)
class Row:
    """A policy of NAMESPACE, and the connections that it blocks: "a>s:80", "*>s:*"."""

    what: str
    spec: Mapping[str, Any]
    cuts: tuple[str, ...]
    spares: tuple[str, ...] = ()

    def allowed(self, players: Players) -> set[Pair]:
        """Return the connections that a plugin must allow if it enforces the policy."""
        return {
            pair
            for pair in players.everything()
            if not _fits(pair, self.cuts) or _fits(pair, self.spares)
        }


def _fits(pair: Pair, patterns: Collection[str]) -> bool:
    import fnmatch

    return any(fnmatch.fnmatchcase(">".join(pair), pattern) for pattern in patterns)


def _to(app: str, *rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy that lets only ``rules`` connect to the Pods of an app."""
    selector = {"matchLabels": {"app": app}} if app else {}
    return {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": list(rules)}


def _from(app: str, *rules: Mapping[str, Any]) -> dict[str, Any]:
    """Return a policy that lets the Pods of an app connect only by ``rules``."""
    selector = {"matchLabels": {"app": app}} if app else {}
    return {"podSelector": selector, "policyTypes": ["Egress"], "egress": list(rules)}


A = {"podSelector": {"matchLabels": {"app": "a"}}}
T = {"podSelector": {"matchLabels": {"app": "t"}}}
THERE = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": OTHER}}}


def table(block: str, near: str, far: str, *, port_ranges: bool = True) -> tuple[Row, ...]:
    """Return the policies (kubernetes.io, "Network Policies").

    A plugin without ``port_ranges`` may read a range as its first port, as Kubernetes allows.

    ``near`` and ``far`` are addresses of a machine outside the cluster, in ``block``: plugins may
    identify Pods by their labels alone, so rules on addresses are tried with those.
    """
    most = {"ipBlock": {"cidr": block, "except": [f"{far}/32"]}}
    one = {"ipBlock": {"cidr": f"{far}/32"}}
    return (
        Row("nothing in, of one Pod", _to("s"), ("*>s:*",)),
        Row("nothing in, of all Pods", _to(""), ("*>s:*", "*>t:*")),
        Row("from Pods by label", _to("s", {"from": [A]}), ("*>s:*",), ("a>*",)),
        Row("from a namespace", _to("s", {"from": [THERE]}), ("*>s:*",), ("o>*",)),
        Row("from Pods of a namespace: both must fit",
            _to("s", {"from": [THERE | A]}), ("*>s:*",)),
        Row("from Pods or a namespace: either may fit",
            _to("s", {"from": [A, THERE]}), ("*>s:*",), ("a>*", "o>*")),
        Row("to one port", _to("s", {"ports": [{"port": 80}]}), ("*>s:*",), ("*>s:80",)),
        Row("to a range of ports",
            _to("s", {"ports": [{"port": 8000, "endPort": 8100}]}), ("*>s:*",),
            ("*>s:8080",) if port_ranges else ()),
        Row("from Pods to one port",
            _to("s", {"from": [A], "ports": [{"port": 80}]}), ("*>s:*",), ("a>s:80",)),
        Row("nothing out", _from("a"), ("a>*",)),
        Row("out to Pods by label", _from("a", {"to": [T]}), ("a>*",), ("a>t:*",)),
        Row("out to a port of Pods",
            _from("a", {"to": [T], "ports": [{"port": 8080}]}), ("a>*",), ("a>t:8080",)),
        Row("out to a block less an address", _from("a", {"to": [most]}), ("a>*",), ("a>near",)),
        Row("out to one address", _from("a", {"to": [one]}), ("a>*",), ("a>far",)),
    )  # fmt: skip


@contextlib.contextmanager
def players(
    cluster: Cluster, observe: Observation, outside: Mapping[str, str]
) -> Iterator[Players]:
    """Create the Pods for the time of the block, all at once."""
    first, last = cluster.nodes[0].name, cluster.nodes[-1].name
    both = [web(f"web-{port}", port) for port in PORTS]
    made = {
        "a": (pod("a", node=first), NAMESPACE),
        "b": (pod("b", node=last), NAMESPACE),
        "s": (pod("s", node=last, containers=both), NAMESPACE),
        "t": (pod("t", node=first, containers=both), NAMESPACE),
        "o": (pod("o", node=first), OTHER),
    }
    if cluster.find("Namespace", OTHER):  # left by a run that was killed
        cluster.delete("Namespace", OTHER)
    cluster.create({"kind": "Namespace", "metadata": {"name": OTHER}})
    try:
        cluster.until(
            lambda: cluster.find("ServiceAccount", "default", OTHER), "the namespace's account"
        )
        observe.note(
            "the Pods", {name: body["spec"]["nodeName"] for name, (body, _) in made.items()}
        )
        for body, namespace in made.values():
            cluster.create(body, namespace)
        for name, (_, namespace) in made.items():
            cluster.wait_ready(name, namespace)
        yield Players(
            {name: cluster.pod(name, where) for name, (_, where) in made.items()}, outside
        )
    finally:
        for name, (_, namespace) in made.items():
            cluster.delete("Pod", name, namespace)
        cluster.delete("Namespace", OTHER)


@contextlib.contextmanager
def policy(cluster: Cluster, name: str, spec: Mapping[str, Any]) -> Iterator[None]:
    """Create a policy of NAMESPACE for the time of the block."""
    cluster.create({"kind": "NetworkPolicy", "metadata": {"name": name}, "spec": dict(spec)})
    try:
        yield
    finally:
        cluster.delete("NetworkPolicy", name)


def settled(players: Players, wanted: set[Pair], what: str, *without: set[Pair]) -> set[Pair]:
    """Return the answered connections, once they match ``wanted`` or after a timeout.

    A plugin enforces a policy in its own time.  If the policy has no effect at all, so that the
    answers match ``without``, Unsettled is raised, naming ``what`` is missing.
    """
    seen: set[Pair] = set()
    seconds = ANSWER

    def so() -> bool:
        nonlocal seen, seconds
        seen = players.probe(seconds)
        seconds = min(LONGEST, seconds * 1.5)
        return seen == wanted

    if not comes(so, helpers.SETTLED) and seen in without:
        raise Unsettled(f"nothing has come in {helpers.SETTLED:g} s of {what}")
    return seen


def drawn(players: Players, seen: set[Pair], wanted: set[Pair]) -> list[str]:
    """Format a matrix: a line per client; deviations from ``wanted`` have a "!"."""
    width = max(len(name) for name in ("answered!", *players.targets))
    lines = ["  ".join(["from", *(name.ljust(width) for name in players.targets)])]
    for who in ("a", "b", "o"):
        cells = [
            ("answered" if (who, to) in seen else "-") + "!" * ((who, to) in seen ^ wanted)
            for to in players.targets
        ]
        lines.append("  ".join([who.ljust(4), *(cell.ljust(width) for cell in cells)]).rstrip())
    return lines


@contextlib.contextmanager
def places_outside(cluster: Cluster, outside: Node) -> Iterator[tuple[str, str, str]]:
    """Yield a subnet outside the cluster, and two of its addresses that listen on port 80."""
    lab = cluster.lab.topology
    port = next(port for port in lab.nodes[outside.name].ports if port.address)
    subnet, near = port.interfaces[0].network, port.address
    far = next(
        address
        for address in map(subnet.broadcast_address.__sub__, range(1, 9))
        if all(address not in node.addresses for node in lab.nodes.values())
    )
    argv = ["python3", "-m", "http.server", "--bind", "0.0.0.0", "80"]
    outside.run(["ip", "address", "add", f"{far}/32", "dev", port.name])
    try:
        with outside.spawn(argv):
            wait_until(lambda: outside.run(["ss", "-Hltn", "sport = :80"]).stdout, "port 80")
            yield str(subnet), str(near), str(far)
    finally:
        outside.run(["ip", "address", "delete", f"{far}/32", "dev", port.name], check=False)


@contextlib.contextmanager
def ways_back(cluster: Cluster, outside: Node, pods: Iterable[Pod]) -> Iterator[None]:
    """Add routes from a machine outside the cluster to Pods, through their nodes.

    The machine is on the nodes' own network, to which Pods send from their own addresses.  These
    need not be in their node's range: some plugins assign addresses by themselves.
    """
    routes = [[f"{one.address}/32", "via", cluster.address(one.node)] for one in pods]
    try:
        for words in routes:
            outside.run(["ip", "route", "replace", *words])
        yield
    finally:
        for words in routes:
            outside.run(["ip", "route", "delete", *words], check=False)


def enforced(cluster: Cluster, outside: Node, observe: Observation) -> None:
    """Check the whole table: each policy must block exactly its connections."""
    with places_outside(cluster, outside) as (block, near, far):
        places = {"near": f"{near}:80", "far": f"{far}:80"}
        with (
            players(cluster, observe, places) as them,
            ways_back(cluster, outside, them.pods.values()),
        ):
            everything = them.everything()
            wait_until(lambda: them.probe(helpers.LATE) == everything, "an answer of all to all")
            ranges = plugin_of(cluster.lab.topology).port_ranges
            before = everything
            for number, row in enumerate(table(block, near, far, port_ranges=ranges), 1):
                wanted = row.allowed(them)
                with policy(cluster, f"row-{number}", row.spec):
                    what = f"the policy: {row.what}"
                    seen = settled(them, wanted, what, before, everything)
                before = seen
                observe.note(
                    f"{row.what}: {json.dumps(row.spec)}", "\n".join(drawn(them, seen, wanted))
                )
                observe.holds(seen == wanted, f"{row.what}: just what it says is cut off")
            seen = settled(them, everything, "the end of the last policy", before)
            observe.holds(seen == everything, "with the last policy gone, all are answered again")
