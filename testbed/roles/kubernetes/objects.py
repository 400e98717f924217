"""Objects of the user's files: applied at start, changed with the files, and deleted with them.

The API server applies them (kubernetes.io, "Server-Side Apply"), one by one in the order of the
files, so that a custom resource can follow its definition, and a Pod its namespace.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed.errors import LabError
from testbed.nodes.marks import mark, marked
from testbed.roles.base import digest_of
from testbed.roles.kubernetes import client
from testbed.roles.kubernetes.api import Refused
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.spelling import counted
from testbed.steps.step import Step
from testbed.topology.tree import Problems

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.roles.kubernetes.api import Api, Object
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

STEP = "apply objects"
MARK = "applied"
MANAGER = "testbed"  #: the owner of the applied fields
DEFAULT = "default"  #: the namespace of objects without one
MANAGES = "kube-controller-manager"
#: The version, kind, namespace and name of an object.
Identity = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Document:
    """An object of a file; ``where`` names the file and the document in it."""

    where: str
    body: Object

    @property
    def identity(self) -> Identity:
        about = self.body["metadata"]
        version, kind = self.body["apiVersion"], self.body["kind"]
        return version, kind, about.get("namespace") or "", about["name"]


def read(topology: Topology) -> list[Document]:
    """Return the objects of the files, in their order.

    Raises TopologyError for the first file that is missing or invalid, with all its problems.
    """
    return [one for name in KubernetesSection.of(topology).apply for one in _file(topology, name)]


def _file(topology: Topology, name: str) -> list[Document]:
    import yaml

    problems = Problems(name)
    loader = _loader()
    found: list[Document] = []
    number = 0
    try:
        reader = loader((topology.folder / name).read_bytes())
        while reader.check_node():
            node: Any = reader.get_node()
            number += 1
            with problems.within(f"document {number}"):
                body, line = _json(reader.construct_document(node)), node.start_mark.line + 1
                where = f"{name}, document {number}"
                found += [Document(where, one) for one in _objects(body, line, problems)]
    except OSError as error:
        seen = (error.strerror or "an error").lower()
        hint = "correct `apply` in the section kubernetes: a path beside the topology file"
        problems.add_at(0, 0, "a readable file", seen, hint)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        seen = getattr(error, "problem", None) or str(error)
        problems.add_at(line, column, f"YAML in document {number + 1}", seen, "correct it")
    if problems:
        raise problems.error()
    return found


@functools.cache
def _loader() -> Any:
    """Return a class that reads YAML as kubectl does: without dates, and numbers to base 60."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    number = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
    left_out = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"

    class Plain:
        """A resolver's expression for text without a colon."""

        def __init__(self, form: re.Pattern[str]) -> None:
            self._form = form

        def match(self, text: str) -> re.Match[str] | None:
            return None if ":" in text else self._form.match(text)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, Plain(form) if tag in number else form) for tag, form in forms
                if tag not in left_out]
        for first, forms in Loader.yaml_implicit_resolvers.items()
    }  # fmt: skip
    return Loader


