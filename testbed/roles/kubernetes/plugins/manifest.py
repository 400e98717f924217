"""Plugins that are installed by upstream's own manifest and images.

Upstream's DaemonSet installs the CNI plugin and its configuration on each node through hostPath
volumes, at the usual paths (kubernetes.io, "Network Plugins").
"""

from __future__ import annotations

import functools
import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.artifacts import archive
from testbed.artifacts.config import default_path, entries
from testbed.artifacts.reference import full_name
from testbed.errors import ArtifactError, LabError, TestbedError
from testbed.nodes.marks import mark, marked
from testbed.roles.kubernetes import client
from testbed.roles.kubernetes.plugins.base import Plugin
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.steps.step import Step

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.artifacts import Store
    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

NAMESPACE = "kube-system"
MODULES = "/lib/modules"  # mounted into the Pods of most plugins, to load modules
DOCS = "docs/kubernetes.md"
#: Kinds to keep if a new manifest lacks them: they contain objects that are not upstream's.
STAY = ("CustomResourceDefinition", "Namespace")
#: Reasons (kubelet, "container runtime and image errors") for which a container waits forever:
#: nodes get their images before the kubelet starts, and a lab cannot reach a registry.
NEVER = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName")

Object = dict[str, Any]


class ByManifest(Plugin):
    """A plugin that a DaemonSet installs on each node."""

    daemon_set: ClassVar[str]  #: its name, in NAMESPACE
    folder = "/opt/cni/bin"
    enforces = True

    @property
    def manifest(self) -> str:
        """The artifact's name of upstream's manifest."""
        return f"{self.name}-manifest"

    @abstractmethod
    def file(self, store: Store) -> Path:
        """Return the path of upstream's manifest.

        Raises ArtifactError, UsageError.
        """

    def wanted(self, store: Store) -> Sequence[str]:
        """Return the full names of the manifest's images.

        Raises ArtifactError for a file that is not upstream's manifest, UsageError.
        """
        path = self.file(store)
        status = path.stat()
        return _wanted(path, status.st_size, status.st_mtime_ns, self.daemon_set)

    def fetch(self, store: Store) -> None:
        wanted = self.wanted(store)
        files = [store.image(name) for name in self.images_of(store)]
        there = frozenset[str]().union(*map(archive.names, files))
        if missing := [name for name in wanted if name not in there]:
            raise ArtifactError(
                f"{self.manifest} needs {', '.join(missing)}, but the available images are "
                f"{', '.join(sorted(there)) or 'none'}",
                hint="provide the images of the release of the manifest",
            )

    def environment(self, cluster: KubernetesSection) -> Mapping[str, str]:  # noqa: ARG002  for plugins with settings
        """Return environment variables of its DaemonSet that describe the cluster."""
        return {}

    def network(self, topology: Topology, node: str) -> None:  # noqa: ARG002  the DaemonSet writes it
        return None

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        first = KubernetesSection.of(topology).control_plane
        if node == first:
            # An image that is still being imported would be reported as missing.
            images = tuple(f"images {member.name}" for member in topology.with_role("kubernetes"))
            yield Step(f"{self.name} manifest", self.manifest, (*after, *images), act=self._apply)
        needs = (f"{self.name} manifest", f"kubelet {node}")
        about = f"the Pod of {self.daemon_set} is ready"
        yield Step(f"{self.name} {node}", about, needs, act=self._wait(node))

    def ready_after(self, node: str) -> tuple[str, ...]:
        return (f"{self.name} {node}",)

    def _apply(self, context: Context) -> tuple[str, bool]:
        node = client.control_plane(context)
        objects = applied(
            self.file(context.store).read_text(encoding="utf-8"),
            self.daemon_set,
            self.environment(KubernetesSection.of(context.topology)),
            modules=node.run(["test", "-d", MODULES], check=False).ok,
        )
        text = "\n---\n".join(map(json.dumps, objects))
        wanted = {
            "digest": hashlib.sha256(text.encode()).hexdigest(),
            "objects": [_known_by(one) for one in objects],
        }
        before = _noted(node, self.name)
        if before == wanted:
            return self.manifest, False
        # On the server, because some definitions are too large for kubectl's annotation.
        # This also reverts changes by upstream's programs or by a user.
        argv = client.kubectl(context, "apply", "--server-side", "--force-conflicts", "-f", "-")
        node.run(argv, input=text.encode(), timeout=120)
        _remove(context, node, [one for one in before["objects"] if one not in wanted["objects"]])
        mark(node, self.name, json.dumps(wanted))
        return self.manifest, True

    def _wait(self, node: str) -> Callable[[Context], tuple[str, bool]]:
        def act(context: Context) -> tuple[str, bool]:
            api = client.api(context)
            group = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{self.daemon_set}"
            asked = f"/api/v1/namespaces/{NAMESPACE}/pods?fieldSelector=spec.nodeName%3D{node}"

            def pods() -> list[Object]:
                return [
                    pod
                    for pod in api.ask("GET", asked)["items"]
                    for owner in pod["metadata"].get("ownerReferences", [])
                    if (owner["kind"], owner["name"]) == ("DaemonSet", self.daemon_set)
                    and "deletionTimestamp" not in pod["metadata"]
                ]

            def ready() -> bool:
                mine = pods()
                refuse_images(mine, node)
                return rolled_out(api.find(group) or {}) and any(map(is_ready, mine))

            what = f"the Pod of {self.daemon_set} on {node} is ready"
            return what, client.until(
                context, node, ready, what, service="kubelet",
                why=lambda: "; ".join(f"{name}: {said}" for name, _, said in stuck(pods())),
            )  # fmt: skip

        return act


