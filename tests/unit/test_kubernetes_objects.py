"""Objects of the user's files on a cluster: read, applied in order, changed and deleted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from testbed.errors import LabError, TopologyError
from testbed.labs import plan
from testbed.nodes.base import NodeSpec
from testbed.registry import ROLES
from testbed.roles.kubernetes import client, daemons, objects
from testbed.roles.kubernetes.api import Refused
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.steps.context import Context
from testbed.topology import load, load_data

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.testing.fakes import Bench
    from testbed.topology import Topology

LAB = """\
name: files
networks: {lan: {subnet: 10.168.0.0/24}}
nodes: {node1: {networks: {lan: 10.168.0.2}, roles: [kubernetes]}}
kubernetes: {%s}
"""
WEB = """\
# A comment before the first document is none.
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {a: "1"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
"""
CUSTOM = """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.org}
spec:
  group: example.org
  names: {kind: Widget, plural: widgets}
  versions: [{name: v1, served: true}, {name: v0, served: false}]
---
apiVersion: v1
kind: List
items:
  - {apiVersion: example.org/v1, kind: Widget, metadata: {name: one}}
"""


def written(folder: Path, section: str, **files: str) -> Topology:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    (folder / "lab.yaml").write_text(LAB % section, encoding="utf-8")
    return load(folder / "lab.yaml")


def resource(kind: str, name: str, *, namespaced: bool) -> dict[str, Any]:
    return {"kind": kind, "name": name, "namespaced": namespaced}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2024-01-01", "2024-01-01"),
        ("12:30:45", "12:30:45"),
        ("1:30.5", "1:30.5"),
        ("=", "="),
        ("0644", 0o644),
        ("yes", True),
        ("{2: a, true: b, null: c}", {"2": "a", "true": "b", "null": "c"}),
    ],
)
def test_yaml_is_read_as_kubectl_does(tmp_path: Path, text: str, value: object) -> None:
    one = f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a}}, data: {{x: {text}}}}}"
    (document,) = objects.read(written(tmp_path, "apply: one.yaml", one=one))
    assert document.body["data"]["x"] == value
    json.dumps(document.body, sort_keys=True)


@pytest.mark.parametrize("text", ["!!set {a, b}", "&a [*a]"])
def test_a_value_that_json_does_not_have_is_refused(tmp_path: Path, text: str) -> None:
    one = f"{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a}}, data: {text}}}"
    topology = written(tmp_path, "apply: one.yaml", one=one)
    with pytest.raises(TopologyError):
        objects.read(topology)


def test_a_missing_file_is_found_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(TopologyError) as caught:
        written(tmp_path, "apply: [web.yaml, none.yaml]", web=WEB)
    (problem,) = caught.value.problems
    assert (problem.line, "none.yaml" in problem.seen) == (4, True)


@pytest.mark.parametrize(("value", "hint"), [("yes", '"yes"'), ("[a]", "a,b"), ("", "its value")])
def test_a_flag_that_is_no_text_has_a_hint(tmp_path: Path, value: str, hint: str) -> None:
    with pytest.raises(TopologyError) as caught:
        written(tmp_path, f"arguments: {{kubelet: {{v: {value}}}}}")
    assert hint in caught.value.problems[0].hint


class FakeApi:
    """Kinds of objects by group and version, and each change that was asked for."""

    def __init__(self) -> None:
        self.kinds: dict[str, list[dict[str, Any]]] = {
            "/api/v1": [
                resource("Namespace", "namespaces", namespaced=False),
                resource("Namespace", "namespaces/status", namespaced=False),
                resource("ConfigMap", "configmaps", namespaced=True),
            ],
            "/apis/apps/v1": [resource("Deployment", "deployments", namespaced=True)],
            "/apis/apiextensions.k8s.io/v1": [
                resource("CustomResourceDefinition", "customresourcedefinitions", namespaced=False)
            ],
        }
        self.changes: list[tuple[str, str]] = []
        self.refused: dict[str, Refused] = {}
        self.late = 0  #: questions after a definition until its kind is known

    def find(self, path: str) -> dict[str, Any] | None:
        if "/serviceaccounts/" in path:
            return {}
        if path == "/apis/example.org/v1":
            self.late -= 1
            known = any("customresourcedefinitions" in one for _, one in self.changes)
            if not known or self.late >= 0:
                return None
            return {"resources": [resource("Widget", "widgets", namespaced=True)]}
        return {"resources": self.kinds[path]} if path in self.kinds else None

    def ask(self, method: str, path: str, body: Any = None, *, kind: str = "") -> dict[str, Any]:
        assert (kind == "application/apply-patch+yaml") == (method == "PATCH")
        assert body
        if error := self.refused.get(path.partition("?")[0]):
            raise error
        self.changes.append((method, path.removesuffix("?fieldManager=testbed&force=true")))
        return {}


class Cluster:
    """One node of a cluster, and its API."""

    def __init__(self, bench: Bench, topology: Topology, api: FakeApi) -> None:
        self.api = api
        made = bench.provider.create("files", [NodeSpec("node1", "d")])
        self.bench, self.made = bench, made
        self.topology = topology

    def up(self, topology: Topology | None = None) -> tuple[str, bool]:
        self.api.changes.clear()
        topology = topology or self.topology
        context = Context(topology, self.bench.provider, self.bench.store, self.made)
        for step in objects.steps(topology, ()):
            return step.act(context)
        return str(objects.forget(context)), False


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    found = FakeApi()
    monkeypatch.setattr(client, "api", lambda _: found)
    monkeypatch.setattr(client, "POLL", 0)
    return found


NAMESPACE = "/api/v1/namespaces/shop"
SETTINGS = "/api/v1/namespaces/shop/configmaps/settings"
DEPLOYMENT = "/apis/apps/v1/namespaces/default/deployments/web"


def test_objects_are_applied_in_the_order_of_the_file(
    tmp_path: Path, bench: Bench, api: FakeApi
) -> None:
    cluster = Cluster(bench, written(tmp_path, "apply: [web.yaml]", web=WEB), api)
    assert cluster.up() == ("3 objects", True)
    assert api.changes == [("PATCH", path) for path in (NAMESPACE, SETTINGS, DEPLOYMENT)]
    assert cluster.up() == ("3 objects", False)
    assert api.changes == []


def test_a_changed_file_changes_objects_and_deletes_those_that_it_lost(
    tmp_path: Path, bench: Bench, api: FakeApi
) -> None:
    cluster = Cluster(bench, written(tmp_path, "apply: [web.yaml]", web=WEB), api)
    cluster.up()
    (tmp_path / "web.yaml").write_text(WEB.rpartition("---")[0].replace('"1"', '"2"'))
    assert cluster.up() == ("2 objects, 1 deleted", True)
    assert api.changes == [("PATCH", NAMESPACE), ("PATCH", SETTINGS), ("DELETE", DEPLOYMENT)]
    # Without the key, all of them go, the last one first; one that is gone already is no error.
    api.refused[SETTINGS] = Refused(404, "not found")
    assert cluster.up(written(tmp_path, ""))[0] == "2"
    assert api.changes == [("DELETE", NAMESPACE)]
    assert cluster.up(written(tmp_path, ""))[0] == "0"


def test_a_custom_resource_waits_for_its_definition(
    tmp_path: Path, bench: Bench, api: FakeApi
) -> None:
    api.late = 3
    cluster = Cluster(bench, written(tmp_path, "apply: [custom.yaml]", custom=CUSTOM), api)
    cluster.up()
    assert [path for _, path in api.changes] == [
        "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.example.org",
        "/apis/example.org/v1/namespaces/default/widgets/one",
    ]


def test_a_refused_object_is_named_with_its_document(
    tmp_path: Path, bench: Bench, api: FakeApi
) -> None:
    cluster = Cluster(bench, written(tmp_path, "apply: [web.yaml]", web=WEB), api)
    api.refused[SETTINGS] = Refused(422, "data: Invalid value")
    with pytest.raises(LabError, match=r"web\.yaml, document 2, ConfigMap settings: .*Invalid"):
        cluster.up()
    # It is tried again, and what was applied before the error is known.
    api.refused.clear()
    assert cluster.up() == ("3 objects", True)


def test_an_unknown_kind_is_named_with_its_document(
    tmp_path: Path, bench: Bench, api: FakeApi
) -> None:
    text = "apiVersion: apps/v1\nkind: Deploymnet\nmetadata: {name: web}\n"
    cluster = Cluster(bench, written(tmp_path, "apply: [web.yaml]", web=text), api)
    with pytest.raises(LabError, match=r"web\.yaml, document 1: .*Deploymnet in apps/v1"):
        cluster.up()


@pytest.mark.parametrize(("text", "line", "words"), [
    ("a: 1\n---\n- b\n", 3, "document 2: an object of the API"),
    ("apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n", 1, "metadata.name"),
    ("apiVersion: v1\nmetadata: {name: x}\n", 1, "kind"),
    ("apiVersion: v1\n---\nkind: [Pod\n", 4, "YAML in document 2"),
    ("kind: List\nitems: [1]\n", 1, "document 1: an object"),
])  # fmt: skip
def test_an_invalid_document_has_its_place(
    tmp_path: Path, text: str, line: int, words: str
) -> None:
    topology = written(tmp_path, "apply: [bad.yaml]", bad=text)
    with pytest.raises(TopologyError) as caught:
        objects.read(topology)
    assert caught.value.source == "bad.yaml"
    assert any(one.line == line and words in one.wanted for one in caught.value.problems)


def test_a_missing_file_ends_up_before_anything_is_created(tmp_path: Path, bench: Bench) -> None:
    topology = written(tmp_path, "apply: [none.yaml]", none=WEB)
    (tmp_path / "none.yaml").unlink()
    with pytest.raises(TopologyError, match=r"none\.yaml"):
        ROLES["kubernetes"].fetch(bench.store, topology)


def test_a_changed_file_creates_no_node_again(tmp_path: Path) -> None:
    plain = written(tmp_path, "")
    more = written(tmp_path, "apply: [web.yaml], arguments: {kubelet: {max-pods: 5}}", web=WEB)
    assert plain.node_digest("node1") == more.node_digest("node1")
    assert "arguments" not in plain.to_dict()["kubernetes"]
    assert objects.STEP in plan.make(more).steps
    assert objects.STEP not in plan.make(plain).steps


def test_flags_of_the_file_replace_those_of_the_lab(tmp_path: Path) -> None:
    topology = written(
        tmp_path,
        "arguments: {kubelet: {max-pods: 5, fail-swap-on: false}, kube-apiserver: {v: '2'}}",
    )
    given = KubernetesSection.of(topology).arguments
    assert given.of("kubelet") == {"max-pods": "5", "fail-swap-on": "false"}
    assert given.of("kube-apiserver") == {"v": "2"}
    assert given.of("kube-proxy") == {}
    assert load_data(topology.to_dict(), "record").to_dict() == topology.to_dict()
    words = ["--config=/x", "--max-pods=110", "--node-ip=10.0.0.1"]
    assert daemons.with_flags(words, given.of("kubelet")) == [
        "--config=/x", "--node-ip=10.0.0.1", "--max-pods=5", "--fail-swap-on=false",
    ]  # fmt: skip
