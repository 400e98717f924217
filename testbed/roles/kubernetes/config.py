"""Command lines and files of a cluster's programs, as pure functions.

Flags and fields are documented in kubernetes.io's reference of each program.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any

from testbed.nodes.engine import COLLECT_SELDOM
from testbed.roles.etcd import TIMING
from testbed.roles.kubernetes.section import RANGE6, KubernetesSection
from testbed.topology.shapes import merged

if TYPE_CHECKING:
    from testbed.topology.model import Topology

FOLDER = "/etc/kubernetes"
PKI = f"{FOLDER}/pki"
RUN = "/run/kubernetes"  # accessible only to the node's root
API_SOCKET = f"{RUN}/api.sock"
CNI = "/etc/cni/net.d"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
#: The path of crictl's settings (cri-tools, docs/crictl.md), and their contents.
CRICTL_FILE = "/etc/crictl.yaml"
CRICTL = f"""\
runtime-endpoint: unix://{CONTAINERD_SOCKET}
image-endpoint: unix://{CONTAINERD_SOCKET}
"""
CONTAINERD_FILE = f"{FOLDER}/containerd.toml"
KUBELET_FILE = f"{FOLDER}/kubelet.json"
PROXY_FILE = f"{FOLDER}/kube-proxy.json"
RESOLV_FILE = f"{FOLDER}/resolv.conf"
API_PORT = 6443
ETCD = "https://127.0.0.1:2379"
DOMAIN = "cluster.local"
ISSUER = f"https://kubernetes.default.svc.{DOMAIN}"
PAUSE = "testbed/pause:1"
ALL_OF_IT = "0%"  # a node shares this machine's disk and memory: no eviction because of them
BRIDGE = "cni0"


def server(topology: Topology) -> str:
    """Return the API's URL for nodes."""
    return f"https://{topology.address(KubernetesSection.of(topology).control_plane)}:{API_PORT}"


def api_hosts(topology: Topology) -> list[str | IPv4Address]:
    """Return all names and addresses under which clients reach the API."""
    cluster = KubernetesSection.of(topology)
    return [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{DOMAIN}",
        "localhost",
        cluster.control_plane,
        topology.address(cluster.control_plane),
        cluster.api,
        IPv4Address("127.0.0.1"),
    ]


def etcd() -> list[str]:
    """Return the command line of the API server's etcd.

    It listens on loopback, with mutual TLS.
    """
    return [
        "--name=default",
        "--data-dir=/var/lib/etcd",
        f"--listen-client-urls={ETCD}",
        f"--advertise-client-urls={ETCD}",
        "--listen-peer-urls=http://127.0.0.1:2380",
        f"--cert-file={PKI}/etcd.crt",
        f"--key-file={PKI}/etcd.key",
        f"--trusted-ca-file={PKI}/ca.crt",
        "--client-cert-auth",
        *TIMING,
        "--logger=zap",
        "--log-level=warn",
        "--unsafe-no-fsync",  # the lab's data end with the lab
    ]


def apiserver(topology: Topology) -> list[str]:
    cluster = KubernetesSection.of(topology)
    return [
        f"--etcd-servers={ETCD}",
        f"--etcd-cafile={PKI}/ca.crt",
        f"--etcd-certfile={PKI}/apiserver.crt",
        f"--etcd-keyfile={PKI}/apiserver.key",
        f"--service-cluster-ip-range={','.join(cluster.service_networks())}",
        f"--advertise-address={topology.address(cluster.control_plane)}",
        f"--secure-port={API_PORT}",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--client-ca-file={PKI}/ca.crt",
        f"--kubelet-client-certificate={PKI}/apiserver-kubelet.crt",
        f"--kubelet-client-key={PKI}/apiserver-kubelet.key",
        f"--kubelet-certificate-authority={PKI}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        f"--service-account-key-file={PKI}/sa.pub",
        f"--service-account-signing-key-file={PKI}/sa.key",
        f"--service-account-issuer={ISSUER}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--anonymous-auth=false",
        "--allow-privileged=true",
        "--profiling=false",
    ]


def controller_manager(topology: Topology) -> list[str]:
    cluster = KubernetesSection.of(topology)
    length = next(iter(cluster.ranges.values())).prefixlen
    sizes = [f"--node-cidr-mask-size={length}"]
    if cluster.ipv6:
        sizes = [f"--node-cidr-mask-size-ipv4={length}", f"--node-cidr-mask-size-ipv6={RANGE6}"]
    return [
        f"--kubeconfig={FOLDER}/controller-manager.conf",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={','.join(cluster.pod_networks())}",
        *sizes,
        f"--service-cluster-ip-range={','.join(cluster.service_networks())}",
        f"--root-ca-file={PKI}/ca.crt",
        f"--cluster-signing-cert-file={PKI}/ca.crt",
        f"--cluster-signing-key-file={PKI}/ca.key",
        f"--service-account-private-key-file={PKI}/sa.key",
        # Without it no controller may assign a range to a node.
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        # Each controller first requests its own account and token. At the default of 20 requests
        # per second this alone takes four seconds.
        "--kube-api-qps=1000",
        "--kube-api-burst=1000",
        "--bind-address=127.0.0.1",
        "--profiling=false",
    ]