class Brought(ByManifest):
    """A plugin whose files the user provides.

    It can be neither built nor pulled. The user provides the manifest and its images, each by path,
    or by URL and checksum. The manifest determines the images.
    """

    published: ClassVar[str]  #: where upstream publishes both

    def key(self, image: str) -> str:
        """Return the artifact name of an image.

        It is the plugin's name and the image's last word.

        >>> from testbed.roles.kubernetes.plugins import PLUGINS
        >>> PLUGINS["calico"].key("quay.io/calico/node:v3.32.1")
        'calico-node'
        >>> PLUGINS["weave"].key("docker.io/rajchaudhuri/weave-npc:2.9.0")
        'weave-npc'
        """
        last = image.rpartition("/")[2].partition("@")[0].partition(":")[0].lower()
        return last if last.startswith(self.name) else f"{self.name}-{last}"

    def images_of(self, store: Store) -> Sequence[str]:
        found, _ = self._look(store)
        return list(dict.fromkeys(found.values()))

    def _look(self, store: Store) -> tuple[dict[str, str], dict[str, str]]:
        """Match the manifest's images with the user's files.

        Return the user's file for each image, and the reason for each image without one. The
        name in an archive counts, not the name that the user gave; for a file that is not
        downloaded yet, only the user's name is known.
        """
        have = store.users_images()
        names = {name: _names(path) for name, path in have.items() if path is not None}
        found, wrong = {}, {}
        for image in self.wanted(store):
            key = self.key(image)
            fitting = [one for one in (key, *names) if image in names.get(one, ())]
            if fitting:
                found[image] = fitting[0]
            elif key in have and key not in names:
                found[image] = key
            else:
                wrong[image] = _why_not(have[key], image) if key in have else ""
        for image, key in found.items():
            if why := _is_foreign(have[key], image):
                wrong[image] = why
        return found, wrong

    def lacking(self, store: Store) -> str:
        if not store.is_users(self.manifest):
            return (
                f"{self.title} is missing and cannot be built here: provide "
                f"{self.manifest} and the "
                f"images that it names ({DOCS})"
            )
        try:
            _, wrong = self._look(store)
        except TestbedError as error:
            return f"{self.title} cannot be used: {error.message}"
        if not wrong:
            return ""
        missing = [f"{self.key(image)} ({image})" for image, why in wrong.items() if not why]
        parts = [f"provide the images {', '.join(missing)}"] if missing else []
        parts += [why for why in wrong.values() if why]
        return f"{self.title} is incomplete: {'; '.join(parts)} ({DOCS})"

    def how(self, store: Store) -> str:
        add = f"add to {default_path()}:"
        if not store.is_users(self.manifest):
            lines = [f"download it from {self.published}, and {add}"]
            lines += entries("artifacts", [self.manifest], ".yaml")
            return "\n    ".join([*lines, "then run this again: the manifest names the images"])
        try:
            _, wrong = self._look(store)
        except TestbedError as error:
            return error.hint or f"download it again from {self.published}"
        lines = [f"create each with `docker save NAME:TAG -o FILE`, and {add}"]
        return "\n    ".join([*lines, *entries("images", map(self.key, wrong), ".tar")])

    def file(self, store: Store) -> Path:
        return store.users_file(self.manifest)


