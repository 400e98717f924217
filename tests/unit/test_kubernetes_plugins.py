"""Network plugins of clusters: what each is told, asks for and gives, and which are refused."""

from __future__ import annotations

import json
import re
import tarfile
import tomllib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import pytest
import yaml

from testbed import doctor, kernel
from testbed.artifacts import archive
from testbed.artifacts.store import Store
from testbed.errors import ArtifactError, LabError, TopologyError, UsageError
from testbed.labs import plan, preflight
from testbed.nodes.base import Result
from testbed.process import Completed
from testbed.registry import ROLES
from testbed.roles.kubernetes import runtime
from testbed.roles.kubernetes.plugins import PLUGINS, bgp, cilium, flannel, plugin_of
from testbed.roles.kubernetes.plugins.manifest import (
    Brought,
    ByManifest,
    applied,
    refuse_images,
    rolled_out,
)
from testbed.roles.kubernetes.section import PLUGINS as NAMES
from testbed.roles.kubernetes.section import KubernetesSection, Plugin
from testbed.steps.context import Context
from testbed.suites import everything
from testbed.testing.fakes import FakeStore, Files
from testbed.topology.load import Overrides, load

if TYPE_CHECKING:
    from testbed.topology.model import Topology

BROUGHT = [plugin for plugin in PLUGINS.values() if isinstance(plugin, Brought)]


def save(path: Path, tags: list[str], *, processor: str = "") -> None:
    """Write an archive of an image with no layer, as docker save writes it."""
    config = {"architecture": processor or archive.processor(), "os": "linux"}
    manifest = [{"Config": "c.json", "RepoTags": tags or None, "Layers": []}]
    with tarfile.open(path, "w") as tar:
        for name, value in (("c.json", config), ("manifest.json", manifest)):
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def toml_of(hint: str) -> str:
    """Those lines of a hint that are for the configuration file."""
    lines = [line.strip() for line in hint.splitlines()]
    return "\n".join(line for line in lines if re.fullmatch(r'\[\w+\."\S+"\]|path = ".*"', line))


def with_plugin(name: str) -> Topology:
    return load("k8s-two-node", Overrides(cni=name))


def test_each_plugin_of_the_model_has_its_module() -> None:
    assert list(PLUGINS) == list(NAMES) == list(get_args(Plugin))


@pytest.mark.parametrize("name", NAMES)
def test_each_makes_a_plan_that_works_out(name: str) -> None:
    topology = with_plugin(name)
    steps = plan.make(topology).steps
    plugin = plugin_of(topology)
    for node in ("node1", "node2"):
        assert set(plugin.ready_after(node)) <= set(steps)
        assert set(plugin.ready_after(node)) <= set(steps[f"ready {node}"].needs)
        assert set(plugin.services) <= set(ROLES["kubernetes"].services_on(topology, node))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_pod_joins_can_be_written_down(name: str) -> None:
    topology = with_plugin(name)
    for node in ("node1", "node2"):
        network = plugin_of(topology).network(topology, node)
        assert (network is None) == isinstance(plugin_of(topology), ByManifest)
        assert network is None or json.loads(json.dumps(network))["plugins"]


@pytest.mark.parametrize("name", NAMES)
def test_its_rights_are_those_of_its_users(name: str) -> None:
    topology = with_plugin(name)
    plugin = plugin_of(topology)
    bound = {
        subject["name"]
        for _, body in plugin.objects(topology)
        for subject in body.get("subjects", ())
    }
    if isinstance(plugin, ByManifest):  # which brings them along
        assert bound == set()
    else:
        assert bound == set(plugin.clients.values())


def test_flannel_is_told_of_its_backend() -> None:
    cluster = KubernetesSection.find(load("k8s-two-node", Overrides(backend="host-gw")))
    assert cluster is not None
    assert flannel.settings(cluster)["Backend"] == {"Type": "host-gw"}
    assert "pods-over-vxlan" not in PLUGINS["flannel"].features(cluster)


