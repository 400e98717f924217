"""Configuration of a cluster's programs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from testbed.registry import ROLES
from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.plugins import flannel
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.topology import Overrides, Topology, load, load_data, vary


def test_fields_of_the_file_count_instead_of_the_labs() -> None:
    """kube-proxy ignores its flags beside a file (cmd/kube-proxy/app/options.go)."""
    data = load("k8s-two-node").to_dict()
    before, also = config.kubelet(load("k8s-two-node")), config.proxy(load("k8s-two-node"), "node1")
    data["kubernetes"]["configuration"] = {
        "kubelet": {"maxPods": 20, "evictionHard": {"memory.available": "5%"}, "resolvConf": None},
        "kube-proxy": {"nodePortAddresses": ["10.0.0.0/8"], "conntrack": {"min": 1}},
    }
    given = load_data(data, "given")
    after, proxy = config.kubelet(given), config.proxy(given, "node1")
    assert after["maxPods"] == 20
    assert after["evictionHard"] == before["evictionHard"] | {"memory.available": "5%"}
    assert "resolvConf" in before.keys() - after.keys()
    assert proxy["conntrack"] == also["conntrack"] | {"min": 1}
    assert proxy["nodePortAddresses"] == ["10.0.0.0/8"]
    assert given.node_digest("node1") == load("k8s-two-node").node_digest("node1")


#: Fields in use of kubelet.config.k8s.io/v1beta1 and kubeproxy.config.k8s.io/v1alpha1, as the
#: reference has them (kubernetes.io, "Configuration APIs"); the programs refuse any other.
OF_KUBELET = """\
apiVersion kind containerRuntimeEndpoint cgroupDriver cgroupRoot cgroupsPerQOS
enforceNodeAllocatable failCgroupV1 failSwapOn protectKernelDefaults localStorageCapacityIsolation
authentication.anonymous.enabled authentication.webhook.enabled authentication.x509.clientCAFile
authorization.mode tlsCertFile tlsPrivateKeyFile clusterDNS clusterDomain resolvConf
imageGCHighThresholdPercent imageGCLowThresholdPercent syncFrequency nodeStatusUpdateFrequency
fileCheckFrequency evictionHard.memory.available evictionHard.nodefs.available
evictionHard.nodefs.inodesFree evictionHard.imagefs.available evictionHard.imagefs.inodesFree
evictionHard.pid.available
"""
OF_PROXY = """\
apiVersion kind mode clientConnection.kubeconfig hostnameOverride clusterCIDR bindAddress
healthzBindAddress metricsBindAddress conntrack.maxPerCore conntrack.min
conntrack.tcpEstablishedTimeout conntrack.tcpCloseWaitTimeout
"""


def fields(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields of a configuration, each with those that it is in."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from (f"{name}.{one}" for one in fields(value))
        else:
            yield name


def test_fields_are_those_of_the_reference() -> None:
    topology = load("k8s-two-node")
    assert {*fields(config.kubelet(topology))} == {*OF_KUBELET.split()}
    assert {*fields(config.proxy(topology, "node1"))} == {*OF_PROXY.split()}


def test_only_what_goes_to_pods_and_nodes_keeps_its_source() -> None:
    """The machine outside is on the nodes' own network, and has no way to a Pod's address."""
    rules = config.masquerade(load("k8s-two-node"))
    (kept,) = re.findall(r"ip daddr != \{ (.*) \} masquerade", rules)
    assert kept.split(", ") == ["100.96.0.0/16", "10.168.0.2", "10.168.0.3"]


def dual() -> Topology:
    data = load("k8s-two-node").to_dict()
    (network,) = data["networks"].values()
    network["subnet6"] = "fd00:1::/64"
    data["kubernetes"]["ipv6"] = {}
    return load_data(data, "dual")


def flags(argv: list[str]) -> dict[str, str]:
    return {word.partition("=")[0]: word.partition("=")[2] for word in argv}


def test_a_cluster_of_both_ip_families() -> None:
    """The first family is that of Services without a policy (kubernetes.io, dual-stack)."""
    topology = dual()
    pods, services = "100.96.0.0/16,fd00:100:96::/48", "10.97.0.0/16,fd00:10:97::/112"
    assert flags(config.apiserver(topology))["--service-cluster-ip-range"] == services
    manager = flags(config.controller_manager(topology))
    assert manager["--cluster-cidr"] == pods
    assert manager["--service-cluster-ip-range"] == services
    # The flag for one family is refused beside two of them.
    assert {one: manager[one] for one in manager if "mask-size" in one} == {
        "--node-cidr-mask-size-ipv4": "24", "--node-cidr-mask-size-ipv6": "64",
    }  # fmt: skip
    assert flags(config.kubelet_words(topology, "node2"))["--node-ip"] == "10.168.0.3,fd00:1::3"
    assert config.proxy(topology, "node1")["clusterCIDR"] == pods
    assert config.bridged(topology, "node2")["plugins"][0]["ipam"]["ranges"] == [
        [{"subnet": "100.96.2.0/24"}], [{"subnet": "fd00:100:96:2::/64"}],
    ]  # fmt: skip
    spec = config.node_object(topology, "node2")["spec"]
    assert spec == {"podCIDR": "100.96.2.0/24", "podCIDRs": ["100.96.2.0/24", "fd00:100:96:2::/64"]}
    kept = re.findall(r"ip6 daddr != \{ (.*) \} masquerade", config.masquerade(topology))
    assert kept == ["fd00:100:96::/48, fd00:1::2, fd00:1::3"]
    settings = flannel.settings(KubernetesSection.of(topology))
    assert (settings["EnableIPv6"], settings["IPv6Network"]) == (True, "fd00:100:96::/48")
    assert "dual-stack" in ROLES["kubernetes"].features(topology)
    assert load_data(topology.to_dict(), "record").to_dict() == topology.to_dict()


def test_a_report_names_the_plugin_and_the_proxy() -> None:
    described = ROLES["kubernetes"].described
    assert [*described({"cni": "calico", "proxy": "nftables"})] == [
        "Pods by calico",
        "kube-proxy nftables",
    ]
    assert [*described({})] == []


def test_variants_have_ipv6_with_flannel_alone() -> None:
    topology = dual()
    assert KubernetesSection.of(vary(topology, Overrides(backend="host-gw"))).ipv6 is not None
    assert KubernetesSection.of(vary(topology, Overrides(backend="udp"))).ipv6 is None
    assert KubernetesSection.of(vary(topology, Overrides(cni="bgp"))).ipv6 is None
