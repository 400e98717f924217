"""Document 004, its example of flannel: a Pod, as printed and as corrected.

Lab: k8s-two-node.  The Pods act only in their own network namespaces, and the lab's own
flannel does not read the annotations that they write on their node.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Any

import pytest

from testbed.claims.observation import Observation
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.plugins.flannel import SUBNET_FILE
from testbed.suites.cluster import pod
from testbed.suites.helpers import IMAGE, link, links

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab
    from testbed.nodes.base import Node
    from testbed.suites.cluster import Cluster

pytestmark = pytest.mark.testbed_needs("pods-by-flannel")

IMAGE_PRINTED = "quay.io/coreos/flannel:v0.14.0"
PROGRAM = "/opt/bin/flanneld"
FLAGS = ("--ip-masq", "--kube-subnet-mgr", "--iface=eth0")
FOLDER = "/etc/kube-flannel/"
CONFIG_MAP = "kube-flannel-cfg"
VNI = 77  # of the example's network: only the ConfigMap sets it
HEALTH = 8081
CAPABILITIES = ("NET_ADMIN", "NET_RAW")  # flannel, Documentation/kube-flannel.yml
ANNOTATIONS = "flannel.check"  # suffix of the examples' annotations, unlike the lab's


def example(name: str, lab: LiveLab, node: Node, *, map: str, more: Sequence[str] = (),
            security: Mapping[str, Any], **spec: Any) -> dict[str, Any]:  # fmt: skip
    """Return the document's Pod, as far as a lab can provide it.

    The image is unavailable: flanneld is the node's own, mounted at the image's path, along with
    the programs of the node that it calls.
    """
    program = node.provide(lab.context.store.binary("flanneld"))
    paths = {
        "program": (program, PROGRAM),
        "programs": ("/usr", "/usr"),
        "alternatives": ("/etc/alternatives", "/etc/alternatives"),
        "rights": (f"{config.FOLDER}/flannel.conf", f"{config.FOLDER}/flannel.conf"),
    }
    mounts = [
        {"name": one, "mountPath": inside, "readOnly": True} for one, (_, inside) in paths.items()
    ]
    volumes: list[dict[str, Any]] = [
        {"name": one, "hostPath": {"path": outside}} for one, (outside, _) in paths.items()
    ]
    container = {
        "name": "flannel-container",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": [PROGRAM],
        "args": [*FLAGS, *more],
        # A flag that the printed line need not have: flanneld also reads it from here.
        "env": [{"name": "FLANNELD_HEALTHZ_PORT", "value": str(HEALTH)}],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": HEALTH},  # ready with a lease and a device
            "periodSeconds": 1,
        },
        "securityContext": dict(security),
        "volumeMounts": [*mounts, {"name": "flannel-cfg", "mountPath": FOLDER}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    volumes.append({"name": "flannel-cfg", "configMap": {"name": map}})
    return pod(
        name, node=node.name, containers=[container], volumes=volumes, restartPolicy="Never", **spec
    )


def mended(name: str, lab: LiveLab, node: Node, **settings: Any) -> dict[str, Any]:
    """Return the Pod with its missing parts: identity, node name, permissions.

    It writes annotations of its own, so that the lab's flannel does not read them.
    """
    more = [
        f"--kubeconfig-file={config.FOLDER}/flannel.conf",
        f"--kube-annotation-prefix={name}.{ANNOTATIONS}",
    ]
    body = example(name, lab, node, more=more, **settings)
    (container,) = body["spec"]["containers"]
    where = {"fieldRef": {"fieldPath": "spec.nodeName"}}
    container["env"].append({"name": "NODE_NAME", "valueFrom": where})
    return body


def net_conf(name: str, cluster: Cluster, backend: Mapping[str, Any]) -> dict[str, Any]:
    """Return flannel's ConfigMap (its Documentation/configuration.md)."""
    # Rules by nft, which a container can call directly: iptables is a chain of symlinks.
    text = {"Network": str(cluster.spec.pods), "EnableNFTables": True, "Backend": backend}
    return {
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"net-conf.json": json.dumps(text)},
    }


@dataclass(frozen=True, slots=True)
class Example:
    """The outcome of a Pod: whether flanneld was ready, and otherwise its last words."""

    ready: bool
    words: str


@dataclass(slots=True)
class Examples:
    """Observations of the document's Pod, as printed and corrected, by Pod name.

    For the corrected one: the running ``program``, the ``device`` it created and the ``subnet``
    it wrote down; ``noted`` has its annotations on each node, ``devices`` the nodes' own links.
    """

    seen: Observation
    by_name: dict[str, Example] = field(default_factory=dict)
    program: str = ""
    device: dict[str, Any] = field(default_factory=dict)
    subnet: str = ""
    noted: dict[str, dict[str, str]] = field(default_factory=dict)
    devices: dict[str, list[str]] = field(default_factory=dict)


