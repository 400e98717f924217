"""A cluster on fake nodes: what every daemon is told, in which order, and what a change restarts.

Expected flags and fields are those of kubernetes.io's reference of each program.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from testbed.artifacts import archive
from testbed.errors import ArtifactError, LabError, MachineError, StepsFailed, UsageError
from testbed.labs.lab import Lab, Outcome
from testbed.nodes.fake import Answer, FakeNode
from testbed.registry import ROLES
from testbed.roles.kubernetes import (
    addons,
    certificates,
    client,
    config,
    daemons,
    role,
    runtime,
    steps,
)
from testbed.roles.kubernetes.pki import Authority, Pair
from testbed.roles.kubernetes.plugins import bgp, cilium
from testbed.testing.fakes import Bench, FakeStore, be_a_machine
from testbed.topology import Overrides, Topology, load

if TYPE_CHECKING:
    from testbed.nodes.base import Service

NAME = "k8s-two-node"
BIN = "/nowhere/cache"
#: The store's own folder of Debian's containerd and runc comes before the node's folders.
PATH = f"{BIN}/docker:/usr/sbin:/usr/bin:/sbin:/bin"


class FakeApi:
    """Objects of the API server by path: each node is Ready, each workload available."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.status: dict[str, Any] = {}

    def ready(self) -> bool:
        return True

    def create(self, path: str, body: dict[str, Any]) -> bool:
        key = f"{path}/{body['metadata']['name']}"
        new = key not in self.made
        self.made.setdefault(key, body)
        return new

    def find(self, path: str) -> dict[str, Any] | None:
        if path in self.status:
            found: dict[str, Any] | None = self.status[path]
            return found
        if "/nodes/" in path:
            return {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        if "/daemonsets/" in path:
            return {"status": {"desiredNumberScheduled": 2, "numberAvailable": 2}}
        return {"spec": {"replicas": 1}, "status": {"availableReplicas": 1}}

    def ask(self, method: str, path: str) -> dict[str, Any]:
        assert method == "GET"
        return {"items": []}


class Store(FakeStore):
    """A store with a file for each image."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.images = folder

    def image(self, name: str) -> Path:
        path = self.images / name.replace("/", "-")
        if not path.exists():
            path.touch()
        return path

    def file(self, part: str, place: str) -> Path:
        return Path(BIN, part, place)


class Cluster:
    """A lab on fake nodes, and the services as they were started."""

    def __init__(self, bench: Bench, api: FakeApi) -> None:
        self.bench = bench
        self.api = api
        self.started: list[tuple[str, Service]] = []
        self.outcome: Outcome | None = None

    def up(self, topology: Topology) -> Outcome:
        return Lab(topology.name, self.bench.settings).up(topology)

    def node(self, name: str = "node1", lab: str = NAME) -> FakeNode:
        found = self.bench.provider.nodes(lab)[name]
        assert isinstance(found, FakeNode)
        return found

    def service(self, name: str, node: str = "node1") -> Service:
        return [service for of, service in self.started if (of, service.name) == (node, name)][-1]

    def names(self, node: str) -> list[str]:
        return [service.name for of, service in self.started if of == node]

    def ran(self, *beginning: str, node: str = "node1") -> list[tuple[str, ...]]:
        asked = self.bench.provider.asked("run", node)
        return [words for words in asked if words[: len(beginning)] == beginning]


@contextmanager
def clusters(folder: Path) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        bench = Bench(folder)
        bench.install(patch)
        bench.store = Store(folder)
        object.__setattr__(bench.settings, "store", bench.store)
        made = Cluster(bench, FakeApi())
        patch.setattr(client, "api", lambda _: made.api)
        patch.setattr(steps, "api", lambda _: made.api)
        real = FakeNode.start

        def start(node: FakeNode, service: Service, *, timeout: float = 60) -> None:
            made.started.append((node.name, service))
            real(node, service, timeout=timeout)

        patch.setattr(FakeNode, "start", start)
        yield made


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with clusters(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A cluster that is up; its tests look at it, and change nothing."""
    with clusters(tmp_path_factory.mktemp("cluster")) as made:
        made.outcome = made.up(load(NAME))
    return made


def flags(argv: tuple[str, ...]) -> dict[str, str]:
    """The options of a command line, which are all of them, by name."""
    assert all(word.startswith("-") for word in argv[1:]), argv
    pairs = (word.lstrip("-").partition("=") for word in argv[1:])
    return {name: value for name, _, value in pairs}


PKI = "/etc/kubernetes/pki"
CONF = "/etc/kubernetes"
COMMON = {"leader-elect": "false", "bind-address": "127.0.0.1", "profiling": "false"}
#: What each daemon of the control plane is told.
CONTROL: dict[str, dict[str, str]] = {
    "etcd": {
        "name": "default",
        "data-dir": "/var/lib/etcd",
        "listen-client-urls": "https://127.0.0.1:2379",
        "advertise-client-urls": "https://127.0.0.1:2379",
        "listen-peer-urls": "http://127.0.0.1:2380",
        "cert-file": f"{PKI}/etcd.crt",
        "key-file": f"{PKI}/etcd.key",
        "trusted-ca-file": f"{PKI}/ca.crt",
        "client-cert-auth": "",
        "heartbeat-interval": "50",
        "election-timeout": "250",
        "logger": "zap",
        "log-level": "warn",
        "unsafe-no-fsync": "",
    },
    "kube-apiserver": {
        "etcd-servers": "https://127.0.0.1:2379",
        "etcd-cafile": f"{PKI}/ca.crt",
        "etcd-certfile": f"{PKI}/apiserver.crt",
        "etcd-keyfile": f"{PKI}/apiserver.key",
        "service-cluster-ip-range": "10.97.0.0/16",
        "advertise-address": "10.168.0.2",
        "secure-port": "6443",
        "tls-cert-file": f"{PKI}/apiserver.crt",
        "tls-private-key-file": f"{PKI}/apiserver.key",
        "client-ca-file": f"{PKI}/ca.crt",
        "kubelet-client-certificate": f"{PKI}/apiserver-kubelet.crt",
        "kubelet-client-key": f"{PKI}/apiserver-kubelet.key",
        "kubelet-certificate-authority": f"{PKI}/ca.crt",
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-key-file": f"{PKI}/sa.pub",
        "service-account-signing-key-file": f"{PKI}/sa.key",
        "service-account-issuer": "https://kubernetes.default.svc.cluster.local",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "anonymous-auth": "false",
        "allow-privileged": "true",
        "profiling": "false",
    },
    "kube-controller-manager": {
        "kubeconfig": f"{CONF}/controller-manager.conf",
        "allocate-node-cidrs": "true",
        "cluster-cidr": "100.96.0.0/16",
        "node-cidr-mask-size": "24",
        "service-cluster-ip-range": "10.97.0.0/16",
        "root-ca-file": f"{PKI}/ca.crt",
        "cluster-signing-cert-file": f"{PKI}/ca.crt",
        "cluster-signing-key-file": f"{PKI}/ca.key",
        "service-account-private-key-file": f"{PKI}/sa.key",
        "use-service-account-credentials": "true",
        "kube-api-qps": "1000",
        "kube-api-burst": "1000",
        **COMMON,
    },
    "kube-scheduler": {"kubeconfig": f"{CONF}/scheduler.conf", **COMMON},
}
#: Those on every node of node2's.
EVERY: dict[str, dict[str, str]] = {
    "containerd": {"config": f"{CONF}/containerd.toml", "log-level": "warn"},
    "kubelet": {
        "config": f"{CONF}/kubelet.json",
        "kubeconfig": f"{CONF}/kubelet.conf",
        "hostname-override": "node2",
        "node-ip": "10.168.0.3",
        "root-dir": "/var/lib/kubelet",
        "cert-dir": "/var/lib/kubelet/pki",
    },
    "kube-proxy": {"config": f"{CONF}/kube-proxy.json"},
    "flanneld": {
        "kube-subnet-mgr": "",
        "kubeconfig-file": f"{CONF}/flannel.conf",
        "net-config-path": f"{CONF}/flannel.json",
        "iface": "eth0",
        "subnet-file": "/run/flannel/subnet.env",
        "iptables-resync": "60",
    },
}
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
    "cgroupDriver": "cgroupfs",
    "cgroupRoot": "/",
    "cgroupsPerQOS": True,
    "enforceNodeAllocatable": [],
    # It runs on kernels with cgroups of version 1 and with swap, and changes no sysctl.
    "failCgroupV1": False,
    "failSwapOn": False,
    "protectKernelDefaults": True,
    "localStorageCapacityIsolation": False,
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": f"{PKI}/ca.crt"},
    },
    "authorization": {"mode": "Webhook"},
    "tlsCertFile": f"{PKI}/kubelet.crt",
    "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
    "clusterDNS": ["10.97.0.10"],
    "clusterDomain": "cluster.local",
    "resolvConf": f"{CONF}/resolv.conf",
    # It shares its machine's disk and memory with others, and evicts no Pod for them.
    "evictionHard": dict.fromkeys(
        (
            "memory.available",
            "nodefs.available",
            "nodefs.inodesFree",
            "imagefs.available",
            "imagefs.inodesFree",
            "pid.available",
        ),
        "0%",
    ),
    "imageGCHighThresholdPercent": 100,
    "imageGCLowThresholdPercent": 99,
    "syncFrequency": "5s",
    "nodeStatusUpdateFrequency": "2s",
    "fileCheckFrequency": "60s",
}
PROXY = {
    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
    "kind": "KubeProxyConfiguration",
    "mode": "nftables",
    "clientConnection": {"kubeconfig": f"{CONF}/proxy.conf"},
    "hostnameOverride": "node2",
    "clusterCIDR": "100.96.0.0/16",
    "bindAddress": "10.168.0.3",
    "healthzBindAddress": "127.0.0.1:10256",
    "metricsBindAddress": "127.0.0.1:10249",
    # 0 leaves the machine's own setting as it is (KubeProxyConntrackConfiguration).
    "conntrack": {
        "maxPerCore": 0,
        "min": 0,
        "tcpEstablishedTimeout": "0s",
        "tcpCloseWaitTimeout": "0s",
    },
}
#: The bridge and portmap plugins' own reference (cni.dev/plugins).
PODS = {
    "cniVersion": "0.4.0",
    "name": "pods",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "mtu": 1450,
            "isGateway": True,
            "isDefaultGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "dataDir": "/var/lib/cni/networks",
                "ranges": [[{"subnet": "100.96.2.0/24"}]],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}


