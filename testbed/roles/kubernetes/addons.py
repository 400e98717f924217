"""What a cluster runs in Pods for its own sake: each one a manifest, filled in and applied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.lab.marks import mark, marked
from testbed.lab.step import Step
from testbed.roles.kubernetes import client, config

if TYPE_CHECKING:
    from testbed.lab.context import Context
    from testbed.topology.model import AddOn, Kubernetes, Topology

MANIFESTS = Path(__file__).parent / "manifests"


@dataclass(frozen=True, slots=True)
class Made:
    """An add-on: the image that it runs, what its manifest asks for, the deployment to wait for."""

    image: str
    values: Callable[[Kubernetes], Mapping[str, str]]
    deployment: str  #: NAMESPACE/NAME


ADD_ONS: Mapping[AddOn, Made] = {
    "dns": Made(
        "testbed/coredns:1",
        lambda cluster: {"domain": config.DOMAIN, "address": str(cluster.dns)},
        "kube-system/coredns",
    ),
}


def images(topology: Topology) -> list[str]:
    """The images of a cluster's add-ons."""
    return [ADD_ONS[name].image for name in config.cluster_of(topology).add_ons]


def manifest(name: AddOn, cluster: Kubernetes) -> str:
    """The manifest of an add-on, filled in."""
    import jinja2

    text = (MANIFESTS / f"{name}.yaml").read_text(encoding="utf-8")
    made = ADD_ONS[name]
    template = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(  # noqa: S701  YAML, and of our own values
        text
    )
    return template.render(image=f"docker.io/{made.image}", **made.values(cluster))


def steps(topology: Topology, after: tuple[str, ...], ready: tuple[str, ...]) -> Iterable[Step]:
    """Apply each once the API has its objects, and wait for it once there are nodes."""
    cluster = config.cluster_of(topology)
    for name in cluster.add_ons:
        yield Step(f"add-on {name}", f"{name}.yaml", after, act=_apply(name))
        yield Step(
            f"{name} ready",
            f"{ADD_ONS[name].deployment} is available",
            (f"add-on {name}", *ready),
            act=_wait(name),
        )


def _apply(name: AddOn) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        node = client.control_plane(context)
        text = manifest(name, config.cluster_of(context.topology))
        if marked(node, f"add-on-{name}") == text:
            return f"{name}.yaml", False
        node.run(client.kubectl(context, "apply", "-f", "-"), input=text.encode(), timeout=120)
        mark(node, f"add-on-{name}", text)
        return f"{name}.yaml", True

    return act


def _wait(name: AddOn) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        namespace, _, deployment = ADD_ONS[name].deployment.partition("/")
        path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}"
        api = client.api(context)

        def available() -> bool:
            found = api.find(path) or {}
            return bool(found.get("status", {}).get("availableReplicas"))

        def waiting() -> str:
            """What keeps its Pods from being ready: of each, its conditions that are not so."""
            pods = api.ask("GET", f"/api/v1/namespaces/{namespace}/pods")["items"]
            return "; ".join(
                f"{pod['metadata']['name']}: {one.get('message', one['type'])}"
                for pod in pods
                for one in pod["status"].get("conditions", [])
                if one["status"] != "True"
            )

        node = config.cluster_of(context.topology).control_plane
        what = f"{ADD_ONS[name].deployment} is available"
        return what, client.until(
            context, node, available, what, service="kube-controller-manager", why=waiting
        )

    return act