def _json(value: Any) -> Any:
    """Return a value of YAML as JSON has it, where all keys are text.  Raises ValueError."""
    if isinstance(value, dict):
        return {_key(name): _json(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_json(one) for one in value]
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise ValueError(f"a value of the type {type(value).__name__}, which JSON does not have")


def _key(name: Any) -> str:
    return name if isinstance(name, str) else json.dumps(_json(name))


def _objects(body: Any, line: int, problems: Problems) -> Iterator[Object]:
    """Yield the objects of a document; a list of kubectl's has several."""
    if body is None:
        return
    if not isinstance(body, dict):
        hint = "write apiVersion, kind and metadata"
        problems.add_at(line, 1, "an object of the API", type(body).__name__, hint)
        return
    if isinstance(body.get("items"), list) and str(body.get("kind", "")).endswith("List"):
        for one in body["items"]:
            yield from _objects(one, line, problems)
        return
    about = body.get("metadata") or {}
    named = isinstance(about, dict) and about.get("name")
    parts = {"apiVersion": body.get("apiVersion"), "kind": body.get("kind"), "metadata.name": named}
    missing = [key for key, value in parts.items() if not isinstance(value, str) or not value]
    for key in missing:
        hint = f"add {key}: an object is found by it when the file changes"
        problems.add_at(line, 1, f"the key {key}", "none", hint)
    if not missing:
        yield body


def steps(topology: Topology, after: tuple[str, ...]) -> Iterator[Step]:
    """Yield the step that applies the files, if there are any."""
    cluster = KubernetesSection.of(topology)
    if cluster.apply:
        needs = (*after, f"{MANAGES} {cluster.control_plane}")
        yield Step(STEP, ", ".join(cluster.apply), needs, act=_apply)


def _apply(context: Context) -> tuple[str, bool]:
    documents = read(context.topology)
    node, words = client.control_plane(context), counted(len(documents), "object")
    wanted = [document.identity for document in documents]
    digest = digest_of([document.body for document in documents])
    before = _Former.of(node)
    if before.digest == digest and before.objects == wanted:
        return words, False
    # If this is interrupted, a later run still knows all objects.
    _Former("", list(dict.fromkeys([*before.objects, *wanted]))).note(node)
    cluster = _Cluster(context)
    cluster.has_account(DEFAULT)
    for document in documents:
        cluster.apply(document)
    gone = [one for one in before.objects if one not in wanted]
    cluster.delete(gone)
    _Former(digest, wanted).note(node)
    return words + (f", {len(gone)} deleted" if gone else ""), True


def forget(context: Context) -> int:
    """Delete the objects of a file that had some, and has none now; return their number."""
    node = client.control_plane(context)
    if KubernetesSection.of(context.topology).apply or not (former := _Former.of(node)).objects:
        return 0
    _Cluster(context).delete(former.objects)
    _Former("", []).note(node)
    return len(former.objects)


@dataclass(frozen=True, slots=True)
class _Former:
    """The objects that were applied last, as noted on the node of the control plane."""

    digest: str
    objects: list[Identity]

    @classmethod
    def of(cls, node: Node) -> _Former:
        found = json.loads(marked(node, MARK) or '["", []]')
        version_kind = ((v, k, namespace, name) for v, k, namespace, name in found[1])
        return cls(found[0], list(version_kind))

    def note(self, node: Node) -> None:
        mark(node, MARK, json.dumps([self.digest, self.objects]))


@dataclass(slots=True)
class _Cluster:
    """The API of a running cluster, and the kinds of objects that it has."""

    context: Context
    api: Api = field(init=False)
    _kinds: dict[str, dict[str, Object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.api = client.api(self.context)

    def apply(self, document: Document) -> None:
        """Create or change an object, and wait until others can rely on it.

        Raises LabError with the document if the server refuses it.
        """
        version, kind, _, name = document.identity
        path = self._path(document.identity)
        if path is None:
            raise LabError(
                f"{document.where}: the cluster has no kind {kind} in {version}",
                hint="check apiVersion and kind; a custom resource follows its definition",
            )
        try:
            self.api.ask(
                "PATCH",
                f"{path}?fieldManager={MANAGER}&force=true",
                document.body,
                kind="application/apply-patch+yaml",
            )
        except Refused as error:
            hint = "correct the file, and run `testbed up` again"
            if error.code == 422:  # Invalid: for example, a field that cannot change
                hint += "; an object with a field that cannot change must be deleted first"
            raise LabError(
                f"{document.where}, {kind} {name}: {error.message}", hint=hint
            ) from error
        if kind == "CustomResourceDefinition":
            self._is_known(document.body)
        elif (version, kind) == ("v1", "Namespace"):
            self.has_account(name)

    def delete(self, objects: Sequence[Identity]) -> None:
        """Delete objects, the last one first."""
        for one in reversed(objects):
            if (path := self._path(one)) is None:
                continue  # its kind has been deleted with all its objects
            try:
                self.api.ask("DELETE", path, {"propagationPolicy": "Background"})
            except Refused as error:
                if error.code != 404:
                    raise

    def has_account(self, namespace: str) -> None:
        """Wait for the account of a namespace, without which no Pod can be created."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{DEFAULT}"
        self._until(lambda: self.api.find(path) is not None, f"an account in {namespace}")

    def _is_known(self, definition: Object) -> None:
        """Wait until the API has the kind of a custom resource definition."""
        group, kind = definition["spec"]["group"], definition["spec"]["names"]["kind"]
        versions = [one["name"] for one in definition["spec"]["versions"] if one.get("served")]

        def known() -> bool:
            self._kinds.clear()
            return all(kind in self._of(f"{group}/{version}") for version in versions)

        self._until(known, f"the kind {kind}")

    def _until(self, so: Callable[[], bool], what: str) -> None:
        node = KubernetesSection.of(self.context.topology).control_plane
        client.until(self.context, node, so, what, service=MANAGES)

    def _path(self, one: Identity) -> str | None:
        """Return the path of an object in the API; None for an unknown kind."""
        version, kind, namespace, name = one
        resource = self._of(version).get(kind)
        if resource is None:
            return None
        place = f"/namespaces/{namespace or DEFAULT}" if resource["namespaced"] else ""
        return f"{_group(version)}{place}/{resource['name']}/{name}"

    def _of(self, version: str) -> dict[str, Object]:
        """Return the kinds of a group and version."""
        if version not in self._kinds:
            found = self.api.find(_group(version)) or {"resources": []}
            # A name with a slash is a part of another, such as pods/status.
            self._kinds[version] = {
                one["kind"]: one for one in found["resources"] if "/" not in one["name"]
            }
        return self._kinds[version]


def _group(version: str) -> str:
    """Return the path of a group and version (kubernetes.io, "API groups").

    >>> _group("v1"), _group("apps/v1")
    ('/api/v1', '/apis/apps/v1')
    """
    return f"/apis/{version}" if "/" in version else f"/api/{version}"