def test_each_node_has_a_session_with_each_other_and_announces_its_own(tmp_path: Path) -> None:
    spec = with_plugin("bgp").to_dict() | {"name": "three"}
    spec["nodes"]["node3"] = {"networks": {"lan": "10.168.0.4"}, "roles": ["kubernetes"]}
    spec["kubernetes"]["ranges"].pop("node2")
    spec["kubernetes"].pop("ranges")
    path = tmp_path / "three.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    said = bgp.settings(load(str(path)), "node2")
    assert "router id 10.168.0.3;" in said
    assert "route 100.96.2.0/24 unreachable;" in said
    assert "neighbor 10.168.0.2 as 64512;" in said
    assert "neighbor 10.168.0.4 as 64512;" in said
    assert "neighbor 10.168.0.3" not in said
    assert "100.96.0.0/16{24,24}" in said
    assert 'protocol direct { ipv4; interface "eth0"; }' in said


def test_pods_have_the_links_whole_mtu_where_nothing_is_wrapped_up() -> None:
    topology = with_plugin("bgp")
    network = plugin_of(topology).network(topology, "node1")
    assert network is not None
    assert network["plugins"][0]["mtu"] == 1500


def test_ciliums_agent_leaves_services_and_translation_to_others() -> None:
    said = cilium.words("/sys/fs/cgroup/unified", "eth1")
    for flag in ("kube-proxy-replacement", "install-iptables-rules", "enable-ipv4-masquerade"):
        assert f"--{flag}=false" in said
    assert "--cgroup-root=/sys/fs/cgroup/unified" in said
    assert "--devices=eth1" in said


@pytest.mark.parametrize(("name", "enforces"), [
    ("flannel", False), ("bgp", False), ("cilium", True), ("calico", True),
    ("kube-router", True), ("weave", True),
])  # fmt: skip
def test_a_lab_has_policies_by_those_that_enforce_them(name: Plugin, enforces: bool) -> None:
    cluster = KubernetesSection.find(with_plugin(name))
    assert cluster is not None
    found = PLUGINS[name].features(cluster)
    assert f"pods-by-{name}" in found
    assert ("network-policy" in found) == enforces


def test_a_backend_is_flannels_alone(tmp_path: Path) -> None:
    assert "backend" not in with_plugin("bgp").to_dict()["kubernetes"]
    with pytest.raises(TopologyError, match="backend"):
        load("k8s-two-node", Overrides(cni="bgp", backend="vxlan"))


def test_an_unknown_plugin_is_told_with_the_known() -> None:
    with pytest.raises(UsageError, match="cillium") as caught:
        with_plugin("cillium")
    assert "cilium" in str(caught.value.hint)


def test_routes_are_within_one_segment(tmp_path: Path) -> None:
    spec = with_plugin("bgp").to_dict()
    spec["networks"]["other"] = {"subnet": "10.169.0.0/24"}
    spec["nodes"]["node2"]["networks"] = {"other": "10.169.0.3"}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(spec), encoding="utf-8")
    with pytest.raises(TopologyError, match="network"):
        load(str(path))


# -- those that must be brought ---------------------------------------------------------------


class Bringing:
    """A user's parts of a plugin: manifest, images, and the configuration that names them."""

    def __init__(self, folder: Path, plugin: Brought) -> None:
        self.folder = folder
        self.plugin = plugin
        self.config: dict[str, list[str]] = {"artifacts": [], "images": []}

    def manifest(self, *images: str, daemon_set: str = "") -> None:
        spec = {"containers": [{"name": f"c{n}", "image": name} for n, name in enumerate(images)]}
        one = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": daemon_set or self.plugin.daemon_set, "namespace": "kube-system"},
            "spec": {"template": {"spec": spec}},
        }
        text = yaml.safe_dump_all([{"kind": "List", "items": [one]}])
        self.text(text)

    def text(self, text: str) -> None:
        (self.folder / "m.yaml").write_text(text, encoding="utf-8")
        self.config["artifacts"] = [f'{self.plugin.manifest} = {{path = "m.yaml"}}']

    def image(self, key: str, *tags: str, processor: str = "") -> None:
        save(self.folder / f"{key}.tar", list(tags), processor=processor)
        self.config["images"].append(f'{key} = {{path = "{key}.tar"}}')

    def store(self) -> Store:
        lines = [line for name, of in self.config.items() for line in (f"[{name}]", *of)]
        (self.folder / "config.toml").write_text("\n".join(lines), encoding="utf-8")
        return Store(self.folder / "cache")