def test_every_daemon_is_told_all_that_it_needs(whole: Cluster) -> None:
    for name, wanted in CONTROL.items():
        service = whole.service(name)
        assert service.argv[0] == f"{BIN}/{name}"
        assert flags(service.argv) == wanted, name
        assert service.env == {"PATH": PATH}
        assert service.notify == (name in ("etcd", "kube-apiserver"))
    for name, wanted in EVERY.items():
        service = whole.service(name, "node2")
        assert service.argv[0] == f"{BIN}/{name}"
        assert flags(service.argv) == wanted, name
        node = {"NODE_NAME": "node2"} if name == "flanneld" else {}
        assert service.env == {"PATH": PATH, **node}
        assert service.notify == (name != "kube-proxy")
    assert not set(CONTROL) & set(whole.names("node2"))


def test_a_forwarder_brings_this_machine_to_the_api(whole: Cluster) -> None:
    program, listen, to = whole.service("api-socket").argv
    assert program == "socat"
    # socat(1): a process for each connection, readable by root only, and created again.
    place, *options = listen.split(",")
    assert place == "UNIX-LISTEN:/run/kubernetes/api.sock"
    assert set(options) == {"fork", "mode=600", "unlink-early"}
    assert to == "TCP:127.0.0.1:6443"
    assert ("mkdir", "-p", "-m", "700", "/run/kubernetes") in whole.ran("mkdir")


