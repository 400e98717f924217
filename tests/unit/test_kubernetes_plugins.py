"""Network plugins of clusters: what each is told, asks for and gives, and which are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import pytest
import yaml
from fakes import FakeStore

from testbed.artifacts.store import Store
from testbed.errors import ArtifactError, TopologyError, UsageError
from testbed.lab import plan, preflight
from testbed.roles import ROLES
from testbed.roles.kubernetes.plugins import PLUGINS, bgp, cilium, flannel, plugin_of
from testbed.roles.kubernetes.plugins.manifest import Brought, ByManifest, applied
from testbed.suites import everything
from testbed.topology.load import Overrides, load
from testbed.topology.model import PLUGINS as NAMES
from testbed.topology.model import Plugin

if TYPE_CHECKING:
    from testbed.topology.model import Topology

BROUGHT = [plugin for plugin in PLUGINS.values() if isinstance(plugin, Brought)]


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
    cluster = load("k8s-two-node", Overrides(backend="host-gw")).kubernetes
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
    said = cilium.words("/sys/fs/cgroup/unified")
    for flag in ("kube-proxy-replacement", "install-iptables-rules", "enable-ipv4-masquerade"):
        assert f"--{flag}=false" in said
    assert "--cgroup-root=/sys/fs/cgroup/unified" in said


@pytest.mark.parametrize(("name", "enforces"), [
    ("flannel", False), ("bgp", False), ("cilium", True), ("calico", True),
    ("kube-router", True), ("weave", True),
])  # fmt: skip
def test_a_lab_has_policies_by_those_that_enforce_them(name: Plugin, enforces: bool) -> None:
    cluster = with_plugin(name).kubernetes
    assert cluster is not None
    found = PLUGINS[name].features(cluster)
    assert f"pods-by-{name}" in found
    assert ("network-policy" in found) == enforces


def test_a_backend_is_flannels_alone(tmp_path: Path) -> None:
    assert "backend" not in with_plugin("bgp").to_dict()["kubernetes"]
    with pytest.raises(TopologyError, match="flannel's"):
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


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("TESTBED_CONFIG", str(tmp_path / "config.toml"))
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    return Store(tmp_path / "cache")


@pytest.mark.parametrize("plugin", BROUGHT, ids=lambda one: one.name)
def test_nothing_starts_without_what_must_be_brought(plugin: Brought, store: Store) -> None:
    topology = with_plugin(plugin.name)
    with pytest.raises(ArtifactError, match=f"{plugin.title} is not here") as caught:
        ROLES["kubernetes"].fetch(store, topology)
    for name in (plugin.manifest, *plugin.images):
        assert name in caught.value.message
        assert f"{name} = {{path" in str(caught.value.hint)
    assert "config.toml" in str(caught.value.hint)
    assert everything.lacking(store, topology) == caught.value.message


@pytest.mark.parametrize("plugin", BROUGHT, ids=lambda one: one.name)
def test_all_brought_nothing_is_lacking(
    plugin: Brought, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.yaml").write_text("kind: List\n", encoding="utf-8")
    lines = [f'[artifacts]\n{plugin.manifest} = {{path = "m.yaml"}}', "[images]"]
    lines += [f'{name} = {{path = "i.tar"}}' for name in plugin.images[1:]]
    config = tmp_path / "config.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setenv("TESTBED_CONFIG", str(config))
    assert plugin.images[0] in plugin.lacking(Store(tmp_path))
    config.write_text("\n".join([*lines, f'{plugin.images[0]} = {{path = "i.tar"}}']))
    store = Store(tmp_path)
    assert plugin.lacking(store) == ""
    assert store.users_file(plugin.manifest) == tmp_path / "m.yaml", (
        "a manifest need not be executable"
    )


@pytest.mark.parametrize("name", ["cilium", "kube-router"])
def test_one_whose_programs_take_long_is_left_out_until_they_are_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FakeStore()
    monkeypatch.setattr(store, "unmade", lambda role: [name] if role == name else [])
    topology = with_plugin(name)
    assert f"testbed doctor --role {name} --fix" in everything.lacking(store, topology)
    with pytest.raises(ArtifactError, match=f"{plugin_of(topology).title} is not built yet"):
        ROLES["kubernetes"].fetch(store, topology)
    assert everything.lacking(store, with_plugin("bgp")) == ""


def test_the_kernel_is_asked_for_what_the_plugin_needs() -> None:
    assert "vxlan" in preflight.kernel_features(with_plugin("cilium"))
    assert "vxlan" not in preflight.kernel_features(with_plugin("bgp"))


# -- what is applied --------------------------------------------------------------------------


MANIFEST = """
kind: DaemonSet
spec:
  template:
    spec:
      containers: [{name: a, image: x, imagePullPolicy: Always}]
      initContainers: [{name: b, image: y}]
      volumes: [{name: m, hostPath: {path: /lib/modules}}, {name: n, hostPath: {path: /etc/cni}}]
---
---
kind: ConfigMap
data: {image: z}
"""


@pytest.mark.parametrize("modules", [True, False])
def test_no_registry_is_asked_and_no_folder_made_in_the_machines(modules: bool) -> None:
    first, second = map(json.loads, applied(MANIFEST, modules=modules).split("\n---\n"))
    spec = first["spec"]["template"]["spec"]
    for one in (*spec["containers"], *spec["initContainers"]):
        assert one["imagePullPolicy"] == "IfNotPresent"
    own = {"hostPath": {"path": "/lib/modules"}} if modules else {"emptyDir": {}}
    assert spec["volumes"] == [
        {"name": "m", **own},
        {"name": "n", "hostPath": {"path": "/etc/cni"}},
    ]
    assert second == {"kind": "ConfigMap", "data": {"image": "z"}}


def test_kube_router_asks_as_the_account_that_its_manifest_gives_rights_to() -> None:
    plugin = PLUGINS["kube-router"]
    assert plugin.clients == {"kube-router": "system:serviceaccount:kube-system:kube-router"}