@pytest.fixture(params=BROUGHT, ids=lambda one: one.name)
def bringing(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Bringing:
    monkeypatch.setenv("TESTBED_CONFIG", str(tmp_path / "config.toml"))
    return Bringing(tmp_path, request.param)


def refused(bringing: Bringing) -> ArtifactError:
    """A lab with missing software is refused with the reason for which `verify` skips it."""
    store, topology = bringing.store(), with_plugin(bringing.plugin.name)
    with pytest.raises(ArtifactError) as caught:
        ROLES["kubernetes"].fetch(store, topology)
    assert everything.lacking(store, topology) == caught.value.message
    return caught.value


def test_nothing_starts_without_a_manifest(bringing: Bringing) -> None:
    error = refused(bringing)
    assert bringing.plugin.manifest in error.message
    assert "config.toml" in str(error.hint)
    told = tomllib.loads(toml_of(str(error.hint)))
    assert set(told["artifacts"]) == {bringing.plugin.manifest}
    assert told["artifacts"][bringing.plugin.manifest]["path"].endswith(".yaml")


def test_the_images_are_those_that_the_manifest_names(bringing: Bringing) -> None:
    plugin = bringing.plugin
    bringing.manifest("quay.io/makers/agent:v9", "registry.example/deep/er/agent-two:1")
    error = refused(bringing)
    wanted = {plugin.key("quay.io/makers/agent:v9"), plugin.key("x/agent-two:1")}
    assert len(wanted) == 2
    told = tomllib.loads(toml_of(str(error.hint)))
    assert set(told["images"]) == wanted
    assert all(one["path"].endswith(f"{name}.tar") for name, one in told["images"].items())
    for word in ("quay.io/makers/agent:v9", "registry.example/deep/er/agent-two:1", *wanted):
        assert word in error.message


def test_all_brought_nothing_is_lacking(bringing: Bringing) -> None:
    plugin = bringing.plugin
    bringing.manifest("quay.io/makers/agent:v9", "makers/two", "busybox@sha256:" + "0" * 64)
    bringing.image(plugin.key("makers/agent"), "quay.io/makers/agent:v9")
    bringing.image("whatever", "makers/two:latest", "busybox:1")
    assert f"busybox@sha256:{'0' * 64}" in refused(bringing).message, "no archive has a digest"
    bringing.manifest("quay.io/makers/agent:v9", "makers/two")
    store = bringing.store()
    assert plugin.lacking(store) == ""
    assert plugin.images_of(store) == [plugin.key("makers/agent"), "whatever"]
    plugin.fetch(store)
    topology = with_plugin(plugin.name)
    assert set(plugin.images_of(store)) < set(runtime.images(topology, store))
    assert store.users_file(plugin.manifest) == bringing.folder / "m.yaml", (
        "a manifest need not be executable"
    )


@pytest.mark.parametrize("tags", [("quay.io/makers/agent:v8",), (), ("makers/agent:v9",)])
def test_an_archive_whose_tags_do_not_fit_is_told(
    bringing: Bringing, tags: tuple[str, ...]
) -> None:
    bringing.manifest("quay.io/makers/agent:v9")
    bringing.image(bringing.plugin.key("agent"), *tags)
    message = refused(bringing).message
    assert "quay.io/makers/agent:v9" in message
    assert all(tag in message for tag in tags)
    assert str(bringing.folder) in message


def test_an_image_for_other_machines_is_told(bringing: Bringing) -> None:
    bringing.manifest("makers/agent:9")
    bringing.image(bringing.plugin.key("agent"), "makers/agent:9", processor="m68k")
    assert "m68k" in refused(bringing).message


def test_what_is_no_archive_is_told_and_what_is_not_wanted_is_not_looked_at(
    bringing: Bringing,
) -> None:
    bringing.manifest("makers/agent:9")
    key = bringing.plugin.key("agent")
    bringing.image(key, "makers/agent:9")
    bringing.image("another")
    (bringing.folder / "another.tar").write_text("nothing that anybody asks for")
    bringing.config["images"].append('gone = {path = "gone.tar"}')
    assert bringing.plugin.lacking(bringing.store()) == ""
    (bringing.folder / f"{key}.tar").write_text("no archive at all")
    assert f"{key}.tar" in refused(bringing).message


def test_one_that_is_still_to_be_downloaded_is_looked_at_afterwards(
    bringing: Bringing, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, key = bringing.plugin, bringing.plugin.key("agent")
    bringing.manifest("makers/agent:9")
    bringing.config["images"] = [f'{key} = {{url = "http://127.0.0.1:9/x", sha256 = "{"0" * 64}"}}']
    store = bringing.store()
    assert plugin.lacking(store) == ""
    save(bringing.folder / "fetched.tar", ["makers/agent:8"])
    monkeypatch.setattr(store, "image", lambda _: bringing.folder / "fetched.tar")
    with pytest.raises(ArtifactError, match="makers/agent:8"):
        plugin.fetch(store)


@pytest.mark.parametrize("text", ["{", "- 7", "kind: List\nitems: []\n", ""])
def test_a_file_that_is_not_the_makers_manifest_is_told(bringing: Bringing, text: str) -> None:
    bringing.text(text)
    assert "m.yaml" in refused(bringing).message
    bringing.manifest("makers/agent:9", daemon_set="somebody-elses")
    assert bringing.plugin.daemon_set in refused(bringing).message


@pytest.mark.parametrize("name", ["cilium", "kube-router"])
def test_one_whose_programs_take_long_is_left_out_until_they_are_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    monkeypatch.setattr(store, "unmade", lambda role: [name] if role == name else [])
    topology = with_plugin(name)
    assert f"testbed doctor --role {name} --fix" in everything.lacking(store, topology)
    with pytest.raises(ArtifactError, match=plugin_of(topology).title):
        ROLES["kubernetes"].fetch(store, topology)
    assert everything.lacking(store, with_plugin("bgp")) == ""


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_has_been_asked_for_all_that_a_plugin_needs(
    name: Plugin, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By `doctor` for it, too, which tells what is missing before anybody waits for `up`."""
    known = {feature.name for feature in kernel.known()}
    wanted = preflight.kernel_features(with_plugin(name)) - {*kernel.EVERY_LAB}
    assert wanted <= known
    if name != "flannel":  # as a role it is Docker's, too, and then its back end decides
        tried = Completed((), 0, b"veth\t0\t\n", b"")
        found = doctor._features(lambda *_, **__: tried)
        asked = {*doctor.needed_with(name)}
        assert {item.name for item in found if asked & {*item.needed_by}} == wanted


def test_the_kernel_is_asked_for_what_the_plugin_needs() -> None:
    assert {"dummy", "ipset"} <= preflight.kernel_features(with_plugin("weave"))
    assert "ipset" in preflight.kernel_features(with_plugin("calico"))
    assert "vxlan" in preflight.kernel_features(with_plugin("cilium"))
    assert "vxlan" not in preflight.kernel_features(with_plugin("bgp"))


# -- what is applied --------------------------------------------------------------------------


MANIFEST = """
kind: DaemonSet
metadata: {name: agent}
spec:
  template:
    spec:
      containers:
      - {name: a, image: x, imagePullPolicy: Always,
         env: [{name: A, value: "1"}, {name: B, valueFrom: {fieldRef: {fieldPath: x}}}]}
      - {name: c, image: "y/z:1@sha256:0123", env: }
      initContainers: [{name: b, image: y}]
      volumes: [{name: m, hostPath: {path: /lib/modules}}, {name: n, hostPath: {path: /etc/cni}}]
---
---
kind: List
items:
- kind: ConfigMap
  data: {image: z}
- kind: Deployment
  metadata: {name: agent}
  spec: {template: {spec: {containers: [{name: a, image: z}]}}}
- kind: CustomResourceDefinition
  spec: {properties: {image: {type: string}, name: {type: string}, containers: {type: array}}}
"""


@pytest.mark.parametrize("modules", [True, False])
def test_no_registry_is_asked_and_no_folder_made_in_the_machines(modules: bool) -> None:
    first, second, third, kind = applied(MANIFEST, modules=modules)
    spec = first["spec"]["template"]["spec"]
    for one in (*spec["containers"], *spec["initContainers"]):
        assert one["imagePullPolicy"] == "IfNotPresent"
    own = {"hostPath": {"path": "/lib/modules"}} if modules else {"emptyDir": {}}
    assert spec["volumes"] == [
        {"name": "m", **own},
        {"name": "n", "hostPath": {"path": "/etc/cni"}},
    ]
    assert spec["containers"][1]["image"] == "docker.io/y/z:1", "what an archive has is a tag"
    assert second == {"kind": "ConfigMap", "data": {"image": "z"}}
    assert third["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    words = {"image": {"type": "string"}, "name": {"type": "string"}}
    assert kind["spec"] == {"properties": {**words, "containers": {"type": "array"}}}


def test_what_a_plugin_is_told_is_in_its_manifest() -> None:
    told = {"B": "two", "NEW": "3"}
    first, _, third, _ = applied(MANIFEST, "agent", told, modules=True)
    a, c = first["spec"]["template"]["spec"]["containers"]
    assert a["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "two"},
        {"name": "NEW", "value": "3"},
    ]
    new = [{"name": "B", "value": "two"}, {"name": "NEW", "value": "3"}]
    assert c["env"] == new
    assert first["spec"]["template"]["spec"]["initContainers"][0]["env"] == new
    assert "env" not in third["spec"]["template"]["spec"]["containers"][0], "another of that name"


# -- applied, changed, applied again ----------------------------------------------------------


class Kubectl(Files):
    """A node of the control plane: keeps its marks, and what kubectl is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[list[str], list[Any]]] = []

    def run(self, argv: list[str], **how: Any) -> Result:
        if "kubectl" in argv[0]:
            documents = how.get("input", b"").decode().split("\n---\n")
            self.calls.append((argv[2:], [json.loads(one) for one in documents]))
        return Result(tuple(argv), 0, b"", b"", 0.0)


@dataclass
class Applying:
    """A plugin of a manifest that can change, and the node that it is applied by."""

    folder: Path
    node: Kubectl
    context: Context

    def apply(self, *objects: dict[str, Any]) -> list[tuple[list[str], list[Any]]]:
        """The calls of kubectl when the manifest was these objects."""
        (self.folder / "m.yaml").write_text(yaml.safe_dump_all(objects), encoding="utf-8")
        self.node.calls.clear()
        plugin = PLUGINS["calico"]
        assert isinstance(plugin, ByManifest)
        plugin._apply(self.context)
        return list(self.node.calls)


@pytest.fixture
def applying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Applying:
    store = FakeStore()
    monkeypatch.setattr(store, "users_file", lambda _: tmp_path / "m.yaml")
    node = Kubectl()
    context = Context(with_plugin("calico"), cast("Any", None), store, {"node1": cast("Any", node)})
    return Applying(tmp_path, node, context)


def an_object(kind: str, name: str, **more: object) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": "n"}, **more}


AGENT = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "calico-node", "namespace": "kube-system"},
    "spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}},
}