def test_every_node_has_its_files_for_root_alone(whole: Cluster) -> None:
    node = whole.node("node2")
    files = {path: data.decode() for path, data in node.files.items()}
    assert json.loads(files[f"{CONF}/kubelet.json"]) == KUBELET
    assert json.loads(files[f"{CONF}/kube-proxy.json"]) == PROXY
    assert files[f"{CONF}/resolv.conf"] == ""
    assert json.loads(files[f"{CONF}/flannel.json"]) == {
        "Network": "100.96.0.0/16",
        "EnableIPv4": True,
        "Backend": {"Type": "vxlan"},
    }
    assert json.loads(files["/etc/cni/net.d/10-pods.conflist"]) == PODS
    secret = [path for path in files if path.startswith(f"{CONF}/") and path[-5:] != ".toml"]
    assert {node.modes[path] for path in secret} == {0o600}
    cri = tomllib.loads(files[f"{CONF}/containerd.toml"])["plugins"]["io.containerd.grpc.v1.cri"]
    assert cri["cni"] == {"bin_dir": f"{BIN}/cni-plugins", "conf_dir": "/etc/cni/net.d"}
    assert cri["sandbox_image"] == "docker.io/testbed/pause:1"


def test_certificates_are_where_daemons_look_for_them(whole: Cluster) -> None:
    told = [word for of, service in whole.started for word in service.argv if of == "node1"]
    told += whole.node().files[f"{CONF}/kubelet.json"].decode().split('"')
    wanted = {word.partition("=")[2] or word for word in told if f"{CONF}/" in word}
    assert len(wanted) > 20
    assert wanted <= set(whole.node().files)
    every = {path for path in whole.node("node2").files if path.startswith(f"{CONF}/")}
    assert {path for path in every if path.endswith((".crt", ".key", ".pub"))} == {
        f"{PKI}/ca.crt", f"{PKI}/kubelet.crt", f"{PKI}/kubelet.key",
    }  # fmt: skip
    assert {path for path in every if path.endswith(".conf")} == {
        f"{CONF}/kubelet.conf", f"{CONF}/proxy.conf", f"{CONF}/flannel.conf",
        f"{CONF}/resolv.conf",
    }  # fmt: skip


