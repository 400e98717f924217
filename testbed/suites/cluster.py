"""Shared helpers for checks on a Kubernetes cluster.

All objects of a check are in the namespace NAMESPACE and are deleted when their block ends.
Objects that many checks only look at are created once, by the fixture ``cluster``: two web
servers behind the Service ``web``, a ``client``, and a Pod of two containers, ``pair``.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from testbed.claims.observation import Observation
from testbed.errors import CommandError, LabError
from testbed.roles.container import enter, without
from testbed.roles.kubernetes import client, config
from testbed.roles.kubernetes.api import Refused
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.suites import helpers
from testbed.suites.helpers import IMAGE, listeners, patient, wait_until

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node, Result, Running
    from testbed.roles.kubernetes.api import Api, Object

T = TypeVar("T")
#: Another network that a check tries: its name sorts first, and a runtime takes the first.
SECOND = f"{config.CNI}/00-check.conflist"
NAMESPACE = "checks"
SECONDS = 120.0  #: for an answer of kubectl: long enough for a busy machine
#: The API's path of each kind, without the namespace.
PATHS: Mapping[str, str] = {
    "Namespace": "/api/v1",
    "Node": "/api/v1",
    "Pod": "/api/v1",
    "Service": "/api/v1",
    "ConfigMap": "/api/v1",
    "Secret": "/api/v1",
    "ServiceAccount": "/api/v1",
    "Deployment": "/apis/apps/v1",
    "DaemonSet": "/apis/apps/v1",
    "EndpointSlice": "/apis/discovery.k8s.io/v1",
    "Ingress": "/apis/networking.k8s.io/v1",
    "NetworkPolicy": "/apis/networking.k8s.io/v1",
    "HTTPProxy": "/apis/projectcontour.io/v1",
}
WIDE = ("Namespace", "Node")  #: kinds without a namespace
PLURALS = {
    "Ingress": "ingresses",
    "NetworkPolicy": "networkpolicies",
    "HTTPProxy": "httpproxies",
}


@dataclass(frozen=True, slots=True)
class Pod:
    """A running Pod, as it was when it was looked up: a place where commands run.

    ``pid`` is the process of its infrastructure container, ``containers`` maps the other
    containers' names to their processes, ``ids`` maps all to containerd's ids (infrastructure: "").
    """

    name: str
    node: Node
    address: str
    pid: int
    containers: Mapping[str, int] = field(default_factory=dict)
    ids: Mapping[str, str] = field(default_factory=dict)

    @property
    def slowness(self) -> float:
        return self.node.slowness

    def argv(self, argv: Sequence[str], container: str = "") -> list[str]:
        """Return ``argv`` as it must be run on the node."""
        pid = self.containers[container] if container else self.pid
        before = without(self.node.env) if container else []
        return [*before, *enter(pid, mounts=bool(container)), *argv]

    def run(
        self,
        argv: Sequence[str],
        *,
        container: str = "",
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command in the Pod's network namespace.

        The program is the node's own.  If a container is named, it is the one in that container's
        image, and sees its files and processes.
        """
        argv = self.argv(argv, container)
        return self.node.run(argv, input=input, timeout=timeout, check=check)

    def spawn(self, argv: Sequence[str], *, container: str = "") -> Running:
        """Start a command as :meth:`run` does, and return at once."""
        return self.node.spawn(self.argv(argv, container))