MENDED, AS_PRINTED, UDP, UDP_PRIVILEGED = (
    "flannel-pod", "flannel-as-printed", "flannel-udp", "flannel-udp-privileged",
)  # fmt: skip


@pytest.fixture(scope="module")
def examples(lab: LiveLab, cluster: Cluster) -> Iterator[Examples]:
    """Run the document's Pod in four forms at once, each in its own network namespace."""
    found = Examples(Observation())
    node = cluster.other
    unprivileged = {"capabilities": {"add": list(CAPABILITIES)}}
    privileged = {"privileged": True}
    udp_map = f"{CONFIG_MAP}-udp"
    objects = [
        net_conf(CONFIG_MAP, cluster, {"Type": "vxlan", "VNI": VNI}),
        net_conf(udp_map, cluster, {"Type": "udp"}),
        example(AS_PRINTED, lab, node, map=CONFIG_MAP, security=privileged,
                automountServiceAccountToken=True),
        mended(MENDED, lab, node, map=CONFIG_MAP, security=unprivileged),
        mended(UDP, lab, node, map=udp_map, security=unprivileged),
        mended(UDP_PRIVILEGED, lab, node, map=udp_map, security=privileged),
    ]  # fmt: skip
    pods = [one["metadata"]["name"] for one in objects if one["kind"] == "Pod"]
    made = []
    try:
        for one in objects:
            cluster.create(one)
            made.append(one)
        for name in pods:
            found.by_name[name] = cluster.until(
                functools.partial(ended_or_ready, cluster, name), f"the Pod {name} to run or to end"
            )
            cluster.kubectl(found.seen, "logs", name, check=False)
        look(cluster, found)
        yield found
    finally:
        for one in reversed(made):
            cluster.delete(one["kind"], one["metadata"]["name"])
        forget_notes(cluster, node)


def ended_or_ready(cluster: Cluster, name: str) -> Example | None:
    """Return the outcome of a Pod; None while it is neither ready nor ended."""
    status = (cluster.find("Pod", name) or {}).get("status", {})
    if any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())):
        return Example(ready=True, words="")
    for one in status.get("containerStatuses", ()):
        state = one["state"]
        ended = state.get("terminated")
        if ended is None and state.get("waiting", {}).get("reason", "").endswith("Error"):
            ended = state["waiting"]  # CreateContainerError: the kubelet retries in vain
        if ended:
            return Example(ready=False, words=(ended.get("message") or ended["reason"]).strip())
    return None


def look(cluster: Cluster, found: Examples) -> None:
    """Record the effects of the corrected Pod on itself and on the nodes."""
    observe = found.seen
    if found.by_name[MENDED].ready:
        place = cluster.pod(MENDED)
        pid = place.containers["flannel-container"]
        found.program = observe.run(place.node, ["readlink", f"/proc/{pid}/exe"]).stdout.strip()
        found.device = link(observe, place, f"flannel.{VNI}")
        path = f"/proc/{pid}/root/run/flannel/subnet.env"
        found.subnet = observe.run(place.node, ["cat", path], check=False).stdout
    for node in cluster.nodes:
        notes = notes_on(cluster, node)
        prefix = f"{MENDED}.{ANNOTATIONS}/"
        found.noted[node.name] = {k: v for k, v in notes.items() if k.startswith(prefix)}
        found.devices[node.name] = [one["ifname"] for one in links(observe, node)]
    observe.note("what the Pod's flanneld has noted on the nodes", found.noted)


def notes_on(cluster: Cluster, node: Node) -> dict[str, str]:
    """Return a node's annotations, as the API has them."""
    found = cluster.find("Node", node.name)
    assert found
    return dict(found["metadata"].get("annotations") or {})


def forget_notes(cluster: Cluster, node: Node) -> None:
    """Remove the examples' annotations from their node."""
    notes = [key for key in notes_on(cluster, node) if f".{ANNOTATIONS}/" in key]
    if notes:
        body = {"metadata": {"annotations": dict.fromkeys(notes)}}
        kind = "application/merge-patch+json"
        cluster.api.ask("PATCH", f"/api/v1/nodes/{node.name}", body, kind=kind)


@pytest.mark.testbed_claim("flannel-example-image")
def test_flannels_image_has_another_version_now(
    lab: LiveLab, cluster: Cluster, observe: Observation
) -> None:
    node = cluster.other
    there = cluster.ctr(observe, node, "images", "list", "--quiet")
    result = observe.run(node, [flanneld(lab, node), "--version"])
    says = (result.stdout + result.stderr).strip()
    _, _, tag = IMAGE_PRINTED.rpartition(":")
    observe.note("an image of that name is on the node", str(IMAGE_PRINTED in there))
    observe.holds(says == tag, f"flannel as it is now has the image's version: it is {says}")


def flanneld(lab: LiveLab, node: Node) -> str:
    """Return the path of a node's flanneld."""
    return node.provide(lab.context.store.binary("flanneld"))