def scheduler() -> list[str]:
    return [
        f"--kubeconfig={FOLDER}/scheduler.conf",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--profiling=false",
    ]


def containerd(plugins: str) -> str:
    """Return containerd's configuration.

    ``plugins`` is the node's folder of CNI plugins.
    """
    return f"""\
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing",
  "io.containerd.tracing.processor.v1.otlp",
]
[grpc]
address = "{CONTAINERD_SOCKET}"
{COLLECT_SELDOM}[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{plugins}"
conf_dir = "{CNI}"
"""


def kubelet(topology: Topology) -> dict[str, Any]:
    cluster = KubernetesSection.of(topology)
    signals = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available",
               "imagefs.inodesFree", "pid.available")  # fmt: skip
    own = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": "/",  # the node sees only its own cgroups
        "cgroupsPerQOS": True,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        "protectKernelDefaults": True,  # the kubelet checks these sysctls and changes none
        "localStorageCapacityIsolation": False,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
        "clusterDNS": [str(cluster.dns)],
        "clusterDomain": DOMAIN,
        "resolvConf": RESOLV_FILE,
        "evictionHard": dict.fromkeys(signals, ALL_OF_IT),
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "2s",
        "fileCheckFrequency": "60s",
    }
    return merged(own, cluster.configuration.kubelet)


def kubelet_words(topology: Topology, node: str) -> list[str]:
    addresses = [str(topology.address(node))]
    if KubernetesSection.of(topology).ipv6:
        addresses.append(str(topology.address6(node)))
    return [
        f"--config={KUBELET_FILE}",
        f"--kubeconfig={FOLDER}/kubelet.conf",
        f"--hostname-override={node}",
        f"--node-ip={','.join(addresses)}",
        "--root-dir=/var/lib/kubelet",
        "--cert-dir=/var/lib/kubelet/pki",
    ]


def proxy(topology: Topology, node: str) -> dict[str, Any]:
    cluster = KubernetesSection.of(topology)
    own = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": cluster.proxy,
        "clientConnection": {"kubeconfig": f"{FOLDER}/proxy.conf"},
        "hostnameOverride": node,
        "clusterCIDR": ",".join(cluster.pod_networks()),
        "bindAddress": str(topology.address(node)),
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # These belong to this machine, not to the node: leave them unchanged.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }
    return merged(own, cluster.configuration.proxy)


def bridged(topology: Topology, node: str) -> dict[str, Any]:
    """Return a network of the reference plugins.

    Each Pod is attached to the node's bridge, with an address of the node's range, which is
    known in advance (CNI specification 0.4.0, network configuration lists).
    """
    cluster = KubernetesSection.of(topology)
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "mtu": cluster.mtu(topology, node),
                "isGateway": True,
                "isDefaultGateway": True,
                "ipMasq": False,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/var/lib/cni/networks",
                    "ranges": [[{"subnet": one}] for one in cluster.ranges_of(node)],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def masquerade(topology: Topology) -> str:
    """Return rules that translate the source of outgoing packets only.

    Those are packets that leave Pods and nodes. The plugins' own rules, such as flanneld's
    -ip-masq, would also translate packets from Pods to nodes, which Kubernetes forbids
    (kubernetes.io, "The Kubernetes network model").
    """
    cluster = KubernetesSection.of(topology)
    members = topology.with_role("kubernetes")
    nodes = [str(address) for member in members for address in member.addresses]
    text = _masquerade("ip", str(cluster.pods), nodes)
    if cluster.ipv6:
        nodes = [str(address) for member in members for address in member.addresses6]
        text += _masquerade("ip6", str(cluster.ipv6.pods), nodes)
    return text


def _masquerade(family: str, pods: str, nodes: Sequence[str]) -> str:
    return f"""\
table {family} testbed
delete table {family} testbed
table {family} testbed {{
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {family} saddr {pods} {family} daddr != {{ {", ".join([pods, *nodes])} }} masquerade
  }}
}}
"""


def node_object(topology: Topology, node: str) -> dict[str, Any]:
    """Return the Node object to create before its kubelet starts.

    It has the topology's range.
    """
    ranges = KubernetesSection.of(topology).ranges_of(node)
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node,
            "labels": {"kubernetes.io/hostname": node},
            # The controller manager adds this annotation to every node: flanneld fails on a node
            # without any annotation.
            "annotations": {"node.alpha.kubernetes.io/ttl": "0"},
        },
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
    }