def test_a_manifest_is_applied_once_and_again_when_it_changes(applying: Applying) -> None:
    one, two = an_object("ConfigMap", "one"), an_object("ConfigMap", "two")
    ((argv, objects),) = applying.apply(AGENT, one)
    assert argv[0] == "apply"
    assert {"--server-side", "--force-conflicts"} <= set(argv)
    told = objects[0]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "CALICO_IPV4POOL_CIDR", "value": "100.96.0.0/16"} in told
    assert applying.apply(AGENT, one) == [], "nothing has changed"
    ((argv, objects),) = applying.apply(AGENT, one, two)
    assert (argv[0], objects[1:]) == ("apply", [one, two])


def test_what_a_changed_manifest_no_longer_has_is_removed(applying: Applying) -> None:
    kind = an_object("CustomResourceDefinition", "kinds")
    one = an_object("ConfigMap", "one", data={"a": "b"})
    applying.apply(AGENT, one, kind)
    _, (argv, objects) = applying.apply(AGENT)
    assert argv[0] == "delete"
    assert objects == [an_object("ConfigMap", "one")], "of a kind there may be objects of others"


def test_a_manifest_of_an_earlier_version_is_applied_again(applying: Applying) -> None:
    applying.node.files["/run/testbed/done/calico"] = b"/some/path 17 [('A', 'b')]"
    ((argv, _),) = applying.apply(AGENT)
    assert argv[0] == "apply"