@pytest.mark.testbed_claim("flannel-example-binary")
def test_the_program_is_where_the_image_has_it(
    cluster: Cluster, examples: Examples, observe: Observation
) -> None:
    observe.evidence += examples.seen.evidence
    observe.holds_when(
        "it is the container of the example, in whose image it is there",
        examples.program == PROGRAM,
    )
    for node in cluster.nodes:
        pid = node.services()["flanneld"].pid
        program = observe.run(node, ["readlink", f"/proc/{pid}/exe"]).stdout.strip()
        observe.fails_when(
            f"it is a daemon of the node, as on {node.name}: it runs from {program}",
            program.endswith("/flanneld") and program != PROGRAM,
        )


@pytest.mark.testbed_claim("flannel-example-kube-subnet-mgr")
def test_kube_subnet_mgr_takes_subnets_from_the_api(
    cluster: Cluster, examples: Examples, observe: Observation
) -> None:
    observe.evidence += examples.seen.evidence
    ranges = {node.name: podcidr(cluster, observe, node) for node in cluster.nodes}
    observe.holds(
        leased(examples.subnet) == ranges[cluster.other.name],
        "the Pod's flanneld, with the option as printed and no etcd, has its node's spec.podCIDR",
    )
    for node in cluster.nodes:
        pid = node.services()["flanneld"].pid
        words = node.get(f"/proc/{pid}/cmdline").decode().split("\0")
        observe.note(f"{node.name}: flanneld's command line", " ".join(words))
        observe.holds("-kube-subnet-mgr" in words, f"{node.name}: flanneld has taken the option")
        text = observe.run(node, ["cat", SUBNET_FILE]).stdout
        observe.holds(
            leased(text) == ranges[node.name],
            f"{node.name}: its subnet {leased(text)} is spec.podCIDR of its node in the API",
        )
        notes = notes_on(cluster, node)
        observe.note(f"{node.name}: its annotations in the API", notes)
        observe.holds(
            notes.get("flannel.alpha.coreos.com/kube-subnet-manager") == "true"
            and notes.get("flannel.alpha.coreos.com/public-ip") == cluster.address(node),
            f"{node.name}: the API has flannel's notes on it, with its address",
        )


def podcidr(cluster: Cluster, observe: Observation, node: Node) -> str:
    """Return a node's Pod range from the API, recorded."""
    return str(cluster.get(observe, "node", node.name)["spec"]["podCIDR"])


def leased(text: str) -> str:
    """Return the subnet in flanneld's subnet.env, "" if there is none."""
    own = dict(line.split("=", 1) for line in text.split())
    return str(ip_interface(own["FLANNEL_SUBNET"]).network) if own else ""


@pytest.mark.testbed_claim("flannel-example-privileged")
def test_only_udp_needs_a_privileged_container(examples: Examples, observe: Observation) -> None:
    observe.evidence += examples.seen.evidence
    vxlan, udp, privileged = (examples.by_name[name] for name in (MENDED, UDP, UDP_PRIVILEGED))
    observe.note("flanneld's last words, udp without privileges", udp.words)
    if not privileged.ready and "main.go" not in privileged.words:  # not flanneld's message
        pytest.skip(f"the node starts no privileged container: {privileged.words}")
    observe.fails_when(
        f"the back end is vxlan: {' and '.join(CAPABILITIES)} are enough", vxlan.ready
    )
    observe.holds_when(
        "the back end is udp, which opens /dev/net/tun: privileged, flanneld has its device; "
        "with those two capabilities it ends",
        privileged.ready and not udp.ready and "TUN" in udp.words,
    )


@pytest.mark.testbed_claim("flannel-example-configmap")
def test_flannel_reads_the_config_map(examples: Examples, observe: Observation) -> None:
    observe.evidence += examples.seen.evidence
    told = examples.device.get("linkinfo", {}).get("info_data", {}).get("id")
    observe.holds(
        told == VNI,
        f"with {CONFIG_MAP} at {FOLDER} and no option that names a file, flanneld makes "
        f"the network that the ConfigMap says: VNI {VNI}",
    )


@pytest.mark.testbed_claim("flannel-example-pod-manages-network")
def test_a_single_pod_manages_nothing(
    cluster: Cluster, examples: Examples, observe: Observation
) -> None:
    observe.evidence += examples.seen.evidence
    printed, repaired = examples.by_name[AS_PRINTED], examples.by_name[MENDED]
    observe.note("flanneld's last words, as printed", printed.words)
    observe.holds(printed.ready, "the Pod starts flannel as it is printed")
    assert repaired.ready, f"the mended Pod does not start: {repaired.words}"
    for node in cluster.nodes:
        observe.holds(examples.noted[node.name], f"once mended, {node.name} has a lease of it")
        observe.holds(
            f"flannel.{VNI}" in examples.devices[node.name],
            f"and its device, which is where Pods of {node.name} could use it",
        )