def names(pem: bytes) -> tuple[str, list[str], list[str]]:
    """The common name of a certificate, its organizations, and the hosts it is for."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    found = x509.load_pem_x509_certificate(pem)
    (name,) = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    groups = found.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    try:
        hosts = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return str(name.value), [str(one.value) for one in groups], []
    return (
        str(name.value),
        [str(one.value) for one in groups],
        [str(one.value) for one in hosts],
    )


NODES_GROUP, ADMINS = ["system:nodes"], ["system:masters"]
#: Users that RBAC's default roles are bound to (kubernetes.io, "Using RBAC Authorization") and
#: those of the node authorizer.
CLIENTS = {
    "kubelet": ("system:node:node1", NODES_GROUP),
    "proxy": ("system:kube-proxy", []),
    "flannel": ("flannel", []),
    "admin": ("kubernetes-admin", ADMINS),
    "controller-manager": ("system:kube-controller-manager", []),
    "scheduler": ("system:kube-scheduler", []),
}
API_HOSTS = [
    "kubernetes", "kubernetes.default", "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local", "localhost", "node1", "10.168.0.2", "10.97.0.1",
    "127.0.0.1",
]  # fmt: skip
SERVERS = {
    "kubelet": ("system:node:node1", NODES_GROUP, ["node1", "10.168.0.2"]),
    "apiserver": ("kube-apiserver", [], API_HOSTS),
    "apiserver-kubelet": ("kube-apiserver-kubelet", ADMINS, []),
    "etcd": ("etcd", [], ["localhost", "127.0.0.1"]),
}


def test_every_certificate_says_who_it_is_for(whole: Cluster) -> None:
    import base64

    files = whole.node().files
    for name, (user, groups) in CLIENTS.items():
        said = json.loads(files[f"{CONF}/{name}.conf"])
        assert said["clusters"][0]["cluster"]["server"] == "https://10.168.0.2:6443"
        authority = base64.b64decode(said["clusters"][0]["cluster"]["certificate-authority-data"])
        assert authority == files[f"{PKI}/ca.crt"]
        pem = base64.b64decode(said["users"][0]["user"]["client-certificate-data"])
        assert names(pem) == (user, groups, []), name
    for name, wanted in SERVERS.items():
        assert names(files[f"{PKI}/{name}.crt"]) == wanted, name
    assert names(files[f"{PKI}/ca.crt"])[0] == "testbed"
    assert names(whole.node("node2").files[f"{PKI}/kubelet.crt"])[2] == ["node2", "10.168.0.3"]


def test_the_authority_signs_all_nodes_and_its_key_stays(whole: Cluster) -> None:
    first, second = whole.node().files, whole.node("node2").files
    assert first[f"{PKI}/ca.crt"] == second[f"{PKI}/ca.crt"]
    assert f"{PKI}/ca.key" in first
    assert f"{PKI}/ca.key" not in second


def test_a_second_up_changes_nothing(cluster: Cluster) -> None:
    cluster.up(load(NAME))
    cluster.started.clear()
    outcome = cluster.up(load(NAME))
    assert outcome.changed == []


def test_a_lost_authority_makes_all_certificates_new_and_restarts_daemons(
    cluster: Cluster,
) -> None:
    cluster.up(load(NAME))
    before = cluster.node("node2").files[f"{PKI}/ca.crt"]
    del cluster.node().files[f"{PKI}/ca.key"]
    outcome = cluster.up(load(NAME))
    assert cluster.node("node2").files[f"{PKI}/ca.crt"] != before
    changed = {done.step.name for done in outcome.changed}
    assert {"certificates", "kubelet node2", "kube-proxy node2", "kube-apiserver node1"} <= changed
    assert "containerd node2" not in changed  # it has none


def test_a_damaged_authority_is_replaced(cluster: Cluster) -> None:
    cluster.up(load(NAME))
    cluster.node().files[f"{PKI}/ca.key"] = b"nothing"
    cluster.up(load(NAME))
    assert Authority.load(
        Pair(cluster.node().files[f"{PKI}/ca.crt"], cluster.node().files[f"{PKI}/ca.key"])
    )


def test_links_that_were_put_back_restart_what_made_devices_on_them(cluster: Cluster) -> None:
    cluster.up(load(NAME))
    cluster.node("node2").put(b"x", "/run/testbed/done/rewired")
    changed = {done.step.name for done in cluster.up(load(NAME)).changed}
    assert "flanneld node2" in changed
    assert "flanneld node1" not in changed
    assert "certificates" not in changed


def test_objects_are_made_before_who_needs_them(whole: Cluster) -> None:
    outcome = whole.outcome
    assert outcome is not None
    order = [done.step.name for done in outcome.steps]
    for first, then in (
        ("certificates", "etcd node1"),
        ("etcd node1", "kube-apiserver node1"),
        ("kube-apiserver node1", "Kubernetes API"),
        ("Kubernetes API", "cluster objects"),
        ("Kubernetes API", "kube-controller-manager node1"),
        ("Kubernetes API", "kube-scheduler node1"),
        ("cluster objects", "kubelet node2"),
        ("images node2", "kubelet node2"),
        ("containerd node2", "images node2"),
        ("cluster objects", "kube-proxy node2"),
        ("cluster objects", "flanneld node2"),
        ("kubelet node2", "ready node2"),
        ("kube-proxy node2", "ready node2"),
        ("flanneld node2", "ready node2"),
        ("cluster objects", "add-on dns"),
        ("add-on dns", "dns ready"),
        ("ready node2", "dns ready"),
    ):
        assert order.index(first) < order.index(then), (first, then)
        needs = {done.step.name: done.step.needs for done in outcome.steps}
        assert first in needs[then], (first, then)
    words = {done.step.name: done.words for done in outcome.steps}
    assert words["Kubernetes API"].startswith("https://10.168.0.2:6443")
    assert words["certificates"].endswith("2 nodes")
    assert words["ready node2"] == "Ready"


def test_nodes_are_told_to_the_api_with_their_ranges(whole: Cluster) -> None:
    outcome = whole.outcome
    assert outcome is not None
    node = whole.api.made["/api/v1/nodes/node2"]
    assert (node["apiVersion"], node["kind"]) == ("v1", "Node")
    assert node["metadata"]["labels"] == {"kubernetes.io/hostname": "node2"}
    assert node["metadata"]["annotations"] == {"node.alpha.kubernetes.io/ttl": "0"}
    assert node["spec"] == {"podCIDR": "100.96.2.0/24", "podCIDRs": ["100.96.2.0/24"]}
    # Two nodes, and flanneld's rights: a role and its binding.
    assert len(whole.api.made) == 4
    (words,) = (done.words for done in outcome.steps if done.step.name == "cluster objects")
    assert words == "4 objects"


def test_flannels_rights(whole: Cluster) -> None:
    folder = "/apis/rbac.authorization.k8s.io/v1"
    mine = whole.api.made[f"{folder}/clusterroles/flannel"]
    assert (mine["apiVersion"], mine["kind"]) == ("rbac.authorization.k8s.io/v1", "ClusterRole")
    # flannel, Documentation/kube-flannel.yml
    assert {(*rule["resources"], *rule["verbs"]) for rule in mine["rules"]} == {
        ("pods", "get"), ("nodes", "get", "list", "watch"), ("nodes/status", "patch"),
    }  # fmt: skip
    assert all(rule["apiGroups"] == [""] for rule in mine["rules"])
    bound = whole.api.made[f"{folder}/clusterrolebindings/flannel"]
    assert bound["kind"] == "ClusterRoleBinding"
    assert bound["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "flannel",
    }  # fmt: skip
    assert bound["subjects"] == [{"kind": "User", "name": "flannel"}]


# -- containerd and its images -------------------------------------------------------------------


@pytest.mark.parametrize(("shares", "kind"), [(True, "shares"), (False, "own")])
def test_a_node_is_prepared_once(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, shares: bool, kind: str
) -> None:
    be_a_machine(monkeypatch, not shares)
    cluster.up(load(NAME))
    (prepared,) = cluster.ran("sh", "-c", runtime.PREPARE)
    _, folder, told, *words = prepared[3:]
    assert (folder, told) == ("/run/kubernetes", kind)
    assert dict(zip(words[::2], words[1::2], strict=True)) == runtime.SYSCTLS
    cluster.bench.forget()
    cluster.up(load(NAME))
    assert cluster.ran("sh", "-c", runtime.PREPARE) == []


def test_what_leaves_the_cluster_is_translated_on_every_node(whole: Cluster) -> None:
    for node in ("node1", "node2"):
        (call,) = (
            call
            for call in whole.bench.provider.calls
            if (call.node, call.words) == (node, ("nft", "-f", "-"))
        )
        assert call.input == config.masquerade(load(NAME)).encode()


CTR = (
    f"{BIN}/ctr", "--address=/run/containerd/containerd.sock", "--namespace=k8s.io",
)  # fmt: skip


def test_images_are_imported_once_and_kept_for_the_next_node(cluster: Cluster) -> None:
    outcome = cluster.up(load(NAME))
    imported = [Path(words[-1]).name for words in cluster.ran(*CTR, "images", "import")]
    assert imported == ["testbed-pause:1", "testbed-coredns:1", "nginx"]
    assert cluster.ran(*CTR, "containers", "list", "--quiet")
    assert "image-seed" in cluster.bench.store.asked
    (words,) = (done.words for done in outcome.steps if done.step.name == "images node1")
    assert words == "testbed/pause:1, testbed/coredns:1, nginx loaded"
    cluster.bench.forget()
    cluster.up(load(NAME))
    assert cluster.ran(*CTR) == []


def test_a_containerd_with_containers_is_not_kept(cluster: Cluster) -> None:
    cluster.bench.provider.script([*CTR, "containers", "list"], Answer(out=b"abc\n"))
    cluster.up(load(NAME))
    assert "image-seed" not in cluster.bench.store.asked


def test_a_seed_that_cannot_be_kept_is_told(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ArtifactError("no attributes here")

    monkeypatch.setattr(FakeStore, "keep", refuse)
    outcome = cluster.up(load(NAME))
    (words,) = (done.words for done in outcome.steps if done.step.name == "images node1")
    assert words.endswith("loaded; not kept: no attributes here")


def test_a_node_of_another_kernel_keeps_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_a_machine(monkeypatch)
    cluster.up(load(NAME))
    assert "image-seed" not in cluster.bench.store.asked


# -- add-ons -------------------------------------------------------------------------------------


def applied(cluster: Cluster) -> list[tuple[tuple[str, ...], str]]:
    calls = cluster.bench.provider.calls
    return [(c.words, (c.input or b"").decode()) for c in calls if "apply" in c.words]


def test_an_add_on_is_applied_by_the_server_once(cluster: Cluster) -> None:
    topology = load("k8s-ingress")
    cluster.up(topology)
    found = applied(cluster)
    for words, text in found:
        assert words[:2] == (f"{BIN}/kubectl", "--kubeconfig=/etc/kubernetes/admin.conf")
        assert set(words[2:5]) == {"apply", "--server-side", "--force-conflicts"}
        assert words[-1] == "--filename=-"
        assert list(yaml.safe_load_all(text))
    files = {words[5:-1] for words, _ in found}
    assert files == {(), (f"--filename={BIN}/contour/crds.yaml",)}
    assert {text for _, text in found} == {
        addons.manifest(name, topology) for name in ("dns", "ingress")
    }
    secrets = "/api/v1/namespaces/projectcontour/secrets"
    assert cluster.api.made["/api/v1/namespaces/projectcontour"]["kind"] == "Namespace"
    assert {f"{secrets}/contourcert", f"{secrets}/envoycert"} <= set(cluster.api.made)
    cluster.bench.forget()
    assert cluster.up(topology).changed == []
    assert applied(cluster) == []


def test_an_add_on_is_waited_for_until_all_its_pods_are_there(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SECONDS", 0.0)
    deployment = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
    cluster.api.status[deployment] = {"spec": {"replicas": 2}, "status": {"availableReplicas": 1}}
    pod = {
        "metadata": {"name": "coredns-1"},
        "status": {
            "conditions": [
                {"type": "Ready", "status": "False", "message": "no endpoint"},
                {"type": "PodScheduled", "status": "True", "message": "fine"},
                {"type": "Initialized", "status": "False"},
            ]
        },
    }
    monkeypatch.setattr(cluster.api, "ask", lambda *_: {"items": [pod]}, raising=False)
    with pytest.raises(StepsFailed) as caught:
        cluster.up(load(NAME))
    ((step, error),) = caught.value.failures
    assert step == "dns ready"
    assert "coredns-1: no endpoint; coredns-1: Initialized" in str(error)
    assert "fine" not in str(error)


def test_a_node_that_is_not_ready_says_why(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SECONDS", 0.0)
    condition = {"type": "Ready", "status": "False", "message": "cni plugin not initialized"}
    other = {"type": "MemoryPressure", "status": "True", "message": "much"}
    cluster.api.status["/api/v1/nodes/node2"] = {"status": {"conditions": [other, condition]}}
    with pytest.raises(StepsFailed) as caught:
        cluster.up(load(NAME))
    ((step, error),) = caught.value.failures
    assert step == "ready node2"
    assert "cni plugin not initialized" in str(error)


# -- before it comes up --------------------------------------------------------------------------


def test_what_a_node_takes() -> None:
    kubernetes, topology = ROLES["kubernetes"], load(NAME)
    control, other = (kubernetes.memory(topology, node) for node in ("node1", "node2"))
    assert control - other == role.CONTROL_MEMORY
    assert other == role.MEMORY
    ingress = kubernetes.memory(load("k8s-ingress"), "node2")
    assert ingress == role.MEMORY + addons.ADD_ONS["ingress"].memory
    calico = load(NAME, Overrides(cni="calico"))
    assert kubernetes.memory(calico, "node2") > role.MEMORY
    control_takes, takes = (kubernetes.takes(topology, node) for node in ("node1", "node2"))
    assert control_takes.tasks - takes.tasks == role.CONTROL_TASKS
    assert (takes.files, takes.tasks, takes.inotify) == (512, role.TASKS, role.INOTIFY)


def test_daemons_that_a_node_is_expected_to_run(whole: Cluster) -> None:
    topology = load(NAME)
    for node in ("node1", "node2"):
        wanted = ROLES["kubernetes"].services_on(topology, node)
        assert sorted(wanted) == sorted(whole.names(node))


def test_programs_and_images_that_are_missing_are_told_before_the_lab(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ROLES["kubernetes"].fetch(store, load("k8s-ingress"))
    assert {"kube-apiserver", "kubelet", "kubectl", "flanneld", "host-local"} <= set(store.asked)
    store.absent.add("testbed/coredns:1")
    with pytest.raises(ArtifactError, match="testbed/coredns:1"):
        ROLES["kubernetes"].fetch(store, load(NAME))


def test_a_lab_without_a_cluster_has_no_kubectl(bench: Bench) -> None:
    topology = load("docker-single")
    Lab(topology.name, bench.settings).up(topology)
    with pytest.raises(UsageError, match="has no Kubernetes"):
        client.kubectl(Lab(topology.name, bench.settings).context(), "get", "pods")


# -- ways to the API -----------------------------------------------------------------------------


def test_the_control_planes_own_node_has_no_way_to_test(cluster: Cluster) -> None:
    topology = load(NAME)
    cluster.up(topology)
    context = Lab(NAME, cluster.bench.settings).context()
    assert daemons.way(context, "node1")() == ""
    cluster.bench.provider.script(["sh", "-c"], Answer(2), "node2")
    said = daemons.way(context, "node2")()
    assert "10.168.0.2:6443" in said
    assert "no route" in said


def test_a_users_certificates_that_cannot_be_read_are_told(cluster: Cluster) -> None:
    cluster.up(load(NAME))
    node = cluster.node()
    authority, pair = certificates.client(node)
    assert authority == node.files[f"{PKI}/ca.crt"]
    assert names(pair.certificate)[0] == "kubernetes-admin"
    node.files[certificates.ADMIN] = b"[]"
    with pytest.raises(LabError) as caught:
        certificates.client(node)
    assert "up" in (caught.value.hint or "")


# -- other network plugins -----------------------------------------------------------------------

CGROUPS = "/sys/fs/cgroup/unified"
#: Cilium's command reference of its agent and operator.
AGENT = {
    "k8s-kubeconfig-path": f"{CONF}/cilium.conf",
    "ipam": "kubernetes",
    "enable-ipv6": "false",
    "routing-mode": "tunnel",
    "tunnel-protocol": "vxlan",
    "kube-proxy-replacement": "false",
    "enable-session-affinity": "true",
    "enable-l7-proxy": "false",
    "enable-hubble": "false",
    "enable-ipv4-masquerade": "false",
    "install-iptables-rules": "false",
    "enable-health-checking": "false",
    "enable-endpoint-health-checking": "false",
    "enable-bpf-clock-probe": "false",
    "devices": "eth0",
    "cgroup-root": CGROUPS,
    "bpf-root": "/sys/fs/bpf",
    "state-dir": "/run/cilium",
    "lib-dir": "/var/lib/cilium",
    "agent-health-port": "9879",
}
OPERATOR = {
    "k8s-kubeconfig-path": f"{CONF}/cilium-operator.conf",
    "operator-api-serve-addr": "127.0.0.1:9234",
    "enable-ipv6": "false",
    "ipam": "kubernetes",
}


def test_ciliums_agent_is_told_of_its_node(cluster: Cluster) -> None:
    cluster.bench.provider.script(["sh", "-c", cilium.PREPARE], Answer(out=f"{CGROUPS}\n".encode()))
    outcome = cluster.up(load(NAME, Overrides(cni="cilium")))
    own = {"CILIUM_K8S_NAMESPACE": "kube-system", "GOPS_CONFIG_DIR": "/run/cilium/gops"}
    operator = cluster.service("cilium-operator")
    assert operator.argv[0] == f"{BIN}/cilium-operator"
    assert flags(operator.argv) == OPERATOR
    assert operator.env == {"PATH": PATH, "K8S_NODE_NAME": "node1", **own}
    assert "cilium-operator" not in cluster.names("node2")
    for node in ("node1", "node2"):
        agent = cluster.service("cilium-agent", node)
        assert agent.argv[0] == f"{BIN}/cilium-agent"
        assert flags(agent.argv) == AGENT
        assert agent.env == {"PATH": f"/run/testbed/cilium:{PATH}", "K8S_NODE_NAME": node, **own}
        (prepared,) = cluster.ran("sh", "-c", cilium.PREPARE, node=node)
        assert prepared[4:] == (
            "/run/cilium", "/var/lib/cilium", "/run/testbed/cilium", "/sys/fs/bpf",
            f"{BIN}/cilium/bpf",
        )  # fmt: skip
        tools = cluster.node(node)
        assert tools.modes["/run/testbed/cilium/clang"] == 0o755
        assert f'exec {BIN}/clang "$@"' in tools.files["/run/testbed/cilium/clang"].decode()
        link = ("ln", "-sf", f"{BIN}/bpftool", "/run/testbed/cilium/bpftool")
        assert cluster.ran("ln", node=node) == [link]
    network = json.loads(cluster.node().files["/etc/cni/net.d/10-pods.conflist"])
    assert network == {
        "cniVersion": "0.3.1",
        "name": "pods",
        "plugins": [
            {"type": "cilium-cni", "log-file": "/run/cilium/cni.log"},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    order = [done.step.name for done in outcome.steps]
    assert order.index("cilium-operator node1") < order.index("cilium-agent node2")
    (gathered,) = cluster.ran("sh", "-c", runtime.GATHER)
    assert gathered[3:] == ("/var/lib/cni/bin", f"{BIN}/cni-plugins", f"{BIN}/cilium-cni")
    changed = cluster.up(load(NAME, Overrides(cni="cilium"))).changed
    assert changed == []


def test_cilium_without_cgroups_of_version_2_is_told(cluster: Cluster) -> None:
    with pytest.raises(StepsFailed) as caught:
        cluster.up(load(NAME, Overrides(cni="cilium")))
    # Whichever node is first: the other's step is then given up.
    name, error = caught.value.failures[0]
    assert name.startswith("cilium-agent ")
    assert isinstance(error, MachineError)
    assert "cgroup2" in (error.hint or "")


def test_ciliums_agent_is_waited_for_until_it_is_well(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.bench.provider.script(["sh", "-c", cilium.PREPARE], Answer(out=f"{CGROUPS}\n".encode()))
    monkeypatch.setattr(client, "POLL", 0.0)
    answers = [Answer(22), Answer(22)]
    cluster.bench.provider.script(["curl"], lambda _: answers.pop() if answers else Answer())
    cluster.up(load(NAME, Overrides(cni="cilium")))
    assert answers == []
    asked = cluster.ran("curl") + cluster.ran("curl", node="node2")
    assert {words[-1] for words in asked} == {"http://127.0.0.1:9879/healthz"}
    assert all("f" in words[1] for words in asked)  # --fail: an error of HTTP is one of curl's


def test_bird_announces_the_nodes_range(cluster: Cluster) -> None:
    topology = load(NAME, Overrides(cni="bgp"))
    cluster.up(topology)
    service = cluster.service("bird", "node2")
    assert service.argv == (
        f"{BIN}/bird", "-f", "-c", f"{CONF}/bird.conf", "-s", "/run/bird.ctl",
        "-P", "/run/bird.pid",
    )  # fmt: skip
    assert cluster.node("node2").files[f"{CONF}/bird.conf"].decode() == bgp.settings(
        topology, "node2"
    )
    pods = json.loads(cluster.node("node2").files["/etc/cni/net.d/10-pods.conflist"])
    assert pods["plugins"][0]["mtu"] == 1500


DAEMON_SET = {
    "apiVersion": "apps/v1",
    "kind": "DaemonSet",
    "metadata": {"name": "kube-router", "namespace": "kube-system"},
    "spec": {
        "template": {
            "spec": {
                "containers": [{"name": "a", "image": "cloudnativelabs/kube-router"}],
                "volumes": [{"name": "m", "hostPath": {"path": "/lib/modules"}}],
            }
        }
    },
}
GROUP = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-router"


@pytest.fixture
def routed(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """A cluster by Kube-router, of whose Pods the API tells."""
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text(yaml.safe_dump(DAEMON_SET))
    monkeypatch.setattr(Store, "file", lambda *_: manifest)
    image = frozenset({"docker.io/cloudnativelabs/kube-router:latest"})
    monkeypatch.setattr(archive, "names", lambda path: image)
    monkeypatch.setattr(client, "POLL", 0.0)
    return cluster


def pod(node: str, **more: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"kube-router-{node}",
            "ownerReferences": [{"kind": "DaemonSet", "name": "kube-router"}],
        },
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    } | more


def tell(cluster: Cluster, *looks: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Let the API tell of these Pods, by node, look by look; the last look stays."""
    left, asked = list(looks), list[str]()

    def ask(method: str, path: str) -> dict[str, Any]:
        asked.append(path)
        found = left.pop(0) if len(left) > 1 else left[0]
        return {"items": found.get(path.rpartition("%3D")[2], [])}

    cluster.api.ask = ask  # type: ignore[method-assign]
    cluster.api.status[GROUP] = {
        "metadata": {"generation": 2},
        "spec": {},
        "status": {
            "observedGeneration": 2, "desiredNumberScheduled": 2, "updatedNumberScheduled": 2,
        },
    }  # fmt: skip
    return asked