# -- what comes of it -------------------------------------------------------------------------


def daemon_set(generation: int, observed: int, updated: int, kind: str = "RollingUpdate") -> Any:
    return {
        "metadata": {"generation": generation},
        "spec": {"updateStrategy": {"type": kind}},
        "status": {
            "observedGeneration": observed,
            "desiredNumberScheduled": 2,
            "updatedNumberScheduled": updated,
        },
    }


@pytest.mark.parametrize(("one", "so"), [
    (daemon_set(1, 1, 2), True), (daemon_set(2, 1, 2), False), (daemon_set(2, 2, 1), False),
    (daemon_set(2, 2, 0, "OnDelete"), True), (daemon_set(2, 1, 0, "OnDelete"), False), ({}, False),
])  # fmt: skip
def test_pods_from_before_a_change_do_not_count(one: Any, so: bool) -> None:
    assert rolled_out(one) == so


@pytest.mark.parametrize("key", ["initContainerStatuses", "containerStatuses"])
def test_a_pod_whose_image_will_never_come_is_not_waited_for(key: str) -> None:
    def waiting(reason: str) -> list[Any]:
        state = {"waiting": {"reason": reason, "message": "no such image"}}
        return [{"metadata": {"name": "p"}, "status": {key: [{"name": "c", "state": state}]}}]

    refuse_images(waiting("PodInitializing"), "node1")
    refuse_images([{"metadata": {"name": "p"}, "status": {}}], "node1")
    with pytest.raises(LabError, match="p/c on node1"):
        refuse_images(waiting("ErrImagePull"), "node1")