@dataclass(frozen=True, slots=True)
class Within:
    """A container of a Pod as a place, with the programs of its image."""

    pod: Pod
    container: str

    @property
    def name(self) -> str:
        return f"{self.pod.name}/{self.container}"

    @property
    def slowness(self) -> float:
        return self.pod.slowness

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command in the container to its end."""
        return self.pod.run(
            argv, container=self.container, input=input, timeout=timeout, check=check
        )

    def spawn(self, argv: Sequence[str]) -> Running:
        """Start a command in the container."""
        return self.pod.spawn(argv, container=self.container)


class Cluster:
    """A lab's cluster.  ``nodes`` are its members, the control plane's node first."""

    def __init__(self, lab: LiveLab) -> None:
        spec = KubernetesSection.find(lab.topology)
        if spec is None:
            pytest.skip("the lab has no Kubernetes")
        self.lab = lab
        self.spec = spec
        members = [lab.node(member.name) for member in lab.topology.with_role("kubernetes")]
        self.nodes: list[Node] = sorted(
            members, key=lambda node: node.name != self.spec.control_plane
        )

    @property
    def control(self) -> Node:
        """The node with the API."""
        return self.nodes[0]

    @property
    def other(self) -> Node:
        """A node that is not the control plane's node."""
        if len(self.nodes) < 2:
            pytest.skip("the cluster has one node only")
        return self.nodes[1]

    @functools.cached_property
    def api(self) -> Api:
        return client.api(self.lab.context)

    def address(self, node: Node) -> str:
        """Return a node's own address."""
        return str(self.lab.topology.address(node.name))

    # -- queries ----------------------------------------------------------------

    def kubectl(
        self,
        observe: Observation,
        *words: str,
        input: object = None,
        check: bool = True,
        timeout: float = SECONDS,
    ) -> Result:
        """Run kubectl with all rights, and record it with its output.

        The default namespace is NAMESPACE.  ``input`` is its standard input: text as it is,
        anything else as JSON.
        """
        argv = client.kubectl(self.lab.context, f"--namespace={NAMESPACE}", *words)
        text = input if isinstance(input, str) or input is None else json.dumps(input)
        result = self.control.run(
            argv, input=None if text is None else text.encode(), timeout=timeout, check=False
        )
        seen = result.stdout + (f"\n{result.stderr}" if result.stderr else "")
        if not result.ok:
            seen += f"\n[exit status {result.status}]"
        observe.note(f"kubectl {' '.join(words)}", seen)
        if check and not result.ok:
            raise CommandError(
                ("kubectl", *words),
                where=self.control.name,
                status=result.status,
                stdout=result.stdout,
                stderr=result.stderr,
            )
        return result

    def get(self, observe: Observation, *words: str) -> Any:
        """Return the decoded output of ``kubectl get ... -o json``, recorded."""
        return self.kubectl(observe, "get", *words, "-o", "json").json()

    def find(self, kind: str, name: str, namespace: str = NAMESPACE) -> Object | None:
        """Return an object as the API has it now, or None; record no evidence."""
        return self.api.find(f"{_folder(kind, namespace)}/{name}")

    def rules(self, observe: Observation, node: Node) -> str:
        """Return kube-proxy's rules on a node, as text."""
        if self.spec.proxy == "nftables":
            return observe.run(node, ["nft", "list", "table", "ip", "kube-proxy"]).stdout
        return observe.run(node, ["iptables-save", "-t", "nat"]).stdout

    # -- Pods -------------------------------------------------------------------

    def pod(self, name: str, namespace: str = NAMESPACE) -> Pod:
        """Return a running Pod, looked up again.  Raises LabError if it does not run."""
        found = self.find("Pod", name, namespace)
        status = found["status"] if found else {}
        if found is None or status.get("phase") != "Running":
            raise LabError(
                f"the Pod {namespace}/{name} does not run: {status.get('phase', 'missing')}",
                hint="`testbed kubectl LAB describe pods -A` shows the reason",
            )
        node = self.lab.node(found["spec"]["nodeName"])
        tasks = self._tasks(node)
        ids = {
            one["name"]: one["containerID"].rpartition("/")[2]
            for one in status["containerStatuses"]
            if one.get("containerID")
        }
        wanted = f'labels."io.kubernetes.pod.uid"=={found["metadata"]["uid"]}'
        kind = 'labels."io.cri-containerd.kind"==sandbox'
        sandboxes = self._ctr(node, "containers", "list", "--quiet", f"{wanted},{kind}").split()
        alive = [one for one in sandboxes if one in tasks]
        if not alive:
            raise LabError(
                f"the Pod {namespace}/{name} has no infrastructure container that runs",
                hint="it has died; the kubelet will create another",
            )
        ids[""] = alive[0]
        running = {name: tasks[one] for name, one in ids.items() if name and one in tasks}
        return Pod(name, node, status.get("podIP", ""), tasks[ids[""]], running, ids)

    def _tasks(self, node: Node) -> dict[str, int]:
        """Map containerd's ids of the containers that run on a node to their processes."""
        lines = self._ctr(node, "tasks", "list").splitlines()[1:]
        rows = [line.split() for line in lines]
        return {name: int(pid) for name, pid, state in rows if state == "RUNNING"}

    def ctr(self, observe: Observation, node: Node, *words: str) -> str:
        """Return the output of containerd's client in Kubernetes' namespace, recorded."""
        seen = self._ctr(node, *words)
        observe.note(f"{node.name}# ctr -n k8s.io {' '.join(words)}", seen)
        return seen

    def _ctr(self, node: Node, *words: str) -> str:
        program = node.provide(self.lab.context.store.binary("ctr", "docker"))
        argv = [program, f"--address={config.CONTAINERD_SOCKET}", "--namespace=k8s.io", *words]
        return node.run(argv).stdout

    # -- temporary objects ------------------------------------------------------------

    @contextlib.contextmanager
    def objects(self, observe: Observation, *objects: Mapping[str, Any]) -> Iterator[None]:
        """Create objects for the time of the block; it begins when their Pods are ready.

        Fields that a Pod leaves out are filled in so that it starts and ends fast (:func:`pod`).
        """
        made: list[Mapping[str, Any]] = []
        observe.note("kubectl apply", [_short(one) for one in objects])
        try:
            for one in objects:
                self.create(one)
                made.append(one)
            for one in objects:
                if one["kind"] == "Pod":
                    self.wait_ready(one["metadata"]["name"])
                elif one["kind"] == "Deployment":
                    self.wait_available(one["metadata"]["name"])
            yield
        finally:
            for one in reversed(made):
                self.delete(one["kind"], one["metadata"]["name"])

    @contextlib.contextmanager
    def pods(self, observe: Observation, *objects: Mapping[str, Any]) -> Iterator[list[Pod]]:
        """Create Pods (:func:`pod`) for the block; it begins when their servers listen."""
        with self.objects(observe, *objects):
            found = [self.pod(one["metadata"]["name"]) for one in objects]
            for one, body in zip(found, objects, strict=True):
                self.wait_serving(one, *servers(body))
            yield found

    def create(self, body: Mapping[str, Any], namespace: str = NAMESPACE) -> Object:
        """Create an object through the API.

        It waits first if an object of the same name is being deleted.

        Raises Refused as the API does.
        """
        kind, name = body["kind"], body["metadata"]["name"]
        found = self.find(kind, name, namespace)
        if found and found["metadata"].get("deletionTimestamp"):
            self.wait_gone(kind, name, namespace)
        versions = {"apiVersion": PATHS[kind].removeprefix("/apis/").removeprefix("/api/")}
        return self.api.ask("POST", _folder(kind, namespace), {**versions, **body})

    def delete(
        self, kind: str, name: str, namespace: str = NAMESPACE, *, wait: bool = True
    ) -> None:
        """Delete an object at once and wait until it is gone; it may be gone already."""
        body: Object = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": "Background",
        }
        if kind == "Pod":
            body["gracePeriodSeconds"] = 0
        with contextlib.suppress(Refused):
            self.api.ask("DELETE", f"{_folder(kind, namespace)}/{name}", body)
        if wait:
            self.wait_gone(kind, name, namespace)

    # -- waiting ---------------------------------------------------------------------

    def until(self, so: Callable[[], T | None], what: str) -> T:
        """Wait for a change that the cluster makes by itself.  Raises Unsettled."""
        seconds = None if self.control.slowness <= 1 else patient(self.control, helpers.SETTLED)
        return wait_until(so, what, seconds)

    def wait_ready(self, name: str, namespace: str = NAMESPACE) -> None:
        """Wait until a Pod is ready."""

        def ready() -> bool:
            found = self.find("Pod", name, namespace) or {}
            conditions = found.get("status", {}).get("conditions", [])
            return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

        self.until(ready, f"the Pod {name} to be ready")

    def wait_serving(self, pod: Pod, *ports: int) -> None:
        """Wait until servers listen in a Pod: they start after it has become ready.

        Each container is asked, too: that they share the Pod's network is for checks to find.
        """
        places = [pod, *(replace(pod, pid=pid) for pid in pod.containers.values())]

        def listening() -> bool:
            found = (one.port for place in places for one in listeners(Observation(), place))
            return set(ports) <= {*found}

        if ports:
            self.until(listening, f"a server on port {' and '.join(map(str, ports))} of {pod.name}")

    def wait_available(self, name: str, namespace: str = NAMESPACE) -> None:
        """Wait until all replicas of a Deployment are available."""

        def available() -> bool:
            found = self.find("Deployment", name, namespace) or {}
            wanted = found.get("spec", {}).get("replicas", 1)
            return bool(found.get("status", {}).get("availableReplicas", 0) == wanted)

        self.until(available, f"the Deployment {name} to be available")

    def wait_gone(self, kind: str, name: str, namespace: str = NAMESPACE) -> None:
        """Wait until an object is gone."""
        self.until(lambda: self.find(kind, name, namespace) is None, f"the end of {kind} {name}")

    def endpoints(self, service: str, namespace: str = NAMESPACE) -> list[str]:
        """Return the addresses of the ready Pods behind a Service, sorted."""
        path = f"{_folder('EndpointSlice', namespace)}?labelSelector=kubernetes.io/service-name%3D"
        slices = self.api.ask("GET", f"{path}{service}")["items"]
        return sorted(
            address
            for one in slices
            for endpoint in one.get("endpoints") or []
            if endpoint.get("conditions", {}).get("ready")
            for address in endpoint["addresses"]
        )

    def wait_endpoints(self, service: str, *addresses: str) -> None:
        """Wait until a Service has exactly these addresses behind it."""
        self.until(
            lambda: self.endpoints(service) == sorted(addresses),
            f"the Service {service} to have {', '.join(addresses) or 'no Pods'}",
        )