# -- images -------------------------------------------------------------------------------------


def _names(path: Path) -> frozenset[str]:
    try:
        return archive.names(path)
    except ArtifactError:  # reported for wanted images only (_why_not)
        return frozenset()


def _why_not(path: Path | None, image: str) -> str:
    """Return why a file of the user's is not the wanted image."""
    assert path is not None
    try:
        there = archive.names(path)
    except ArtifactError as error:
        return error.message
    said = ", ".join(sorted(there)) or "no image with a name"
    return f"{path} has {said}, not {image}"


def _is_foreign(path: Path | None, image: str) -> str:
    """Return the problem of an image for another CPU architecture.

    It is empty if the image fits.
    """
    mine = archive.processor()
    for one in archive.read(path) if path is not None else ():
        if image in one.names and one.processor not in ("", mine):
            return f"{image} in {path} is for {one.processor}, not {mine}"
    return ""


# -- manifests ----------------------------------------------------------------------------------


@functools.cache
def _wanted(path: Path, size: int, changed: int, daemon_set: str) -> tuple[str, ...]:  # noqa: ARG001  the cache key of a file that may change
    try:
        objects = read(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ArtifactError(f"{path} is not a manifest: {error}") from error
    if not _is_daemon_set(objects, daemon_set):
        raise ArtifactError(
            f"{path} is the wrong manifest: it has no DaemonSet {daemon_set}",
            hint="use the one that its project publishes for kubectl",
        )
    images = [full_name(one["image"]) for pod in pods_of(objects) for one in containers(pod)]
    return tuple(dict.fromkeys(images))


def read(manifest: str) -> list[Object]:
    """Return the objects of a manifest, with lists expanded.

    Raises ValueError.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # custom resource definitions are long
    try:
        documents = list(yaml.load_all(manifest, Loader=loader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return list(_objects(documents))


def _objects(documents: Iterable[Any]) -> Iterator[Object]:
    for one in documents:
        if isinstance(one, dict) and isinstance(one.get("items"), list):
            yield from _objects(one["items"])
        elif isinstance(one, dict):
            yield one
        elif one is not None:
            raise ValueError(f"wanted an object, saw {str(one)[:40]!r}")


def _is_daemon_set(objects: Iterable[Object], name: str) -> bool:
    return any(_known_by(one)[1::2] == ["DaemonSet", name] for one in objects)


def _known_by(one: Object) -> list[str]:
    """Return the identity of an object: version, kind, namespace, name."""
    about = one.get("metadata") or {}
    said = (one.get("apiVersion"), one.get("kind"), about.get("namespace"), about.get("name"))
    return [str(word or "") for word in said]


def pods_of(tree: Any) -> Iterator[Object]:
    """Yield every Pod template in an object, for any kind of workload."""
    if isinstance(tree, dict):
        if isinstance(tree.get("containers"), list):
            yield tree
        tree = list(tree.values())
    if isinstance(tree, list):
        for part in tree:
            yield from pods_of(part)


def containers(pod: Object) -> list[Object]:
    """Return the containers of a Pod that have images.

    Init containers are included.
    """
    every = [*(pod.get("initContainers") or ()), *pod["containers"]]
    return [one for one in every if isinstance(one, dict) and isinstance(one.get("image"), str)]


def applied(
    manifest: str, daemon_set: str = "", told: Mapping[str, str] | None = None, *, modules: bool
) -> list[Object]:
    """Return the objects of a manifest, edited for kubectl.

    The containers of the ``daemon_set`` get the variables ``told``. A second command would own
    these fields, and then a changed manifest could not be applied again.

    Images are never pulled, because a lab cannot reach a registry: an image that is missing on
    the nodes is an error. ``modules`` tells whether the nodes have a folder of kernel modules. A
    kernel without modules has none, and it cannot be created on a node whose ``/lib`` is this
    machine's.
    """
    objects = read(manifest)
    for one in objects:
        mine = bool(told) and _is_daemon_set([one], daemon_set)
        for pod in pods_of(one):
            for container in containers(pod):
                container["imagePullPolicy"] = "IfNotPresent"
                if "@" in container["image"]:
                    container["image"] = full_name(container["image"])
                if mine and told:
                    container["env"] = _with(container.get("env") or (), told)
            for volume in pod.get("volumes") or ():
                if not modules and (volume.get("hostPath") or {}).get("path") == MODULES:
                    del volume["hostPath"]
                    volume["emptyDir"] = {}
    return objects


def _with(variables: Iterable[Object], told: Mapping[str, str]) -> list[Object]:
    """Return a container's variables with some replaced.

    The order is kept: a variable may refer to another.
    """
    left = dict(told)
    found = [
        {"name": one["name"], "value": left.pop(one["name"])} if one["name"] in left else one
        for one in variables
    ]
    return [*found, *({"name": name, "value": value} for name, value in left.items())]


def _noted(node: Node, name: str) -> dict[str, Any]:
    """Return the objects that were applied before."""
    try:
        said = json.loads(marked(node, name) or "")
    except ValueError:  # missing, or written by an earlier version
        return {"objects": []}
    return dict(said)


def _remove(context: Context, node: Node, gone: Iterable[Sequence[str]]) -> None:
    """Remove objects that the manifest no longer has."""
    found = [
        {"apiVersion": version, "kind": kind,
         "metadata": {"name": name, **({"namespace": namespace} if namespace else {})}}
        for version, kind, namespace, name in gone
        if kind not in STAY
    ]  # fmt: skip
    if found:
        argv = client.kubectl(context, "delete", "--ignore-not-found", "--wait=false", "-f", "-")
        text = "\n---\n".join(map(json.dumps, found))
        node.run(argv, input=text.encode(), timeout=120)


# -- state --------------------------------------------------------------------------------------


def is_ready(pod: Object) -> bool:
    """Tell whether a Pod has the condition Ready."""
    conditions = pod["status"].get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def rolled_out(daemon_set: Object) -> bool:
    """Tell whether all Pods of a DaemonSet have its latest template.

    This is the condition of kubectl rollout status.
    """
    status = daemon_set.get("status", {})
    if status.get("observedGeneration", 0) < daemon_set.get("metadata", {}).get("generation", 1):
        return False
    if daemon_set["spec"].get("updateStrategy", {}).get("type") == "OnDelete":
        return True
    wanted = status.get("desiredNumberScheduled", 0)
    return bool(status.get("updatedNumberScheduled", 0) >= wanted)


def stuck(pods: Iterable[Object]) -> list[tuple[str, str, str]]:
    """Return waiting containers: Pod/container, reason, message."""
    return [
        (
            f"{pod['metadata']['name']}/{one['name']}",
            why["reason"],
            why.get("message", why["reason"]),
        )
        for pod in pods
        for key in ("initContainerStatuses", "containerStatuses")
        for one in pod["status"].get(key, [])
        if "reason" in (why := one.get("state", {}).get("waiting") or {})
    ]


def refuse_images(pods: Iterable[Object], node: str) -> None:
    """Raise LabError for a container whose image is missing on the node."""
    for name, why, said in stuck(pods):
        if why in NEVER:
            raise LabError(
                f"{name} on {node} has no image: {said}",
                hint="images come from archives (`testbed artifacts`), never from a registry",
            )
