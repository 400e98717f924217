"""Nodes that are Pods: objects, networks, requests and streams, with an API server in memory."""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click
import pytest
from click.testing import CliRunner
from kube_api import Api, kubeconfig, served

from testbed.cli import cli
from testbed.errors import (
    LabError,
    MachineError,
    NoAnswer,
    TimeoutExpired,
    TopologyError,
    UsageError,
)
from testbed.labs.base_steps import node_spec
from testbed.leftover import Judge, Leftover
from testbed.nodes.base import NodeSpec, Result, Setup
from testbed.nodes.kubernetes import (
    BEAT,
    CONTEXT,
    DIGEST,
    IDLE,
    LAB,
    NODE,
    OWNER,
    POD_NETWORK,
    labs,
    manifests,
    networks,
    pods,
    settings,
)
from testbed.nodes.kubernetes.channel import ExecChannel
from testbed.nodes.kubernetes.cluster import Cluster, Refused
from testbed.nodes.kubernetes.entrance import Entrance
from testbed.nodes.kubernetes.labs import labs_in
from testbed.nodes.kubernetes.networks import Underlay
from testbed.nodes.kubernetes.node import PodNode
from testbed.nodes.kubernetes.provider import KubernetesProvider, defaults, privileged_nodes
from testbed.nodes.kubernetes.remembered import Place, Remembered
from testbed.nodes.kubernetes.site import Site
from testbed.testing import FakeStore
from testbed.topology import load, load_data, load_text

if TYPE_CHECKING:
    from testbed.labs.lab import Lab

TERMS = manifests.Terms(600, 3600)
MARKS = manifests.labels("lab", "me-1")
TWO = """\
name: two
provider: kubernetes
networks: {lan: {subnet: 10.50.0.0/24}, back: {subnet: 10.51.0.0/24, mtu: 1500}}
nodes:
  a: {networks: {lan: 10.50.0.2}}
  b: {networks: {lan: 10.50.0.3, back: 10.51.0.3}}
  c: {networks: {back: 10.51.0.4}, forward: true}
"""


# -- objects -----------------------------------------------------------------------------


def test_labels_are_values_that_kubernetes_takes() -> None:
    users = ("jane@example.org", "system:serviceaccount:ci:runner", "-", "x" * 300, "ä", "Jane")
    values = [manifests.owner_label(user) for user in users]
    assert len({*values}) == len(users)
    # Kubernetes documentation, "Labels and Selectors", syntax
    for value in (*values, *MARKS.values()):
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value), value