def _folder(kind: str, namespace: str) -> str:
    plural = PLURALS.get(kind, f"{kind.lower()}s")
    return f"{PATHS[kind]}/{plural}" if kind in WIDE else (
        f"{PATHS[kind]}/namespaces/{namespace}/{plural}"
    )  # fmt: skip


def _short(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {key: value for key, value in body.items() if key != "apiVersion"}


# -- specifications ---------------------------------------------------------------------


def pod(
    name: str,
    *,
    node: str = "",
    labels: Mapping[str, str] | None = None,
    containers: Sequence[Mapping[str, Any]] = (),
    **spec: Any,
) -> dict[str, Any]:
    """Return a Pod of the web server or other containers, quick to start and end.

    ``node`` is the node to run on; empty leaves the choice to the scheduler.
    """
    body: dict[str, Any] = {
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "containers": list(containers) or [web()],
        **spec,
    }
    if node:
        body["nodeName"] = node
    metadata = {"name": name, "labels": dict(labels or {"app": name})}
    return {"kind": "Pod", "metadata": metadata, "spec": body}


def web(name: str = "web", port: int = 80, **more: Any) -> dict[str, Any]:
    """Return a web server container whose page names its Pod and its client."""
    return {
        "name": name,
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": "PORT", "value": str(port)}],
        **more,
    }


def servers(body: Mapping[str, Any]) -> list[int]:
    """Return the ports that the web servers (:func:`web`) of a Pod listen on."""
    settings = [
        {one["name"]: one["value"] for one in container.get("env", ()) if "value" in one}
        for container in body["spec"]["containers"]
        if "command" not in container
    ]
    return [int(env["PORT"]) for env in settings if "PORT" in env]


def sleeper(name: str = "sleeper", **more: Any) -> dict[str, Any]:
    """Return a container that only sleeps, and has the image's programs."""
    return web(name, command=["sleep", "infinity"], **more)


def service(
    name: str,
    *,
    app: str = "web",
    port: int = 80,
    target: int = 80,
    **spec: Any,
) -> dict[str, Any]:
    """Return a Service for the Pods with the label ``app``."""
    return {
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {
            "selector": {"app": app},
            "ports": [{"port": port, "targetPort": target}],
            **spec,
        },
    }


# -- shared objects ----------------------------------------------------------------------


HELD: dict[str, Cluster] = {}  #: shared objects that stay for several runs, by the lab's name


@contextlib.contextmanager
def held(lab: LiveLab) -> Iterator[Cluster]:
    """Create the shared objects for the time of the block, over several runs."""
    with tenants(lab) as cluster:
        HELD[lab.name] = cluster
        try:
            yield cluster
        finally:
            del HELD[lab.name]


@contextlib.contextmanager
def tenants(lab: LiveLab) -> Iterator[Cluster]:
    """Create NAMESPACE with its shared objects, and delete it after the block."""
    if lab.name in HELD:
        yield HELD[lab.name]
        return
    cluster = Cluster(lab)
    quiet = Observation()
    found = cluster.find("Namespace", NAMESPACE)
    if found:  # left by a run that was killed, or has just ended
        cluster.delete("Namespace", NAMESPACE)
    for node in cluster.nodes:
        node.run(["rm", "-f", SECOND])
    cluster.create({"kind": "Namespace", "metadata": {"name": NAMESPACE}})
    first, second = cluster.nodes[0].name, cluster.nodes[-1].name
    # Its service account is created a moment later, and no Pod is admitted without it.
    cluster.until(lambda: cluster.find("ServiceAccount", "default"), "the namespace's account")
    objects = [
        service("web"),
        pod("web-1", node=first, labels={"app": "web"}),
        pod("web-2", node=second, labels={"app": "web"}),
        pod("client", node=first),
        pod("pair", node=first, containers=[web("a"), web("b", 8080)]),
    ]
    try:
        with cluster.objects(quiet, *objects):
            for one in objects:
                if one["kind"] == "Pod":
                    cluster.wait_serving(cluster.pod(one["metadata"]["name"]), *servers(one))
            yield cluster
    finally:
        # Its controller first waits five seconds, for nothing: the namespace is empty.
        cluster.delete("Namespace", NAMESPACE, wait=False)