def test_a_plugins_manifest_is_applied_and_its_pods_waited_for(routed: Cluster) -> None:
    both = {name: [pod(name)] for name in ("node1", "node2")}
    others: list[dict[str, Any]] = [
        pod("node1", status={"conditions": []}),
        pod("node1", metadata={"name": "x", "ownerReferences": [{"kind": "Job", "name": "x"}]}),
        pod("node1", metadata={"name": "y"}),
        pod("node1", metadata=pod("node1")["metadata"] | {"deletionTimestamp": "now"}),
    ]
    asked = tell(routed, {}, *({"node1": [one]} for one in others), both)
    topology = load(NAME, Overrides(cni="kube-router"))
    outcome = routed.up(topology)
    assert len(asked) > len(others)
    folder = "/api/v1/namespaces/kube-system/pods?fieldSelector=spec.nodeName%3D"
    assert set(asked) == {f"{folder}node1", f"{folder}node2"}
    ((_, text),) = [one for one in applied(routed) if "DaemonSet" in one[1]]
    one = json.loads(text)
    assert one["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
    assert one["spec"]["template"]["spec"]["volumes"][0]["hostPath"] == {"path": "/lib/modules"}
    assert ("test", "-d", "/lib/modules") in routed.ran("test")
    for node in ("node1", "node2"):
        (installed,) = routed.ran("install", node=node)
        assert installed[1:] == (
            "-D", "-m", "600", f"{CONF}/kube-router.conf", "/var/lib/kube-router/kubeconfig",
        )  # fmt: skip
        (gathered,) = routed.ran("sh", "-c", runtime.GATHER, node=node)
        assert gathered[3] == "/opt/cni/bin"
        assert "/etc/cni/net.d/10-pods.conflist" not in routed.node(node).files
    order = [done.step.name for done in outcome.steps]
    for first, then in (
        ("images node2", "kube-router manifest"), ("kube-router files", "kube-router manifest"),
        ("kube-router manifest", "kube-router node2"), ("kubelet node2", "kube-router node2"),
        ("kube-router node2", "ready node2"),
    ):  # fmt: skip
        assert order.index(first) < order.index(then), (first, then)
    routed.bench.forget()
    routed.up(topology)
    assert not [one for one in applied(routed) if "DaemonSet" in one[1]]


def test_a_plugins_pod_without_an_image_ends_the_wait(routed: Cluster) -> None:
    waiting = {"reason": "ErrImageNeverPull", "message": "no such image"}
    status = {"containerStatuses": [{"name": "a", "state": {"waiting": waiting}}]}
    tell(routed, {"node1": [pod("node1", status=status)]})
    with pytest.raises(StepsFailed) as caught:
        routed.up(load(NAME, Overrides(cni="kube-router")))
    # Whichever node is first: the other's step is then given up.
    name, error = caught.value.failures[0]
    assert name.startswith("kube-router ")
    assert "no such image" in str(error)


def test_a_plugins_pod_that_is_never_ready_says_why(
    routed: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "SECONDS", 0.0)
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 5s"}
    status = {"containerStatuses": [{"name": "a", "state": {"waiting": waiting}}]}
    tell(routed, {name: [pod(name, status=status)] for name in ("node1", "node2")})
    with pytest.raises(StepsFailed) as caught:
        routed.up(load(NAME, Overrides(cni="kube-router")))
    assert "kube-router-node" in str(caught.value)
    assert "back-off 5s" in str(caught.value)
