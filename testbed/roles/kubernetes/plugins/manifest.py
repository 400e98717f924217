"""Plugins that run as their makers publish them: by a manifest for kubectl, and images.

What runs is a DaemonSet of the makers'; it puts its CNI plugin and configuration on each node
through hostPath volumes, at the usual places (kubernetes.io, "Network Plugins").
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts.config import default_path
from testbed.lab.marks import mark, marked
from testbed.lab.step import Step
from testbed.roles.kubernetes import client, config
from testbed.roles.kubernetes.plugins.base import Plugin

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.lab.context import Context
    from testbed.topology.model import Kubernetes, Topology

NAMESPACE = "kube-system"
MODULES = "/lib/modules"  # what most makers give their Pods, to load some
DOCS = "docs/kubernetes.md"
WAYS = '{path = "..."} or {url = "https://...", sha256 = "..."}'


class ByManifest(Plugin):
    """A plugin that a DaemonSet brings to each node."""

    daemon_set: ClassVar[str]  #: its name, in NAMESPACE
    folder = "/opt/cni/bin"
    enforces = True

    @property
    def manifest(self) -> str:
        """What the makers' manifest is called."""
        return f"{self.name}-manifest"

    @abstractmethod
    def file(self, store: Store) -> Path:
        """The makers' manifest.  Raises ArtifactError, UsageError."""

    def fetch(self, store: Store) -> None:
        self.file(store)

    def environment(self, cluster: Kubernetes) -> Mapping[str, str]:  # noqa: ARG002  for those that are told anything
        """What its DaemonSet is told of the cluster, by the makers' own variables."""
        return {}

    def network(self, topology: Topology, node: str) -> None:  # noqa: ARG002  the DaemonSet writes it
        return None

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        first = config.cluster_of(topology).control_plane
        if node == first:
            yield Step(f"{self.name} manifest", self.manifest, after, act=self._apply)
        needs = (f"{self.name} manifest", f"kubelet {node}")
        about = f"the Pod of {self.daemon_set} is ready"
        yield Step(f"{self.name} {node}", about, needs, act=self._wait(node))

    def ready_after(self, node: str) -> tuple[str, ...]:
        return (f"{self.name} {node}",)

    def _apply(self, context: Context) -> tuple[str, bool]:
        node = client.control_plane(context)
        path = self.file(context.store)
        told = self.environment(config.cluster_of(context.topology))
        wanted = f"{path} {path.stat().st_mtime_ns} {sorted(told.items())}"
        if marked(node, self.name) == wanted:
            return self.manifest, False
        # As the server does it: the definitions of some are too large for an annotation.
        argv = client.kubectl(context, "apply", "--server-side", "-f", "-")
        modules = node.run(["test", "-d", MODULES], check=False).ok
        text = applied(path.read_text(encoding="utf-8"), modules=modules)
        node.run(argv, input=text.encode(), timeout=120)
        if told:
            words = ["set", "env", f"--namespace={NAMESPACE}", f"daemonset/{self.daemon_set}"]
            node.run(client.kubectl(context, *words, *(f"{k}={v}" for k, v in told.items())))
        mark(node, self.name, wanted)
        return self.manifest, True

    def _wait(self, node: str) -> Callable[[Context], tuple[str, bool]]:
        def act(context: Context) -> tuple[str, bool]:
            api = client.api(context)
            asked = f"/api/v1/namespaces/{NAMESPACE}/pods?fieldSelector=spec.nodeName%3D{node}"

            def ready() -> bool:
                return any(
                    condition["type"] == "Ready" and condition["status"] == "True"
                    for pod in api.ask("GET", asked)["items"]
                    for owner in pod["metadata"].get("ownerReferences", [])
                    if (owner["kind"], owner["name"]) == ("DaemonSet", self.daemon_set)
                    for condition in pod["status"].get("conditions", [])
                )

            what = f"the Pod of {self.daemon_set} on {node} is ready"
            return what, client.until(context, node, ready, what, service="kubelet")

        return act


class Brought(ByManifest):
    """One that can be neither built nor pulled here.

    The user brings manifest and images, by path or by address and sum.
    """

    published: ClassVar[str]  #: where its makers have both

    def _missing(self, store: Store) -> tuple[list[str], list[str]]:
        """The files and the images that the user has not brought."""
        files = [] if store.is_users(self.manifest) else [self.manifest]
        return files, [name for name in self.images if not store.is_users_image(name)]

    def lacking(self, store: Store) -> str:
        files, images = self._missing(store)
        if not files and not images:
            return ""
        return (
            f"{self.title} is not here and cannot be made here: wanted are "
            f"{', '.join([*files, *images])} ({DOCS} says how to bring them)"
        )

    def how(self, store: Store) -> str:
        files, images = self._missing(store)
        lines = [f"[artifacts] {name} = {WAYS}" for name in files]
        lines += [f"[images] {name} = {WAYS}" for name in images]
        return (
            f"{self.published} has them, each image to be as `docker save` writes it; write into "
            f"{default_path()}: {'; '.join(lines)}"
        )

    def file(self, store: Store) -> Path:
        return store.users_file(self.manifest)


def applied(manifest: str, *, modules: bool) -> str:
    """A manifest as it is given to kubectl.

    A lab reaches no registry, so none is to be asked: what the nodes do not have is refused by
    name.  ``modules`` says whether the nodes have a folder of kernel modules; of a kernel without
    any there is none, and none can be made on a node whose ``/lib`` is the machine's.
    """
    import yaml

    documents = [one for one in yaml.safe_load_all(manifest) if one]
    for part in _parts(documents):
        if "image" in part and "name" in part:
            part["imagePullPolicy"] = "IfNotPresent"
        if not modules and part.get("hostPath", {}).get("path") == MODULES:
            del part["hostPath"]
            part["emptyDir"] = {}
    return "\n---\n".join(json.dumps(one) for one in documents)


def _parts(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping of a tree, from the outside."""
    if isinstance(tree, dict):
        yield tree
    if isinstance(tree, (dict, list)):
        for part in list(tree.values()) if isinstance(tree, dict) else tree:
            yield from _parts(part)