def test_a_node_has_the_least_rights_and_its_limits() -> None:
    make = functools.partial(
        manifests.node, "a-1", MARKS, {"name": "job", "uid": "1"},
        machine="a", digest="d", image="i",
    )  # fmt: skip
    wired = make(privileged=False, cpus=0.5, memory=64 << 20)
    (container,) = wired["spec"]["containers"]
    assert container["securityContext"] == {"capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}}
    assert container["resources"]["limits"] == {"cpu": "500m", "memory": str(64 << 20)}
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert wired["spec"]["restartPolicy"] == "Never"
    assert not wired["spec"]["automountServiceAccountToken"]
    (owned,) = wired["metadata"]["ownerReferences"]
    assert (owned["kind"], owned["uid"]) == ("Job", "1")
    (container,) = make(privileged=True)["spec"]["containers"]
    assert container["securityContext"] == {"privileged": True}
    assert container["resources"]["limits"] == {}


@pytest.mark.parametrize("own", ["", "testbed-lab-1"])
def test_the_janitor_has_a_deadline_and_rights_to_its_namespace_alone(own: str) -> None:
    job = manifests.janitor("j", MARKS, "image", TERMS, own)
    assert job["spec"]["activeDeadlineSeconds"] > TERMS.longest
    assert job["spec"]["ttlSecondsAfterFinished"] < 60
    pod = job["spec"]["template"]
    assert pod["metadata"]["annotations"] == {BEAT: "0", IDLE: "600"}
    assert pod["spec"]["automountServiceAccountToken"] is bool(own)
    _, role, binding = (body for _, body in manifests.rights("testbed-lab-1", MARKS))
    assert role["rules"] == [
        {
            "apiGroups": [""], "resources": ["namespaces"],
            "resourceNames": ["testbed-lab-1"], "verbs": ["delete"],
        }
    ]  # fmt: skip
    assert role["kind"] == binding["roleRef"]["kind"] == "Role"


def test_the_janitor_ends_when_nothing_changes(tmp_path: Path) -> None:
    """The program itself, with the shell of this machine, and no clock to wait for."""
    import subprocess

    notes = tmp_path / "annotations"
    notes.write_text(f'{BEAT}="0"\n{IDLE}="0"\n')
    text = manifests.JANITOR.replace(manifests.NOTES, str(tmp_path))
    run = ["sh", "-c", text, "sh"]
    assert subprocess.run([*run, "0", "99", ""], timeout=60, check=False).returncode == 0
    assert subprocess.run([*run, "99", "0", ""], timeout=60, check=False).returncode == 0


def item(node: str = "a", phase: str = "Running", **status: Any) -> dict[str, Any]:
    """A Pod as the API returns it."""
    state: dict[str, Any] = {"running": {}} if phase == "Running" else {}
    return {
        "metadata": {
            "name": f"{node}-1", "uid": f"uid-{node}",
            "labels": {NODE: node, LAB: "lab"}, "annotations": {DIGEST: "d"},
        },
        "spec": {"nodeName": "worker-1", "containers": [{"name": "node"}]},
        "status": {
            "phase": phase, "podIP": "10.244.0.5",
            "containerStatuses": [{"name": "node", "state": state}], **status,
        },
    }  # fmt: skip


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": "node", "state": state}]}


def test_a_pod_that_runs() -> None:
    seen = pods.read(item())
    assert (seen.node, seen.digest, seen.worker) == ("a", "d", "worker-1")
    assert seen.running
    assert not seen.ended
    assert not seen.privileged


def test_a_pod_that_is_being_deleted_does_not_run() -> None:
    given = item()
    given["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert not pods.read(given).running
    assert pods.read(given).ended


def test_an_evicted_pod_says_why() -> None:
    given = item(phase="Failed", reason="Evicted", message="The node was low on memory.")
    assert pods.read(given).ended == "Evicted: The node was low on memory."


def test_a_killed_pod_says_its_status() -> None:
    over = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}
    given = item(phase="Failed", containerStatuses=[{"name": "node", "state": over}])
    assert pods.read(given).ended == "OOMKilled (exit status 137)"


def on_a_lost_node(given: dict[str, Any]) -> dict[str, Any]:
    """A Pod as the cluster leaves it if its node does not answer (MarkPodsNotReady)."""
    status = given["status"]
    status["containerStatuses"] = [{"name": "node", "state": {"running": {}}, "ready": True}]
    status["conditions"] = [{"type": "Ready", "status": "False"}]
    return given


def test_a_pod_on_a_node_that_does_not_answer_has_ended() -> None:
    seen = pods.read(on_a_lost_node(item()))
    assert not seen.running
    assert "worker-1" in seen.ended
    starts = item()
    starts["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    assert pods.read(starts).running, "its containers are not ready either: it has just begun"
    ready = on_a_lost_node(item())
    ready["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert pods.read(ready).running
    ending = on_a_lost_node(item())
    ending["status"]["conditions"][0]["reason"] = "PodFailed"
    assert not pods.read(ending).lost, "its node has said so, as in the last moment of a Pod"


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_a_pod_without_its_image_is_stuck(reason: str) -> None:
    seen = pods.read(item(phase="Pending", **waiting(reason, "not found")))
    assert seen.stuck
    assert seen.waits == "not found"


def test_a_pod_that_is_created_is_not_stuck() -> None:
    assert not pods.read(item(phase="Pending", **waiting("ContainerCreating"))).stuck


# -- settings ----------------------------------------------------------------------------


def test_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = settings.of(
        environment={"KUBECONFIG": f"a{os.pathsep}/b", "TESTBED_KUBE_KEEP_ALIVE": "8h"}
    )
    assert given.kubeconfig == f"{tmp_path}/a{os.pathsep}/b"
    assert given.terms == manifests.Terms(8 * 3600, 24 * 3600)
    assert settings.of(environment={"TESTBED_KUBE_KEEP_ALIVE": "3d"}).terms.longest == 3 * 24 * 3600
    assert settings.of(environment={}).terms.idle == 3600


@pytest.mark.parametrize("text", ["a/b", "..", "My-Space", "x" * 64, "a b", "-a"])
def test_a_namespace_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        settings.of(environment={"TESTBED_KUBE_NAMESPACE": text})
    assert caught.value.where == "TESTBED_KUBE_NAMESPACE"


@pytest.mark.parametrize("text", ["", "x", "8 h", "-1h", "1.5h", "0", "19", "1w", "8hh"])
def test_a_time_that_is_none(text: str) -> None:
    with pytest.raises(UsageError):
        settings.seconds(text)


def test_options_precede_the_environment() -> None:
    environment = {"TESTBED_KUBE_IMAGE": "a:1", "TESTBED_KUBE_KEEP_ALIVE": "2h"}
    assert settings.of({}, environment).image == "a:1"
    given = settings.of({"image": "r.example:5000/b", "keep-alive": "8h"}, environment)
    assert (given.image, given.terms.idle) == ("r.example:5000/b", 8 * 3600)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", ""), ("image", "a b"), ("image", "Reg/Node"), ("image", "a:1:2"),
        ("image", f"a@sha256:{'f' * 63}"), ("image", "x" * 300), ("keep-alive", ""),
        ("keep-alive", "8 hours"),
    ],
)  # fmt: skip
def test_a_wrong_option_has_its_place(name: str, value: str) -> None:
    variable = {"image": "TESTBED_KUBE_IMAGE", "keep-alive": "TESTBED_KUBE_KEEP_ALIVE"}[name]
    with pytest.raises(UsageError) as caught:
        settings.of({name: value}, {variable: "valid"})
    assert caught.value.where == f"--{name}"
    if value:
        with pytest.raises(UsageError) as caught:
            settings.of({}, {variable: value})
        assert caught.value.where == variable


def test_places_are_remembered_and_forgotten(tmp_path: Path) -> None:
    place = Place("/k", "c", "n", own=True, owner="me")
    known = Remembered(tmp_path)
    assert known.labs() == []
    known.keep("lab", place)
    known.folder("lab").mkdir()
    assert [*Remembered(tmp_path)] == [("lab", place)]
    (tmp_path / "kubernetes" / "broken.json").write_text("{")
    assert known.place("broken") is None
    known.forget("lab")
    known.forget("broken")
    assert [*tmp_path.iterdir()] == []


def test_labs_of_other_providers_load_nothing_of_clusters(tmp_path: Path) -> None:
    import subprocess
    import sys

    text = f"""\
import sys
from testbed.registry import PROVIDERS
from testbed.nodes.base import Setup
from pathlib import Path
provider = PROVIDERS["kubernetes"].of(Setup(Path({str(tmp_path)!r}), None))
assert provider.nodes("nowhere") == {{}} and provider.labs() == [] and provider.ended("x") == {{}}
provider.destroy("nowhere")
loaded = [name for name in sys.modules if name.startswith(("kubernetes", "websocket"))]
own = "testbed.nodes.kubernetes."
print(loaded, [n for n in sys.modules if n.startswith(own)])
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TESTBED_KUBE")}
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, env=environment
    )
    own = [f"testbed.nodes.kubernetes.{name}" for name in ("remembered", "provider", "sites")]
    loaded, ours = (json.loads(part.replace("'", '"')) for part in
                    re.findall(r"\[[^]]*\]", done.stdout))  # fmt: skip
    assert loaded == []
    assert sorted(ours) == sorted(own)


# -- networks ----------------------------------------------------------------------------

OWN = Underlay("eth0", "10.244.0.5", 1450)


def test_a_pods_own_interface_is_moved_aside() -> None:
    links = [
        {"ifname": "lo", "mtu": 65536, "addr_info": [{"local": "127.0.0.1"}]},
        {"ifname": "eth0", "mtu": 1450, "addr_info": [{"local": "10.244.0.5"}]},
    ]
    own = networks.underlay("10.244.0.5", links)
    assert own == OWN
    routes = [
        {"dst": "default", "gateway": "169.254.1.1", "dev": "eth0"},
        {"dst": "169.254.1.1", "dev": "eth0", "scope": "link"},
        {"dst": "10.9.0.0/16", "dev": "other"},
    ]
    assert networks.aside(own, routes) == [
        "link set dev eth0 down",
        "link set dev eth0 name pod0",
        "link set dev pod0 up",
        "route replace 169.254.1.1 dev pod0 table 14789",
        "route replace default via 169.254.1.1 dev pod0 onlink table 14789",
        "rule add pref 100 from 10.244.0.5 lookup 14789",
        "route flush table main dev pod0",
    ]
    assert networks.aside(replace(own, name="pod0"), routes) == []


def test_a_pod_needs_an_ipv4_address_which_need_not_be_its_first() -> None:
    both = item(podIP="fd00::5", podIPs=[{"ip": "fd00::5"}, {"ip": "10.244.0.5"}])
    assert pods.read(both).address == "10.244.0.5"
    alone = pods.read(item(podIP="fd00::5", podIPs=[{"ip": "fd00::5"}])).address
    links = [{"ifname": "eth0", "mtu": 1450, "addr_info": [{"local": "fd00::5"}]}]
    with pytest.raises(LabError, match="IPv6"):
        networks.underlay(alone, links)


def test_a_pod_without_an_interface_of_its_own_is_refused() -> None:
    with pytest.raises(LabError):
        networks.underlay("10.0.0.1", [{"ifname": "lo", "mtu": 65536, "addr_info": []}])


def test_the_mtu_is_that_of_the_pod_less_the_headers_unless_the_file_has_one() -> None:
    topology = load_text(TWO, "two.yaml")
    lan, back = topology.nodes["b"].ports
    assert " mtu 1400 " in networks.link(lan, OWN)
    assert " mtu 1500 " in networks.link(back, OWN)
    assert "netns 1" in networks.link(back, OWN, "netns 1 ")


def reached(pod: pods.Pod) -> PodNode:
    """A node of a Pod that nobody has created."""
    never: Any = None
    way = Entrance(pod, namespace="n", cluster=never, now=never, agent=never, ended=never)
    return PodNode(way, lab="two", folder=Path("/nowhere"), init=never)


@pytest.mark.parametrize("privileged", [False, True])
def test_a_node_tells_the_mtu_of_its_links(
    monkeypatch: pytest.MonkeyPatch, *, privileged: bool
) -> None:
    pod = replace(pods.read(item()), privileged=privileged)
    node = reached(pod)
    links = [{"ifname": "pod0", "mtu": 1450, "addr_info": [{"local": pod.address}]}]
    asked: list[tuple[str, ...]] = []

    def run(argv: list[str], **_: object) -> Result:
        asked.append((*argv,))
        return Result((*argv,), 0, json.dumps(links).encode() + b"\0[]", b"")

    monkeypatch.setattr(node, "run", run)
    assert (node.link_mtu, node.link_mtu) == (1400, 1400)  # RFC 7348, section 5: 50 bytes less
    enter = ["nsenter", f"--net={POD_NETWORK}"] if privileged else []
    assert asked == [(*enter, *networks.LOOK)]


def test_networks_have_identifiers_of_24_bits_that_stay() -> None:
    numbers = {networks.number(f"n{i}") for i in range(300)}
    assert len(numbers) == 300
    assert all(0 < number < 2**24 for number in numbers)
    assert networks.number("lan") == networks.number("lan")


def test_two_ports_on_one_network_are_refused() -> None:
    networks.refuse(load_text(TWO, "two.yaml"))
    twice = """\
name: t
networks: {lan: {subnet: 10.50.0.0/24}}
nodes:
  a: {networks: {lan: [{address: 10.50.0.2, name: x}, {address: 10.50.0.3, name: y}]}}
"""
    with pytest.raises(UsageError):
        networks.refuse(load_text(twice, "t.yaml"))


def test_each_interface_has_its_peers_and_no_others() -> None:
    topology = load_text(TWO, "two.yaml")
    addresses = {"a": "1.0.0.1", "b": "1.0.0.2", "c": "1.0.0.3"}
    assert networks.peers(topology, "b", addresses) == {"eth0": {"1.0.0.1"}, "eth1": {"1.0.0.3"}}
    assert networks.peers(topology, "a", {"a": "1.0.0.1"}) == {"eth0": set()}
    everyone = networks.EVERYONE
    printed = json.dumps([
        {"mac": everyone, "ifname": "eth0", "dst": "1.0.0.9"},
        {"mac": "02:00:00:00:00:01", "ifname": "eth0", "dst": "1.0.0.1"},
        {"mac": everyone, "ifname": "flannel.1", "dst": "10.0.0.1"},
    ]).encode() + b"\n\0" + b'[{"ifname": "eth0"}]'  # fmt: skip
    there = networks.entries(printed)
    assert there == {"eth0": {"1.0.0.9"}}
    wanted = networks.peers(topology, "b", addresses)
    assert networks.corrections(wanted, there) == [
        f"fdb append {everyone} dev eth0 dst 1.0.0.1",
        f"fdb del {everyone} dev eth0 dst 1.0.0.9",
    ]
    assert networks.corrections(wanted, wanted) == []
    assert networks.entries(b"\0") == {}


def pod_node(name: str, *, privileged: bool = False) -> PodNode:
    """Another one, by its name."""
    pod = pods.Pod(f"{name}-1", f"uid-{name}", name, "d", address=f"10.244.0.{ord(name)}",
                   privileged=privileged)  # fmt: skip
    return reached(pod)


def test_tunnels_are_those_of_the_pods_own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, ...]] = []

    def run(_: PodNode, argv: list[str], **__: object) -> None:
        ran.append(tuple(argv))

    monkeypatch.setattr(PodNode, "run", run)
    provider = KubernetesProvider.of(Setup(Path("/nowhere"), FakeStore()))
    found = provider.tunnels({"a": pod_node("a"), "c": pod_node("c", privileged=True)})
    assert found.port == networks.PORT
    assert found.addresses == {"a": "10.244.0.97", "c": "10.244.0.99"}
    for place in found.outside.values():
        place.run(["tc"])
    assert ran == [("tc",), ("nsenter", f"--net={POD_NETWORK}", "tc")]


def test_networks_can_have_a_rate_a_delay_and_a_loss() -> None:
    slow = TWO.replace("10.50.0.0/24}", "10.50.0.0/24, rate: 10mbit, delay: 5ms, loss: 1%}")
    port, _ = load_text(slow, "two.yaml").nodes["b"].ports
    assert {one.kind for one in port.shaping} == {"rate", "delay", "loss"}


def test_a_kernel_without_netem_is_told_before_a_link_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = load_text(TWO.replace("10.50.0.0/24}", "10.50.0.0/24, delay: 5ms}"), "two.yaml")
    ran: list[tuple[str, ...]] = []

    def run(_: PodNode, argv: tuple[str, ...], **__: object) -> Result:
        ran.append(argv)
        return Result(argv, 2, b"", b"Error: Specified qdisc kind is unknown.")

    monkeypatch.setattr(PodNode, "run", run)
    provider = KubernetesProvider.of(Setup(Path("/nowhere"), FakeStore()))
    with pytest.raises(MachineError, match="netem"):
        provider.connect("two", slow, pod_node("a"))
    assert len(ran) == 1


def test_a_pod_cannot_be_paused() -> None:
    provider = KubernetesProvider.of(Setup(Path("/nowhere"), FakeStore()))
    for act in (provider.pause, provider.resume):
        with pytest.raises(MachineError) as caught:
            act("two", "a")
        assert "partition" in (caught.value.hint or "")


def test_who_needs_a_privileged_pod() -> None:
    assert privileged_nodes(load_text(TWO, "two.yaml")) == {"c"}
    assert privileged_nodes(load("two-node")) == {"node1", "node2", "outside"}


# -- an API server -----------------------------------------------------------------------


@pytest.fixture
def api() -> Iterator[Api]:
    with served() as made:
        yield made


@pytest.fixture
def cluster(api: Api, tmp_path: Path) -> Cluster:
    return Cluster(kubeconfig(tmp_path, api.url), "", patience=0)


def site(cluster: Cluster, *, own: bool = True, lab: str = "lab") -> Site:
    name = "testbed-lab-1" if own else "shared"
    owner = manifests.owner_label("jane")
    return Site(lab, Place(cluster.kubeconfig, "here", name, own=own, owner=owner), cluster)


def with_a_pod(api: Api, cluster: Cluster) -> tuple[Site, str]:
    """Return a lab with the node a alone, and the path of its Pod."""
    one = site(cluster)
    one.make("image", TERMS, privileged=False)
    one.create([spec("a")], set())
    (path,) = (path for path in api.objects if "/pods/" in path)
    return one, path


def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the start of Pods time out at once."""
    monkeypatch.setattr("testbed.nodes.kubernetes.site.START", 0.01)
    monkeypatch.setattr("testbed.nodes.kubernetes.site.EACH", 0.0)


def test_the_context_is_named_also_if_the_file_chooses_it(cluster: Cluster) -> None:
    assert cluster.current() == "here"
    assert cluster.user() == "jane"


def test_no_kubeconfig_is_the_machines_fault(tmp_path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        Cluster(str(tmp_path / "none"), "").client()
    assert caught.value.missing == ("kubeconfig",)


@pytest.mark.parametrize(
    "text",
    ["", "{{{", "[]", "word", "\0", '{"current-context": "a", "contexts": null}']
    + [
        json.dumps(
            {
                "current-context": "a",
                "contexts": [{"name": "a", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
                "users": [{"name": "u", "user": user}],
            }
        )
        for user in ({"auth-provider": {"name": "gcp", "config": {}}}, {"tokenFile": "/nowhere"})
    ],
)  # fmt: skip
def test_a_kubeconfig_that_cannot_be_used_is_the_machines_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(MachineError) as caught:
        Cluster(str(path), "", patience=0).ask("x", "GET", "/version")
    assert caught.value.missing == ("kubeconfig",)


def test_credentials_that_can_not_be_renewed_are_the_machines_fault(cluster: Cluster) -> None:
    from kubernetes.config import ConfigException

    def renew(_: object) -> None:
        raise ConfigException("no")

    cluster.client().configuration.refresh_api_key_hook = renew
    with pytest.raises(MachineError) as caught:
        cluster.ask("x", "GET", "/version")
    assert caught.value.missing == ("kubeconfig",)


def test_a_server_that_is_silent_is_tried_once_at_a_time(tmp_path: Path) -> None:
    """A client that tries again by itself would multiply the patience."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        url = f"http://127.0.0.1:{door.getsockname()[1]}"
        tries = 0

        def serve() -> None:
            nonlocal tries
            while True:
                try:
                    there, _ = door.accept()
                except OSError:
                    return
                tries += 1
                there.recv(4096)
                there.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        cluster = Cluster(kubeconfig(tmp_path, url), "", patience=0)
        with pytest.raises(NoAnswer):
            cluster.ask("x", "GET", "/version")
        assert tries == 1
        door.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_silent_server_is_waited_for_once(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.kubernetes.cluster.PAUSE", 0.0)
    cluster = Cluster(kubeconfig(tmp_path, api.url), "", patience=0.05)
    api.refuse = lambda method, path: (503, {})
    with pytest.raises(NoAnswer):
        cluster.user()
    many = len(api.asked)
    cluster._patience = 60
    with pytest.raises(NoAnswer):
        cluster.user()
    assert len(api.asked) == many + 1
    api.refuse = lambda method, path: None
    assert cluster.user() == "jane"
    answers: Iterator[tuple[int, dict[str, Any]] | None] = iter([(503, {}), None])
    api.refuse = lambda method, path: next(answers)
    assert cluster.ask("x", "GET", "/version", missing=True) == {}, "it is waited for again"


def test_a_forked_process_has_connections_of_its_own(cluster: Cluster) -> None:
    cluster.user()
    client = cluster.client()
    assert cluster.client() is client
    cluster._pid += 1  # as in a child
    assert cluster.client() is not client


def test_an_exec_waits_for_a_busy_server(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.kubernetes.cluster.PAUSE", 0.0)
    cluster = Cluster(kubeconfig(tmp_path, api.url), "")
    answers = iter([(503, {}), (502, {}), (403, {"reason": "Forbidden", "message": "no exec"})])
    api.refuse = lambda method, path: next(answers)
    with pytest.raises(Refused) as caught:
        cluster.exec("n", "p", "node", ["true"])
    assert (caught.value.status, caught.value.words) == (403, "no exec")


def test_an_exec_with_a_server_that_is_gone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    cluster = Cluster(kubeconfig(tmp_path, f"http://127.0.0.1:{port}"), "", patience=0)
    with pytest.raises(NoAnswer):
        cluster.exec("n", "p", "node", ["true"])


def test_expired_credentials_say_what_to_do(api: Api, cluster: Cluster) -> None:
    api.refuse = lambda method, path: (401, {"reason": "Unauthorized", "message": "Unauthorized"})
    for one in (cluster.user, lambda: cluster.exec("n", "p", "node", ["true"])):
        with pytest.raises(Refused) as caught:
            one()
        assert "log in" in (caught.value.hint or "")


def test_an_api_server_that_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    cluster = Cluster(kubeconfig(tmp_path, f"http://127.0.0.1:{port}"), "", patience=0)
    with pytest.raises(NoAnswer) as caught:
        cluster.ask("x", "GET", "/version")
    assert caught.value.node == f"127.0.0.1:{port}"


def test_a_busy_api_server_is_asked_again(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.kubernetes.cluster.PAUSE", 0.0)
    cluster = Cluster(kubeconfig(tmp_path, api.url), "")
    answers: Iterator[tuple[int, dict[str, Any]] | None] = iter([(429, {}), (503, {}), None])
    api.refuse = lambda method, path: next(answers)
    assert cluster.user() == "jane"


def test_an_object_whose_answer_was_lost_is_not_created_twice(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.kubernetes.cluster.PAUSE", 0.0)
    cluster = Cluster(kubeconfig(tmp_path, api.url), "")
    body = {"kind": "Job", "metadata": {"name": "j"}}
    lost = iter([True, False, False])

    def refuse(method: str, path: str) -> tuple[int, dict[str, Any]] | None:
        if next(lost):
            api.create("/jobs", "", body)
            return 503, {}
        return None

    api.refuse = refuse
    made = cluster.ask("create a Job", "POST", "/jobs", body)
    assert made["metadata"]["name"] == "j"


def test_a_refusal_has_the_servers_words(api: Api, cluster: Cluster) -> None:
    api.refuse = lambda method, path: (403, {"reason": "Forbidden", "message": "no"})
    with pytest.raises(Refused) as caught:
        cluster.ask("x", "GET", "/version")
    assert (caught.value.status, caught.value.reason, caught.value.words) == (
        403,
        "Forbidden",
        "no",
    )


def spec(name: str) -> NodeSpec:
    return NodeSpec(name, f"digest-{name}")


def test_a_lab_is_made_found_and_removed(api: Api, cluster: Cluster) -> None:
    one = site(cluster)
    one.try_rights("image", TERMS, privileged=False)
    assert api.objects == {}, "a look changes nothing"
    one.make("image", TERMS, privileged=False)
    assert {path.split("/")[-2] for path in api.objects} == {
        "namespaces", "serviceaccounts", "roles", "rolebindings", "jobs",
    }  # fmt: skip
    one.create([spec("a"), spec("b")], {"b"})
    there = one.started(["a", "b"])
    assert {name: pod.privileged for name, pod in there.items()} == {"a": False, "b": True}
    assert labs_in(cluster, settings.Settings("", "", "", "image", TERMS)).keys() == {"lab"}
    one.remove_nodes(["a"])
    assert [*one.pods()] == ["b"]
    one.remove()
    assert api.objects == {}


def test_calls_for_a_node_do_not_grow_with_the_lab(api: Api, cluster: Cluster) -> None:
    one = site(cluster)
    one.make("image", TERMS, privileged=False)
    counts = []
    for names in (["a"], [f"n{i}" for i in range(30)]):
        before = len(api.asked)
        one.create([spec(name) for name in names], set())
        one.started(names)
        counts.append((len(api.asked) - before, len(names)))
    (few, one_node), (many, thirty) = counts
    assert many - few == thirty - one_node


def test_only_the_labs_own_objects_are_removed(api: Api, cluster: Cluster) -> None:
    mine, other = site(cluster, own=False), site(cluster, own=False, lab="other")
    for each in (mine, other):
        each.make("image", TERMS, privileged=False)
        each.create([spec("a")], set())
    mine.remove()
    assert [*other.pods()] == ["a"]
    assert mine.pods() == {}
    assert all(o["metadata"]["labels"][LAB] == "other" for o in api.objects.values())


def test_a_namespace_of_somebody_else_is_not_removed(api: Api, cluster: Cluster) -> None:
    one = site(cluster)
    path = f"/api/v1/namespaces/{one.place.namespace}"
    foreign = {"name": one.place.namespace, "uid": "1", "labels": {LAB: "lab", OWNER: "joe"}}
    api.objects[path] = {"kind": "Namespace", "metadata": foreign}
    one.remove()
    assert path in api.objects


def test_missing_rights_are_named_before_anything_is_made(api: Api, cluster: Cluster) -> None:
    api.allowed = False
    with pytest.raises(MachineError) as caught:
        site(cluster).try_rights("image", TERMS, privileged=False)
    assert "create pods/exec" in caught.value.missing
    assert api.objects == {}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        ('violates PodSecurity "restricted:latest"', "kubectl label namespace shared"),
        ("exceeded quota: few, requested: pods=1", "fewer nodes"),
        ("failed quota: few: must specify limits.cpu", "`cpus`"),
        ("no idea", "kubectl auth can-i"),
    ],
)
def test_a_refusal_says_what_to_do(api: Api, cluster: Cluster, words: str, hint: str) -> None:
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": words}) if "/pods" in path else None
    )
    with pytest.raises(MachineError) as caught:
        site(cluster, own=False).try_rights("image", TERMS, privileged=True)
    assert hint in (caught.value.hint or "")
    assert api.objects == {}


# Words of Kubernetes 1.36, plugin/pkg/admission/limitranger/admission.go.
MOST = "maximum memory usage per Container is 64Mi, but limit is 256Mi"
RATIO = "cpu max limit to request ratio per Container is 2, but provided ratio is 40.000000"
LEAST = "minimum memory usage per Pod is 128Mi, but request is 67108864"


def sizes(path: str, body: Any) -> dict[str, Any]:
    """The resources of the Pod of a request; empty for another request."""
    if not path.partition("?")[0].endswith("/pods") or not body:
        return {}
    found: dict[str, Any] = body["spec"]["containers"][0]["resources"]
    return found


def forbidden(words: str) -> tuple[int, dict[str, Any]]:
    message = f'pods "testbed-try" is forbidden: {words}'
    return 403, {"reason": "Forbidden", "message": message}


def test_each_size_of_a_node_is_tried_before_anything_is_made(api: Api, cluster: Cluster) -> None:
    specs = [spec("a"), replace(spec("b"), memory=256 << 20), replace(spec("c"), memory=256 << 20)]
    there = site(cluster, own=False)
    there.try_rights("image", TERMS, specs, privileged=False)
    tried = [body for body in api.bodies if body and body["kind"] == "Pod"]
    assert [one["metadata"]["labels"].get(NODE) for one in tried] == [None, "a", "b"]
    api.refuse = lambda method, path: (
        forbidden(MOST) if "limits" in sizes(path, api.bodies[-1])
        and sizes(path, api.bodies[-1])["limits"].get("memory") == str(256 << 20) else None
    )  # fmt: skip
    with pytest.raises(MachineError) as caught:
        there.try_rights("image", TERMS, specs, privileged=False)
    assert "the Pod of b" in caught.value.message
    assert MOST in caught.value.message
    assert "limitrange -n shared" in (caught.value.hint or "")
    assert api.objects == {}


@pytest.mark.parametrize(("words", "passes"), [(RATIO, 1), (LEAST, 2)])
def test_the_janitor_has_resources_that_a_limitrange_allows(
    api: Api, cluster: Cluster, words: str, passes: int
) -> None:
    """A Job whose Pods are refused is created, and never ends."""
    refused = manifests.SIZES[:passes]
    api.refuse = lambda method, path: (
        forbidden(words) if sizes(path, api.bodies[-1]) in refused else None
    )
    there = site(cluster, own=False)
    there.try_rights("image", TERMS, privileged=False)
    there.make("image", TERMS, privileged=False)
    (job,) = api.objects.values()
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == manifests.SIZES[passes]


def test_a_janitor_that_no_size_fits_is_told_of(api: Api, cluster: Cluster) -> None:
    janitor = {"requests", "limits"}
    api.refuse = lambda method, path: (
        forbidden(LEAST) if "/pods" in path and (
            sizes(path, api.bodies[-1]) == {} or janitor == sizes(path, api.bodies[-1]).keys()
        ) else None
    )  # fmt: skip
    with pytest.raises(MachineError) as caught:
        site(cluster, own=False).try_rights("image", TERMS, privileged=False)
    assert LEAST in caught.value.message
    assert api.objects == {}


def test_another_refusal_of_the_janitor_is_not_tried_again(api: Api, cluster: Cluster) -> None:
    api.refuse = lambda method, path: (
        forbidden("exceeded quota: few, requested: pods=1") if "/pods" in path else None
    )
    with pytest.raises(MachineError):
        site(cluster, own=False).try_rights("image", TERMS, privileged=False)
    assert sum("/pods" in path for _, path in api.asked) == 1


def test_limits_of_the_namespace_are_told() -> None:
    given = item()
    given["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "500m", "memory": "256Mi"}}
    pod = pods.read(given)
    assert defaults(spec("a"), pod) == "cpu 500m, memory 256Mi"
    assert defaults(replace(spec("a"), cpus=0.5), pod) == "memory 256Mi"
    assert defaults(spec("a"), pods.read(item())) == ""


def test_a_new_namespace_is_waited_for(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.kubernetes.site.PAUSE", 0.0)
    early = iter([True, True])
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "error looking up service account x/default"})
        if "/pods" in path and next(early, False) else None
    )  # fmt: skip
    site(cluster).make("image", TERMS, privileged=False)


def test_a_namespace_that_may_not_be_deleted_is_told_after_its_pods_are_gone(
    api: Api, cluster: Cluster
) -> None:
    one = site(cluster)
    one.make("image", TERMS, privileged=False)
    one.create([spec("a")], set())
    path = f"/api/v1/namespaces/{one.place.namespace}"
    api.refuse = lambda method, asked: (
        (403, {"reason": "Forbidden", "message": "no"})
        if (method, asked) == ("DELETE", path) else None
    )  # fmt: skip
    with pytest.raises(Refused):
        one.remove()
    assert {o["kind"] for o in api.objects.values()}.isdisjoint({"Pod", "Job"})


def test_a_pod_that_may_not_be_deleted_is_told_at_once(api: Api, cluster: Cluster) -> None:
    one = site(cluster, own=False)
    one.make("image", TERMS, privileged=False)
    one.create([spec("a")], set())
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "no"}) if method == "DELETE" else None
    )
    with pytest.raises(Refused):
        one.remove_nodes(["a"])
    with pytest.raises(Refused):
        one.remove()


def test_a_janitor_without_rights_gets_no_account_that_does_not_exist(
    api: Api, cluster: Cluster
) -> None:
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "no"}) if "/serviceaccounts" in path else None
    )
    site(cluster).make("image", TERMS, privileged=False)
    job = next(o for o in api.objects.values() if o["kind"] == "Job")
    assert "serviceAccountName" not in job["spec"]["template"]["spec"]


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_a_janitor_that_has_ended_is_none(api: Api, cluster: Cluster, end: str) -> None:
    one = site(cluster, own=False)
    one.make("image", TERMS, privileged=False)
    given = settings.Settings("", "", "shared", "image", TERMS)
    assert one.janitor()
    assert [*labs_in(cluster, given)] == ["lab"]
    job = next(o for o in api.objects.values() if o["kind"] == "Job")
    job["status"] = {"conditions": [{"type": end, "status": "True"}]}
    assert one.janitor() is None
    assert labs_in(cluster, given) == {}


def test_a_pod_without_an_address_is_told_of(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path = with_a_pod(api, cluster)
    del api.objects[path]["status"]["podIP"]
    without_patience(monkeypatch)
    with pytest.raises(TimeoutExpired):
        one.started(["a"])


def test_a_janitor_that_is_gone_ends_the_lab(cluster: Cluster) -> None:
    with pytest.raises(LabError):
        site(cluster).create([spec("a")], set())


@pytest.mark.parametrize(
    "status",
    [{"phase": "Failed", "reason": "Evicted"}, {"phase": "Pending", **waiting("ErrImagePull")}],
    ids=["ended", "no image"],
)
def test_a_pod_that_cannot_run_ends_the_wait(
    api: Api, cluster: Cluster, status: dict[str, Any]
) -> None:
    one, path = with_a_pod(api, cluster)
    api.objects[path]["status"] = status
    with pytest.raises(LabError):
        one.started(["a"])


def test_a_cluster_without_room_is_told_of(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("testbed.nodes.kubernetes.site.NO_ROOM", 0.0)
    one, path = with_a_pod(api, cluster)
    full = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}
    api.objects[path]["status"] = {"phase": "Pending", "conditions": [full]}
    with pytest.raises(LabError, match="0/2 nodes"):
        one.started(["a"])


def test_a_pod_on_a_lost_node_is_deleted_at_once_and_created_again(
    api: Api, cluster: Cluster
) -> None:
    """Nobody would tell that it has ended, and it could come back with its node."""
    one = site(cluster)
    one.make("image", TERMS, privileged=False)
    one.create([spec("a"), spec("b")], set())
    on_a_lost_node(next(o for p, o in api.objects.items() if "/pods/a-" in p))
    assert [name for name, pod in one.pods().items() if pod.ended] == ["a"]
    api.bodies.clear()
    one.create([spec("a")], set())
    (deletion,) = [body for body in api.bodies if body and body["kind"] == "DeleteOptions"]
    assert deletion["gracePeriodSeconds"] == 0
    assert {name: pod.running for name, pod in one.pods().items()} == {"a": True, "b": True}
    assert sum("/pods/" in path for path in api.objects) == 2
    api.bodies.clear()
    one.remove_nodes(["b"])
    (deletion,) = [body for body in api.bodies if body and body["kind"] == "DeleteOptions"]
    assert "gracePeriodSeconds" not in deletion


def test_a_node_that_is_silent_for_a_moment_does_not_end_the_start(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes of a busy cluster are late with their signs of life."""
    one, path = with_a_pod(api, cluster)
    on_a_lost_node(api.objects[path])
    without_patience(monkeypatch)
    with pytest.raises(TimeoutExpired, match="worker-1 does not answer"):
        one.started(["a"])
    monkeypatch.undo()
    back = json.loads(json.dumps(api.objects[path]))
    back["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    watched = Api.watched

    def later(it: Api, query: str) -> list[dict[str, Any]]:
        it.tell("MODIFIED", back)
        return watched(it, query)

    monkeypatch.setattr(Api, "watched", later)
    assert one.started(["a"])["a"].running


def test_a_pod_whose_node_is_found_lost_while_it_goes_is_deleted_at_once(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, path = with_a_pod(api, cluster)
    delete, asked = Api.delete, []

    def slowly(_: Api, plain: str, there: dict[str, Any]) -> None:
        """Nothing happens to a Pod on a dead node; then the cluster tells that it is dead."""
        asked.append(api.bodies[-1].get("gracePeriodSeconds"))
        if asked[-1] == 0:
            delete(api, plain, there)
        else:
            api.tell("MODIFIED", on_a_lost_node(api.objects[path]))

    monkeypatch.setattr(Api, "delete", slowly)
    one.remove_nodes(["a"])
    assert asked == [None, 0]
    assert path not in api.objects


def test_a_pod_that_stays_is_told_of(
    api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = site(cluster)
    one.make("image", TERMS, privileged=False)
    one.create([spec("a")], set())
    monkeypatch.setattr("testbed.nodes.kubernetes.site.END", 0.0)
    monkeypatch.setattr("testbed.nodes.kubernetes.site.EACH", 0.0)
    monkeypatch.setattr(one, "_delete", lambda *_: None)
    with pytest.raises(TimeoutExpired):
        one.remove_nodes(["a"])


def test_a_large_lab_has_more_time_to_go(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    one = site(cluster, own=False)
    one.make("image", TERMS, privileged=False)
    one.create([spec(f"n{number}") for number in range(20)], set())
    given: list[float] = []

    def never(_: object, seconds: float) -> Iterator[None]:
        given.append(seconds)
        return iter([None] * 0)

    monkeypatch.setattr("testbed.nodes.kubernetes.site.changes", never)
    for names in (["n0"], [f"n{number}" for number in range(1, 20)]):
        with pytest.raises(TimeoutExpired):
            one.remove_nodes(names)
    one.create([spec(f"m{number}") for number in range(30)], set())
    with pytest.raises(TimeoutExpired):
        one.remove()
    assert given == sorted(given)
    assert len({*given}) == 3


def test_use_is_told_to_the_janitor_but_not_each_time(api: Api, cluster: Cluster) -> None:
    one = site(cluster)
    one.make("image", TERMS, privileged=False)
    job = next(o for o in api.objects.values() if o["kind"] == "Job")
    template = job["spec"]["template"]
    path = f"/api/v1/namespaces/{one.place.namespace}/pods/janitor-1"
    notes = template["metadata"]["annotations"]
    meta = {"name": "janitor-1", "uid": "j", "labels": one._marks, "annotations": notes}
    api.objects[path] = {"kind": "Pod", "metadata": meta}
    one.used()
    assert abs(int(notes[BEAT]) - time.time()) < 600
    assert one.idle == 600
    before = len(api.asked)
    one.used()
    assert len(api.asked) == before + 1, "one list, and no change"


def test_a_lab_of_another_state_folder_is_not_taken(
    api: Api, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    monkeypatch.delenv(CONTEXT, raising=False)
    topology = load_text(TWO, "two.yaml")
    first = KubernetesProvider.of(Setup(tmp_path / "one", FakeStore()))
    first.create_fabric("two", topology)
    second = KubernetesProvider.of(Setup(tmp_path / "two", FakeStore()))
    with pytest.raises(UsageError):
        second.create_fabric("two", topology)
    assert second.labs() == []
    monkeypatch.setenv(CONTEXT, "")
    assert second.labs() == ["two"]
    record = tmp_path / "two" / "two.json"
    record.parent.mkdir()
    record.write_text("{}")
    assert second.labs() == [], "the lab of this name here is one of another provider"
    second.create_fabric("two", topology)
    monkeypatch.delenv(CONTEXT)
    assert second.labs() == ["two"], "a lab that is used here is found later, too"
    assert second._remembered.place("two") == first._remembered.place("two")
    second.destroy("two")
    assert api.objects == {}


@pytest.fixture
def provider(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> KubernetesProvider:
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    monkeypatch.delenv(CONTEXT, raising=False)
    made = KubernetesProvider.of(Setup(tmp_path / "state", FakeStore()))
    known = Cluster(cluster.kubeconfig, "here", patience=0)
    monkeypatch.setattr(made._sites, "cluster", lambda given, patience=0: known)
    return made


@pytest.fixture
def other(provider: KubernetesProvider) -> Callable[..., None]:
    """A function that repeats the `up` of a lab with options."""

    def again(**chosen: str) -> None:
        provider._chosen = {name.replace("_", "-"): value for name, value in chosen.items()}
        provider.create_fabric("two", load_text(TWO, "two.yaml"))

    return again


def containers(api: Api, kind: str) -> list[dict[str, Any]]:
    found = [one["spec"] for one in api.objects.values() if one["kind"] == kind]
    return [spec.get("template", {"spec": spec})["spec"]["containers"][0] for spec in found]


def test_a_lab_keeps_its_image_and_its_time(
    api: Api, provider: KubernetesProvider, other: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    other(image="a:1", keep_alive="2h")
    (job,) = containers(api, "Job")
    assert (job["image"], job["command"][4]) == ("a:1", "7200")
    monkeypatch.setenv("TESTBED_KUBE_IMAGE", "b:2")  # of new labs
    monkeypatch.setenv("TESTBED_KUBE_KEEP_ALIVE", "3h")
    other()
    other(image="a:1", keep_alive="120m")
    there = provider._sites.find("two")
    assert there
    there.create([spec("a")], set())
    assert [one["image"] for one in containers(api, "Pod")] == ["a:1"]
    for name, value in (("image", "b:2"), ("keep_alive", "3h")):
        with pytest.raises(UsageError) as caught:
            other(**{name: value})
        assert caught.value.where == f"--{name.replace('_', '-')}"


# -- clients that die --------------------------------------------------------------------


class Died(BaseException):
    """The process was killed."""


class Mortal(Cluster):
    """A client of the API in memory that dies right after a number of requests."""

    def __init__(self, api: Api, kubeconfig: str, requests: float = float("inf")) -> None:
        super().__init__(kubeconfig, "here", patience=0)
        self.api = api
        self.left = requests
        self._dying = threading.Lock()

    def stream(self, what: str, path: str, query: Any, seconds: float) -> Iterator[dict[str, Any]]:
        del what, seconds
        _, answer, _ = self._try("GET", path, None, query, "")
        return iter(answer["events"])

    def current(self) -> str:
        return self.context

    def now(self) -> float:
        return time.time()

    def _try(
        self, method: str, path: str, body: Any, query: Any, kind: str
    ) -> tuple[int, dict[str, Any], str]:
        del kind
        with self._dying:
            if self.left <= 0:
                raise Died
            self.left -= 1
            full = path + (f"?{urlencode(query)}" if query else "")
            status, answer = self.api.answer(method, full, body)
            if self.left <= 0:
                raise Died
        return status, answer, ""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., KubernetesProvider]:
    """A function that returns the provider of a state folder, whose process may die."""
    path = kubeconfig(tmp_path, "http://127.0.0.1:9")
    monkeypatch.setenv("KUBECONFIG", path)

    def make(
        api: Api, state: Path, requests: float = float("inf"), *, named: bool = False
    ) -> KubernetesProvider:
        if named:
            monkeypatch.setenv(CONTEXT, "here")
        else:
            monkeypatch.delenv(CONTEXT, raising=False)
        made = KubernetesProvider.of(Setup(state, FakeStore()))
        client = Mortal(api, path, requests)
        monkeypatch.setattr(made._sites, "cluster", lambda given, patience=0: client)
        return made

    return make


def up(provider: KubernetesProvider) -> None:
    provider.create_fabric("two", load_text(TWO, "two.yaml"))
    there = provider._sites.find("two")
    assert there
    there.create([spec("a"), spec("b"), spec("c")], {"c"})
    there.started(["a", "b", "c"])


def requests_of(act: Callable[[KubernetesProvider], None], provider: KubernetesProvider) -> int:
    client = provider._sites.cluster(settings.of())
    assert isinstance(client, Mortal)
    before = len(client.api.asked)
    act(provider)
    return len(client.api.asked) - before


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_whenever_up_dies_the_next_command_removes_all(
    machine: Callable[..., KubernetesProvider], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    *, shared: bool,
) -> None:  # fmt: skip
    if shared:
        monkeypatch.setenv("TESTBED_KUBE_NAMESPACE", "shared")
    steps = requests_of(up, machine(Api(), tmp_path / "whole"))
    assert steps > 10
    seen = set()
    for step in range(1, steps + 1):
        for elsewhere in (False, True):
            api, state = Api(), tmp_path / f"{step}-{elsewhere}"
            with pytest.raises(Died):
                up(machine(api, state, step))
            seen |= {one["kind"] for one in api.objects.values()}
            after = machine(api, tmp_path / "other" if elsewhere else state, named=elsewhere)
            if api.objects:
                assert after.labs() == ["two"]
            after.destroy("two")
            assert api.objects == {}, step
            assert after.labs() == [], step
    assert seen >= {"Job", "Pod"}


def test_whenever_up_dies_the_next_one_brings_the_lab_up(
    machine: Callable[..., KubernetesProvider], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = requests_of(up, machine(Api(), tmp_path / "whole"))
    for step in range(1, steps + 1):
        api = Api()
        with pytest.raises(Died):
            up(machine(api, tmp_path / str(step), step))
        again = machine(api, tmp_path / str(step))
        monkeypatch.setattr(again, "_introduce", lambda *_: None)
        again.create_fabric("two", load_text(TWO, "two.yaml"))
        there = again._sites.find("two")
        assert there
        there.create([spec(name) for name in {"a", "b", "c"} - there.pods().keys()], set())
        assert sorted(there.pods()) == ["a", "b", "c"]
        again.destroy("two")
        assert api.objects == {}, step


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_whenever_down_dies_the_next_one_removes_the_rest(
    machine: Callable[..., KubernetesProvider], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    *, shared: bool,
) -> None:  # fmt: skip
    if shared:
        monkeypatch.setenv("TESTBED_KUBE_NAMESPACE", "shared")

    def down(provider: KubernetesProvider) -> None:
        provider.destroy("two")

    api = Api()
    up(machine(api, tmp_path / "whole"))
    steps = requests_of(down, machine(api, tmp_path / "whole"))
    assert steps > 1
    for step in range(1, steps + 1):
        api, state = Api(), tmp_path / str(step)
        up(machine(api, state))
        with pytest.raises(Died):
            down(machine(api, state, step))
        after = machine(api, state)
        after.destroy("two")
        assert api.objects == {}, step
        assert after.labs() == [], step


def leaked(state: Path) -> list[Leftover]:
    class Nobody(Judge):
        """A judge of a state folder without labs."""

        own = state

        def holder(self, lab: str, state: Path) -> str:
            raise AssertionError(lab, state)

        fate = locked = whole = holder  # type: ignore[assignment]

    return [*KubernetesProvider.leftovers(Nobody())]


@pytest.fixture
def named(api: Api, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Api:
    """An API server that the user names by its context."""
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    monkeypatch.setenv(CONTEXT, "here")
    return api


def test_a_namespace_without_a_janitor_is_a_leftover_after_a_while(
    named: Api, cluster: Cluster, tmp_path: Path
) -> None:
    meta = manifests.labels("lab", manifests.owner_label("jane"))
    body = manifests.namespace("testbed-lab-1", meta)
    path = "/api/v1/namespaces"
    assert leaked(tmp_path) == []
    named.create(path, "", body)
    assert leaked(tmp_path) == [], "an `up` may be about to create the janitor"
    named.objects.clear()
    named.age = labs.AGE + 10
    named.create(path, "", body)
    (one,) = leaked(tmp_path)
    assert (one.kind, one.name, one.theirs) == ("namespace", "testbed-lab-1", False)
    assert one.command == "kubectl --context here delete namespace testbed-lab-1"
    place = Place(cluster.kubeconfig, "here", "testbed-lab-1", own=True, owner="me")
    Remembered(tmp_path / "other").keep("lab", place)
    with pytest.raises(AssertionError):  # the record of the lab tells it
        leaked(tmp_path / "other")
    one.remove()
    assert named.objects == {}


def test_a_lab_in_use_and_those_of_others_are_no_leftovers(
    named: Api, cluster: Cluster, tmp_path: Path
) -> None:
    named.age = labs.AGE + 10
    site(cluster).make("image", TERMS, privileged=False)
    joe = manifests.namespace("testbed-joe", manifests.labels("joe", manifests.owner_label("joe")))
    named.create("/api/v1/namespaces", "", joe)
    assert leaked(tmp_path) == []
    job = next(path for path, one in named.objects.items() if one["kind"] == "Job")
    del named.objects[job]
    assert [one.name for one in leaked(tmp_path)] == ["testbed-lab-1"]


def test_the_age_of_a_namespace_is_by_the_clock_of_the_server(named: Api, tmp_path: Path) -> None:
    body = manifests.namespace("n", manifests.labels("lab", manifests.owner_label("jane")))
    named.create("/api/v1/namespaces", "", body)
    assert leaked(tmp_path) == []
    named.ahead = labs.AGE + 10
    assert [one.name for one in leaked(tmp_path)] == ["n"]
    named.age = labs.AGE + 10
    named.ahead = -named.age
    named.objects.clear()
    named.create("/api/v1/namespaces", "", body)
    assert leaked(tmp_path) == []


def test_a_cluster_that_does_not_answer_is_no_leftover_and_is_told(
    named: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named.refuse = lambda method, path: (503, {})
    (one,) = leaked(tmp_path)
    assert (one.kind, one.name, one.theirs) == ("cluster", "here", True)
    monkeypatch.delenv(CONTEXT)
    assert leaked(tmp_path) == [], "no cluster is asked that nobody names"


def test_up_removes_what_a_killed_one_left(
    machine: Callable[..., KubernetesProvider], tmp_path: Path
) -> None:
    api = Api(age=labs.AGE + 10)
    asked = 0
    while not api.objects:
        asked += 1
        with pytest.raises(Died):
            up(machine(api, tmp_path / f"dead-{asked}", asked))
    (old,) = api.objects
    up(machine(api, tmp_path / "new"))
    assert old not in api.objects
    kinds = [one["kind"] for one in api.objects.values()]
    assert kinds.count("Namespace") == 1


# -- the cluster's node on which a Pod runs ----------------------------------------------

PINNED = TWO.replace("10.50.0.2}}", "10.50.0.2}, on: worker-3}")


def test_a_node_runs_on_the_clusters_node_that_it_names(api: Api, cluster: Cluster) -> None:
    topology = load_text(PINNED, "two.yaml")
    assert node_spec(topology, topology.nodes["a"]).host == "worker-3"
    assert load_data(topology.to_dict(), "record") == topology
    one = site(cluster)
    one.make("image", TERMS, privileged=False)
    one.create([replace(spec("a"), host="worker-3"), spec("b")], set())
    specs = {p["metadata"]["labels"][NODE]: p["spec"] for p in api.objects.values()
             if p["kind"] == "Pod"}  # fmt: skip
    wanted = specs["a"]["affinity"]["nodeAffinity"]
    (terms,) = wanted["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == {
        "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["worker-3"]}]
    }
    assert "affinity" not in specs["b"]


def test_another_place_makes_a_new_node() -> None:
    digests = {load_text(text, "two.yaml").node_digest("a") for text in (TWO, PINNED)}
    assert len(digests) == 2


def test_a_node_that_the_cluster_lacks_is_told_before_anything_is_made(
    api: Api, provider: KubernetesProvider, tmp_path: Path
) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(PINNED)
    with pytest.raises(UsageError) as caught:
        provider.create_fabric("two", load(file))
    assert caught.value.where == f"{file}:5"
    assert api.objects == {}
    worker = {"kind": "Node", "metadata": {"name": "worker-3", "uid": "w", "labels": {}}}
    api.objects["/api/v1/nodes/worker-3"] = worker
    provider.create_fabric("two", load(file))
    del api.objects["/api/v1/nodes/worker-3"]  # and of a lab that is there
    with pytest.raises(UsageError):
        provider.create_fabric("two", load(file))


def test_who_may_not_look_at_nodes_learns_it_from_the_scheduler(
    api: Api, provider: KubernetesProvider
) -> None:
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "no"}) if "/api/v1/nodes" in path else None
    )
    provider.create_fabric("two", load_text(PINNED, "two.yaml"))
    assert api.objects


@pytest.mark.parametrize("maker", ["netns", "qemu", "vagrant", "containerlab", "ssh"])
def test_providers_of_one_machine_refuse_a_place_by_name(maker: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_text(PINNED.replace("kubernetes", maker).replace(", forward: true", ""), "two.yaml")
    (problem,) = caught.value.problems
    assert problem.line == 5
    assert maker in problem.seen
    assert "kubernetes" in problem.hint


@pytest.mark.parametrize("name", ["worker 3", "[a, b]", "-a", "''", "a/b", "true", "7"])
def test_a_place_that_is_no_name(name: str) -> None:
    with pytest.raises(TopologyError) as caught:
        load_text(PINNED.replace("worker-3", name), "two.yaml")
    assert [problem.line for problem in caught.value.problems] == [5]


# -- options of up -----------------------------------------------------------------------


def test_options_are_in_the_help_of_up_alone() -> None:
    assert {"--image", "--keep-alive"} <= options_of("up")
    assert not {"--image", "--keep-alive"} & options_of("plan")


def options_of(command: str) -> set[str]:
    return {*re.findall(r"--[a-z-]+", CliRunner().invoke(cli, [command, "--help"]).output)}


@pytest.mark.parametrize(
    "argv",
    [
        ["two-node", "--image", "a:1"], ["two-node", "--keep-alive=8h"], ["-l", "x", "--image=a:1"],
        ["two-node", "--provider", "kubernetes", "--image"],
    ],
)  # fmt: skip
def test_options_without_use_are_refused(argv: list[str]) -> None:
    done = CliRunner().invoke(cli, ["up", *argv], standalone_mode=False)
    assert isinstance(done.exception, (UsageError, click.UsageError))
    if isinstance(done.exception, UsageError) and "-l" not in argv:
        assert done.exception.where in {"--image", "--keep-alive"}


def test_options_reach_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reached(Exception):
        pass

    def up(lab: Lab, *_: object, **__: object) -> None:
        provider = lab.settings.providers["kubernetes"]
        assert isinstance(provider, KubernetesProvider)
        raise Reached(provider._chosen)

    monkeypatch.setattr("testbed.labs.lab.Lab.up", up)
    monkeypatch.setattr("testbed.cli.up.need_root", lambda _: None)
    monkeypatch.setenv("TESTBED_STATE", str(tmp_path))
    argv = ["up", "two-node", "--provider", "kubernetes", "--keep-alive", "8h", "--image", "a:1"]
    done = CliRunner().invoke(cli, [*argv, "-q"], standalone_mode=False)
    assert isinstance(done.exception, Reached), done.exception
    assert done.exception.args == ({"keep-alive": "8h", "image": "a:1"},)


def test_who_may_not_list_is_told_the_missing_rights(
    api: Api, provider: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.allowed = False
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "no"})
        if method == "GET" or path.endswith("/namespaces?dryRun=All") else None
    )  # fmt: skip
    with pytest.raises(MachineError) as caught:
        provider.create_fabric("two", load_text(TWO, "two.yaml"))
    assert "TESTBED_KUBE_NAMESPACE" in (caught.value.hint or "")
    monkeypatch.setenv("TESTBED_KUBE_NAMESPACE", "shared")
    with pytest.raises(MachineError) as caught:
        provider.create_fabric("two", load_text(TWO, "two.yaml"))
    assert "list jobs" in caught.value.missing
    assert api.objects == {}


def test_a_cluster_that_is_silent_keeps_no_other_lab_from_work(
    api: Api, provider: KubernetesProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONTEXT, "here")
    api.refuse = lambda method, path: (503, {})
    assert provider.nodes("two") == {}
    assert provider.ended("two") == {}
    with pytest.raises(NoAnswer):
        provider.labs()


def test_a_lab_of_a_cluster_that_is_gone_can_be_forgotten(
    api: Api, provider: KubernetesProvider, tmp_path: Path
) -> None:
    provider.create_fabric("two", load_text(TWO, "two.yaml"))
    api.refuse = lambda method, path: (503, {})
    with pytest.raises(NoAnswer) as caught:
        provider.destroy("two")
    assert provider.labs() == ["two"]
    file = re.findall(r"`rm (\S+)`", caught.value.hint or "")[0]
    Path(file).unlink()
    assert provider.labs() == []


def test_the_first_error_is_told_if_the_lab_cannot_be_removed_either(
    api: Api, provider: KubernetesProvider
) -> None:
    api.refuse = lambda method, path: (
        (403, {"reason": "Forbidden", "message": "exceeded quota"})
        if (method, path.endswith("/jobs")) == ("POST", True)
        else (503, {}) if method == "DELETE" else None
    )  # fmt: skip
    with pytest.raises(MachineError, match="exceeded quota"):
        provider.create_fabric("two", load_text(TWO, "two.yaml"))
    assert provider.labs() == ["two"], "its namespace is there still"


# -- streams -----------------------------------------------------------------------------


class Peer:
    """The server's side of a websocket on a socket pair (RFC 6455)."""

    def __init__(self) -> None:
        from websocket import WebSocket

        self.sock, theirs = socket.socketpair()
        self.client = WebSocket()
        self.client.sock = theirs

    def frame(self, data: bytes, opcode: int = 2) -> None:
        size = len(data)
        head = bytes([0x80 | opcode])
        if size < 126:
            head += bytes([size])
        elif size < 1 << 16:
            head += bytes([126]) + struct.pack("!H", size)
        else:
            head += bytes([127]) + struct.pack("!Q", size)
        self.sock.sendall(head + data)

    def take(self) -> tuple[int, bytes]:
        """The next frame of the client: its opcode and its content."""
        first, second = self._exactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", self._exactly(2))
        mask = self._exactly(4)
        data = self._exactly(size)
        return first & 0xF, bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.sock.recv(size - len(data))
            assert more
            data += more
        return data


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.sock.close()


def test_output_errors_and_status_come_apart(peer: Peer) -> None:
    one = ExecChannel(peer.client)
    peer.frame(b"\1out")
    peer.frame(b"\2err")
    peer.frame(b"\1" + b"x" * 70_000)
    peer.frame(b"\3" + json.dumps({"status": "Failure", "message": "exit code 3"}).encode())
    peer.frame(b"", opcode=8)
    data = b""
    while more := one.recv(1 << 20):
        data += more
    assert data == b"out" + b"x" * 70_000
    assert (one.errors, one.failure) == ("err", "exit code 3")
    assert one.recv(1) == b""


def test_a_frame_in_pieces_is_one(peer: Peer) -> None:
    one = ExecChannel(peer.client)
    one.settimeout(0)
    whole = b"\x82\x05\1abcd"
    for byte in whole[:-1]:
        peer.sock.sendall(bytes([byte]))
        with pytest.raises(TimeoutError):
            one.recv(10)
    peer.sock.sendall(whole[-1:])
    one.settimeout(60)
    assert one.recv(10) == b"abcd"


def test_input_is_sent_whole_however_slow_the_reader_is(peer: Peer) -> None:
    one = ExecChannel(peer.client)
    one._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    data = os.urandom(300_000)

    def send() -> None:
        rest = data
        while rest:
            rest = rest[one.send(rest) :]

    thread = threading.Thread(target=send)
    thread.start()
    seen = b""
    while len(seen) < len(data):
        opcode, content = peer.take()
        assert (opcode, content[:1]) == (2, b"\0")
        seen += content[1:]
    thread.join()
    assert seen == data


def test_a_ping_is_answered_and_a_silent_server_is_asked(peer: Peer) -> None:
    one = ExecChannel(peer.client, quiet=-1)
    one.settimeout(0)
    peer.frame(b"hello", opcode=9)
    while True:
        with pytest.raises(TimeoutError):
            one.recv(1)
        opcode, content = peer.take()
        if opcode == 10:
            break
        assert opcode == 9
    assert content == b"hello"


def test_a_connection_on_which_nothing_comes_is_lost(peer: Peer) -> None:
    one = ExecChannel(peer.client, dead=-1)
    one.settimeout(0)
    with pytest.raises(TimeoutError):
        one.recv(1)
    assert one.recv(1) == b""
    assert one.errors


def test_a_cut_connection_is_the_end(peer: Peer) -> None:
    one = ExecChannel(peer.client)
    peer.frame(b"\1half")
    peer.sock.sendall(b"\x82\x7e\x10\x00\1never")
    peer.sock.close()
    assert one.recv(10) == b"half"
    assert one.recv(10) == b""
    with pytest.raises(OSError, match="closed"):
        one.send(b"x")


def test_a_server_that_takes_nothing_is_lost(peer: Peer) -> None:
    one = ExecChannel(peer.client, dead=0)
    one._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    def flood() -> None:
        while True:
            one.send(bytes(30_000))

    with pytest.raises(OSError, match="takes nothing"):
        flood()
    assert one.recv(1) == b""


def test_what_is_no_frame_is_an_error_of_the_connection(peer: Peer) -> None:
    one = ExecChannel(peer.client)
    peer.sock.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n" + b" " * 100)
    with pytest.raises(OSError, match="rsv"):
        one.recv(1)
    assert one.errors


def test_closing_wakes_whoever_receives(peer: Peer) -> None:
    one = ExecChannel(peer.client)
    seen: list[bytes] = []
    thread = threading.Thread(target=lambda: seen.append(one.recv(1)))
    thread.start()
    one.close()
    one.close()
    thread.join()
    assert seen == [b""]
    with pytest.raises(OSError):
        one.send(b"x")