def test_kube_router_asks_as_the_account_that_its_manifest_gives_rights_to() -> None:
    plugin = PLUGINS["kube-router"]
    assert plugin.clients == {"kube-router": "system:serviceaccount:kube-system:kube-router"}


def test_ciliums_rights() -> None:
    """Cilium, install/kubernetes/cilium/templates/*/clusterrole.yaml, as far as it is used."""
    see = ("get", "list", "watch")
    seen = {
        ("", ("namespaces", "services", "pods", "endpoints", "nodes"), see),
        ("discovery.k8s.io", ("endpointslices",), see),
        ("", ("nodes", "nodes/status"), ("patch",)),
        ("cilium.io", ("*",), ("*",)),
        ("apiextensions.k8s.io", ("customresourcedefinitions",), (*see, "create", "update")),
    }
    leases = ("coordination.k8s.io", ("leases",), ("create", "get", "update"))
    policies = ("networking.k8s.io", ("networkpolicies",), see)
    topology = with_plugin("cilium")
    found = {
        body["metadata"]["name"]: {
            (*rule["apiGroups"], tuple(rule["resources"]), tuple(rule["verbs"]))
            for rule in body["rules"]
        }
        for _, body in plugin_of(topology).objects(topology)
        if body["kind"] == "ClusterRole"
    }
    assert found == {"cilium-agent": seen | {policies}, "cilium-operator": seen | {leases}}
