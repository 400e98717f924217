"""Add-ons of a cluster: manifest templates, rendered and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.nodes.marks import mark, marked
from testbed.roles.kubernetes import client, config, ingress
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.steps.step import Step

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.roles.kubernetes.api import Api, Object
    from testbed.roles.kubernetes.section import AddOn
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

MANIFESTS = Path(__file__).parent / "manifests"


@dataclass(frozen=True, slots=True)
class Made:
    """An add-on: its images, the values of its manifest, and its workloads.

    ``programs`` are the programs in its images whose versions are reported. The keys of
    ``images`` and ``values`` are the template's variables. ``kinds`` maps an artifact to its file
    of custom resource definitions. ``prepare`` creates the objects that a manifest cannot contain.
    """

    programs: tuple[str, ...]
    images: Mapping[str, str]
    values: Callable[[Topology], Mapping[str, str]]
    workloads: tuple[str, ...]  #: RESOURCE/NAMESPACE/NAME, of apps/v1
    kinds: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Api], None] = lambda _: None
    memory: int = 0  #: bytes per node, in addition to the cluster's own; measured


ADD_ONS: Mapping[AddOn, Made] = {
    "dns": Made(
        ("coredns",),
        {"image": "testbed/coredns:1"},
        lambda topology: {
            "domain": config.DOMAIN,
            "address": str(KubernetesSection.of(topology).dns),
        },
        ("deployments/kube-system/coredns",),
    ),
    "ingress": Made(
        (ingress.CONTOUR, ingress.ENVOY),
        {ingress.CONTOUR: "testbed/contour:1", ingress.ENVOY: "testbed/envoy:1"},
        ingress.values,
        (
            f"deployments/{ingress.NAMESPACE}/{ingress.CONTOUR}",
            f"daemonsets/{ingress.NAMESPACE}/{ingress.ENVOY}",
        ),
        kinds={"contour": "crds.yaml"},
        prepare=ingress.prepare,
        memory=125 << 20,  # Contour 75 MiB, on one of the nodes, and Envoy 50 MiB
    ),
}


def images(topology: Topology) -> list[str]:
    """Return the images of a cluster's add-ons."""
    add_ons = KubernetesSection.of(topology).add_ons
    return [image for name in add_ons for image in ADD_ONS[name].images.values()]


def versioned(topology: Topology) -> list[str]:
    """Return the programs in the images of a cluster's add-ons."""
    add_ons = KubernetesSection.of(topology).add_ons
    return [program for name in add_ons for program in ADD_ONS[name].programs]


def fetch(store: Store, topology: Topology) -> None:
    """Fetch the artifacts that add-ons need besides their images."""
    for name in KubernetesSection.of(topology).add_ons:
        _kinds(store, name)


def _kinds(store: Store, name: AddOn) -> list[Path]:
    """Return the files with an add-on's custom resource definitions."""
    return [store.file(part, place) for part, place in ADD_ONS[name].kinds.items()]


def memory(topology: Topology) -> int:
    """Return the memory that the add-ons need on a node, in bytes."""
    return sum(ADD_ONS[name].memory for name in KubernetesSection.of(topology).add_ons)


def manifest(name: AddOn, topology: Topology) -> str:
    """Return the rendered manifest of an add-on."""
    import jinja2

    text = (MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")
    made = ADD_ONS[name]
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(  # noqa: S701  YAML with our own values
        text
    )
    images = {word: f"docker.io/{image}" for word, image in made.images.items()}
    return template.render(images | dict(made.values(topology)))


def steps(topology: Topology, after: tuple[str, ...], ready: tuple[str, ...]) -> Iterable[Step]:
    """Yield steps that apply each add-on and wait for its workloads.

    The wait begins once nodes are ready.
    """
    cluster = KubernetesSection.of(topology)
    for name in cluster.add_ons:
        yield Step(f"add-on {name}", f"{name}.yaml", after, act=_apply(name))
        yield Step(
            f"{name} ready",
            f"{_named(name)} available",
            (f"add-on {name}", *ready),
            act=_wait(name),
        )


def _named(name: AddOn) -> str:
    """Return an add-on's workloads for a message: ``kube-system/coredns``."""
    return ", ".join(one.partition("/")[2] for one in ADD_ONS[name].workloads)


def _apply(name: AddOn) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        node = client.control_plane(context)
        made, text = ADD_ONS[name], manifest(name, context.topology)
        if marked(node, f"add-on-{name}") == text:
            return f"{name}.yaml", False
        made.prepare(client.api(context))
        files = [f"--filename={node.provide(path)}" for path in _kinds(context.store, name)]
        # On the server: kubectl's own annotation would be too large for some definitions.
        argv = client.kubectl(
            context, "apply", "--server-side", "--force-conflicts", *files, "--filename=-"
        )
        node.run(argv, input=text.encode(), timeout=120)
        mark(node, f"add-on-{name}", text)
        return f"{name}.yaml", True

    return act


def _wait(name: AddOn) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        api, workloads = client.api(context), ADD_ONS[name].workloads

        def available() -> bool:
            return all(_is_available(api, workload) for workload in workloads)

        def waiting() -> str:
            """Return why its Pods are not ready: the unmet conditions of each."""
            namespace = workloads[0].split("/")[1]
            pods = api.ask("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
            return "; ".join(
                f"{pod['metadata']['name']}: {one.get('message', one['type'])}"
                for pod in pods
                for one in pod["status"].get("conditions", [])
                if one["status"] != "True"
            )

        node = KubernetesSection.of(context.topology).control_plane
        what = f"{_named(name)} available"
        return what, client.until(
            context, node, available, what, service="kube-controller-manager", why=waiting
        )

    return act


def _is_available(api: Api, workload: str) -> bool:
    resource, namespace, name = workload.split("/")
    found = api.find(f"/apis/apps/v1/namespaces/{namespace}/{resource}/{name}") or {}
    return all_available(found)


def all_available(workload: Object) -> bool:
    """Tell whether a workload has all its Pods available, at least one.

    It is a Deployment or a DaemonSet.
    """
    status = workload.get("status", {})
    if "desiredNumberScheduled" in status:
        wanted, there = status["desiredNumberScheduled"], status.get("numberAvailable", 0)
    else:
        wanted = workload.get("spec", {}).get("replicas", 1)
        there = status.get("availableReplicas", 0)
    return bool(wanted) and bool(there == wanted)
