"""What a cluster runs in Pods for its own sake: each one a manifest, filled in and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.roles.kubernetes import client, config, ingress
from testbed.steps.marks import mark, marked
from testbed.steps.step import Step

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.roles.kubernetes.api import Api, Object
    from testbed.steps.context import Context
    from testbed.topology.model import AddOn, Topology

MANIFESTS = Path(__file__).parent / "manifests"


@dataclass(frozen=True, slots=True)
class Made:
    """An add-on: what it runs, what its manifest asks for, and what is waited for.

    ``programs`` are those in its images, whose versions are told.
    ``images`` and ``values`` are by the manifest's own words.  ``kinds`` has the file of
    a part with the kinds of objects that it brings along, ``prepare`` makes what the manifest
    cannot hold.
    """

    programs: tuple[str, ...]
    images: Mapping[str, str]
    values: Callable[[Topology], Mapping[str, str]]
    workloads: tuple[str, ...]  #: RESOURCE/NAMESPACE/NAME, of apps/v1
    kinds: Mapping[str, str] = field(default_factory=dict)
    prepare: Callable[[Api], None] = lambda _: None
    memory: int = 0  #: bytes that it takes of a node, beside the cluster's own; measured


ADD_ONS: Mapping[AddOn, Made] = {
    "dns": Made(
        ("coredns",),
        {"image": "testbed/coredns:1"},
        lambda topology: {
            "domain": config.DOMAIN,
            "address": str(config.cluster_of(topology).dns),
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
        memory=125 << 20,  # Contour 75, which is on one of the nodes, and Envoy 50
    ),
}


def images(topology: Topology) -> list[str]:
    """The images of a cluster's add-ons."""
    add_ons = config.cluster_of(topology).add_ons
    return [image for name in add_ons for image in ADD_ONS[name].images.values()]


def versioned(topology: Topology) -> list[str]:
    """The programs in the images of a cluster's add-ons."""
    add_ons = config.cluster_of(topology).add_ons
    return [program for name in add_ons for program in ADD_ONS[name].programs]


def fetch(store: Store, topology: Topology) -> None:
    """Make what add-ons need beside their images."""
    for name in config.cluster_of(topology).add_ons:
        _kinds(store, name)


def _kinds(store: Store, name: AddOn) -> list[Path]:
    """The files with the kinds of objects that an add-on brings along."""
    return [store.file(part, place) for part, place in ADD_ONS[name].kinds.items()]


def memory(topology: Topology) -> int:
    """Bytes that the add-ons take of a node."""
    return sum(ADD_ONS[name].memory for name in config.cluster_of(topology).add_ons)


def manifest(name: AddOn, topology: Topology) -> str:
    """The manifest of an add-on, filled in."""
    import jinja2

    text = (MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")
    made = ADD_ONS[name]
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(  # noqa: S701  YAML, and of our own values
        text
    )
    images = {word: f"docker.io/{image}" for word, image in made.images.items()}
    return template.render(images | dict(made.values(topology)))


def steps(topology: Topology, after: tuple[str, ...], ready: tuple[str, ...]) -> Iterable[Step]:
    """Apply each once the API has its objects, and wait for it once there are nodes."""
    cluster = config.cluster_of(topology)
    for name in cluster.add_ons:
        yield Step(f"add-on {name}", f"{name}.yaml", after, act=_apply(name))
        yield Step(
            f"{name} ready",
            f"{_named(name)} available",
            (f"add-on {name}", *ready),
            act=_wait(name),
        )


def _named(name: AddOn) -> str:
    """An add-on's workloads, for people: ``kube-system/coredns``."""
    return ", ".join(one.partition("/")[2] for one in ADD_ONS[name].workloads)


def _apply(name: AddOn) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        node = client.control_plane(context)
        made, text = ADD_ONS[name], manifest(name, context.topology)
        if marked(node, f"add-on-{name}") == text:
            return f"{name}.yaml", False
        made.prepare(client.api(context))
        files = [f"--filename={node.provide(path)}" for path in _kinds(context.store, name)]
        # By the server: what kubectl would note on a kind of its own is larger than may be.
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
            """What keeps its Pods from being ready: of each, its conditions that are not so."""
            namespace = workloads[0].split("/")[1]
            pods = api.ask("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
            return "; ".join(
                f"{pod['metadata']['name']}: {one.get('message', one['type'])}"
                for pod in pods
                for one in pod["status"].get("conditions", [])
                if one["status"] != "True"
            )

        node = config.cluster_of(context.topology).control_plane
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
    """Whether a Deployment or a DaemonSet has all the Pods that it is to have, and some."""
    status = workload.get("status", {})
    if "desiredNumberScheduled" in status:
        wanted, there = status["desiredNumberScheduled"], status.get("numberAvailable", 0)
    else:
        wanted = workload.get("spec", {}).get("replicas", 1)
        there = status.get("availableReplicas", 0)
    return bool(wanted) and bool(there == wanted)
