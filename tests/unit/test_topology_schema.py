"""The JSON schema: valid itself, in step with the loader, true to the shipped files."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from test_topology_bad import TABLE

from testbed.registry import PROVIDERS, ROLES
from testbed.roles.docker.networks import DockerNetwork
from testbed.roles.docker.section import ENGINES, FIREWALLS, DockerSection
from testbed.roles.flannel.section import (
    BACKENDS,
    FlannelIPv6,
    FlannelNetwork,
    FlannelSection,
    FurtherIPv6,
)
from testbed.roles.kubernetes.section import (
    Arguments,
    Configuration,
    KubernetesIPv6,
    KubernetesSection,
)
from testbed.roles.routing import Bgp, Ospf, RouterOfNode
from testbed.topology import load, load_data, names, schema
from testbed.topology.attach import Attachment
from testbed.topology.containers import Container, Healthcheck, Ready
from testbed.topology.declare import keys_of
from testbed.topology.model import (
    INCLUDE,
    Bridge,
    Namespace,
    Network,
    Node,
    Topology,
    Veth,
    VethEnd,
)
from testbed.topology.ports import Form

VALIDATOR = Draft202012Validator(schema())


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(schema())
    json.dumps(schema())
    assert schema() is not schema()
    schema()["properties"].clear()
    assert schema()["properties"]


def test_links_have_two_ends() -> None:
    ends = ["r1:eth1", "r2:eth1"]
    validator = Draft202012Validator(schema())
    for good in (ends, {"ends": ends, "mtu": 1400}):
        validator.validate({"name": "t", "nodes": {"r1": {}, "r2": {}}, "links": [good]})
    for bad in (ends[:1], ["r1", "r2:eth1"], {"mtu": 1400}, {"ends": "r1:eth1"}):
        assert not validator.is_valid({"name": "t", "nodes": {"r1": {}}, "links": [bad]}), bad


@pytest.mark.parametrize("name", sorted(names()))
def test_shipped_topologies_validate(name: str) -> None:
    VALIDATOR.validate(yaml.safe_load(names()[name].read_text()))
    VALIDATOR.validate(load(name).to_dict())


#: Those of the loader's refusals that a schema can see: parts of the table, less these.
NOT_SEEN = {
    "form: gateway yes",  # PyYAML's own reading of it is a boolean
    "form: name with newline",  # $ matches before a final newline in Python
    "form: exponent",  # text for PyYAML, a number for YAML 1.2
    "form: infinite",  # JSON has no infinity
    "form: memory too small",
    "form: memory huge",
    "form: duplicate key",
}
SEEN = [
    name
    for name in TABLE
    if name.startswith("form:") and name not in NOT_SEEN
] + [
    "networks: no prefix", "networks: mtu", "networks: port mtu",
    "networks: no port", "networks: port named all", "networks: port name too long",
    "networks: mac", "networks: unknown key of a port",
    "overlay: backend", "overlay: port", "overlay: vni", "containers: no node",
    "containers: name", "containers: long name", "containers: image", "containers: mode",
    "containers: protocol", "containers: command empty", "containers: env number",
    "containers: env name", "namespaces: one end", "namespaces: neither", "namespaces: both",
    "namespaces: address on a bridge", "namespaces: bridge name too long",
]  # fmt: skip


@pytest.mark.parametrize("name", SEEN)
def test_bad_topologies_do_not_validate(name: str) -> None:
    data = yaml.safe_load(TABLE[name].plain)
    assert not VALIDATOR.is_valid(data), data


def keys_of_files() -> set[str]:
    """The keys of a file, without those that testbed itself sets."""
    return {name for name, key in keys_of(Topology).items() if not key.own}


def test_keys_are_those_of_the_loader() -> None:
    top = schema()["properties"]
    below = {name: top[name]["additionalProperties"] for name in ("networks", "nodes")}
    assert set(top) == keys_of_files()
    assert set(below["networks"]["properties"]) == set(keys_of(Network))
    assert set(below["nodes"]["properties"]) == set(keys_of(Node))
    assert set(top["docker"]["properties"]) == set(keys_of(DockerSection))
    assert set(top["flannel"]["properties"]) == set(keys_of(FlannelSection))
    ports = below["nodes"]["properties"]["networks"]["additionalProperties"]["anyOf"]
    assert set(ports[1]["properties"]) == set(keys_of(Form))
    pair = top["veths"]["items"]
    assert set(pair["properties"]) == set(keys_of(Veth))
    assert set(pair["properties"]["ends"]["items"]["properties"]) == set(keys_of(VethEnd))
    for section, known in (
        ("containers", keys_of(Container)),
        ("namespaces", keys_of(Namespace)),
        ("bridges", keys_of(Bridge)),
    ):
        assert set(top[section]["additionalProperties"]["properties"]) == set(known)


def test_enumerations_are_those_of_the_model() -> None:
    top = schema()["properties"]
    node = top["nodes"]["additionalProperties"]["properties"]
    assert node["roles"]["items"]["enum"] == list(ROLES)
    assert top["flannel"]["properties"]["backend"]["enum"] == list(BACKENDS)
    docker = top["docker"]["properties"]
    assert set(ENGINES) <= set(docker["engine"]["anyOf"][0]["enum"])  # or the path of a folder
    assert docker["firewall"]["enum"] == list(FIREWALLS)
    assert top["provider"]["enum"] == node["provider"]["enum"] == list(PROVIDERS)


def test_every_key_is_described() -> None:
    def walk(at: Any) -> None:
        if isinstance(at, dict):
            for name, value in at.get("properties", {}).items():
                assert value["description"], name
            for value in at.values():
                walk(value)
        elif isinstance(at, list):
            for value in at:
                walk(value)

    walk(schema())


def test_every_key_reaches_the_model_and_comes_back() -> None:
    """A file with every known key: none is known to the tables and forgotten by the reader."""
    everything: dict[str, Any] = {
        "name": "all",
        "description": "every key",
        "provider": "vagrant",
        "networks": {
            "lan": {
                "subnet": "10.168.0.0/24",
                "subnet6": "fd00:168::/64",
                "mtu": 1400,
                "rate": "1gbit",
                "delay": "5ms 1ms",
                "loss": "0.5%",
                "uplink": True,
            },
            "wire": {},
        },
        "nodes": {
            "n1": {
                "networks": {
                    "lan": [
                        "10.168.0.2",
                        {
                            "addresses": ["10.168.0.12", "10.168.0.13/32"],
                            "name": "nic",
                            "mac": "02:00:00:00:00:01",
                            "mtu": 1300,
                            "vlan": 10,
                            "trunk": [20, 30],
                        },
                    ],
                    "wire": {},
                },
                "roles": ["etcd", "docker", "flannel", "namespaces", "frr"],
                "gateway": True,
                "forward": True,
                "sysctls": {"net.ipv4.tcp_rmem": "4096 8192 9000", "net.ipv4.ip_default_ttl": 70},
                "routes": ["10.9.0.0/16 via 10.168.0.3"],
                "rules": ["from 10.9.0.0/16 lookup 100"],
                "binds": ["./data:/srv/data:ro", "/usr/share/doc:/srv/doc"],
                "env": {"A": "b"},
                "run": [
                    {"command": "echo $A", "timeout": "60s"},
                    {"command": ["make", "it"], "done": ["test", "-e", "it"], "timeout": "5s"},
                ],
                "services": {
                    "web": {
                        "command": ["serve"],
                        "env": {"B": "c"},
                        "ready": {"port": "80/tcp", "timeout": "60s"},
                        "restart": "always",
                    }
                },
                "files": {
                    "/etc/a": {"file": "a.conf"},
                    "/etc/b": {"content": "", "mode": "0640", "owner": "root:adm"},
                },
                "cpus": 0.5,
                "memory": 1 << 30,
                "provider": "netns",
                "packages": ["tcpdump", "libstdc++6"],
                "compose": ["compose.yaml", "more.yaml"],
                "docker": {"engine": "29", "firewall": "nftables", "daemon": {"icc": None}},
                "frr": {"config": {"content": "router rip\n", "file": "frr.conf"}},
            },
            "n2": {"networks": {"lan": "10.168.0.3"}, "roles": ["kubernetes"], "provider": "netns"},
            "n4": {
                "networks": {"lan": "10.168.0.5"},
                "provider": "netns",
                "image": "alpine:3.20",
            },
            "n3": {
                "networks": {"lan": "10.168.0.4"},
                "roles": ["bird"],
                "provider": "netns",
                "bird": {
                    "router_id": "10.0.0.1",
                    "ospf": {
                        "area": "0.0.0.1",
                        "interfaces": ["lan"],
                        "passive": ["eth0"],
                        "type": "broadcast",
                        "hello": 1,
                        "dead": 4,
                    },
                    "bgp": {
                        "asn": 65001,
                        "neighbors": [{"10.168.0.3": 65002}],
                        "networks": ["lan", "10.9.0.0/16"],
                        "keepalive": 1,
                        "hold": 3,
                    },
                },
            },
        },
        "docker": {
            "bip": {"n1": "100.96.3.1/24"},
            "engine": "29",
            "firewall": "nftables",
            "swarm": ["n1"],
            "images": ["redis:7"],
            "daemon": {
                "icc": False,
                "default-address-pools": [{"base": "10.5.0.0/16", "size": 24}],
            },
            "networks": {
                "front": {
                    "driver": "macvlan",
                    "subnet": ["172.30.0.0/24", "fd00:30::/64"],
                    "gateway": ["172.30.0.254", "fd00:30::1"],
                    "ip_range": "172.30.0.128/25",
                    "aux_addresses": {"printer": "172.30.0.3"},
                    "internal": True,
                    "attachable": True,
                    "enable_ipv6": True,
                    "driver_opts": {"parent": "eth0"},
                    "nodes": ["n1"],
                }
            },
        },
        "flannel": {
            "backend": "vxlan",
            "network": "100.96.0.0/16",
            "subnets": {"n1": "100.96.3.0/24"},
            "port": 4789,
            "interface": {"n1": "eth0"},
            "vni": 7,
            "mtu": 1400,
            "direct-routing": True,
            "public-ip": {"n1": "192.0.2.1"},
            "subnet-len": 24,
            "subnet-lease-renew-margin": 90,
            "allow-direct-routing": False,
            "ipv6": {
                "network": "fd00:96::/48",
                "subnets": {"n1": "fd00:96:0:8::/64"},
                "subnet-len": 64,
                "public-ip": {"n1": "2001:db8::1"},
            },
            "networks": {
                "blue": {
                    "ipv6": {
                        "network": "fd00:20::/48",
                        "subnets": {"n1": "fd00:20:0:1::/64"},
                        "subnet-len": 64,
                    },
                    "backend": "vxlan",
                    "network": "10.20.0.0/16",
                    "subnets": {"n1": "10.20.1.0/24"},
                    "port": 8473,
                    "vni": 8,
                    "mtu": 1400,
                    "direct-routing": True,
                    "subnet-len": 24,
                }
            },
        },
        "kubernetes": {
            "control-plane": "n2",
            "pods": "10.244.0.0/16",
            "ranges": {"n2": "10.244.7.0/24"},
            "services": "10.96.0.0/16",
            "proxy": "iptables",
            "cni": "flannel",
            "backend": "host-gw",
            "add-ons": [],
            "images": ["quay.io/team/web:1"],
            "arguments": {
                "kube-apiserver": {"v": "2"},
                "kube-controller-manager": {"v": "2"},
                "kube-scheduler": {"v": "2"},
                "kubelet": {"max-pods": "20"},
            },
            "configuration": {
                "kubelet": {"maxPods": 20, "logging": {"verbosity": 2}},
                "kube-proxy": {"featureGates": {"A": False}},
            },
            "apply": ["web.yaml", "more.yaml"],
            "interface": "lan",
            "ipv6": {
                "pods": "fd00:244::/56",
                "ranges": {"n2": "fd00:244:0:7::/64"},
                "services": "fd00:245::/112",
            },
        },
        "containers": {
            "c1": {
                "node": "n1",
                "image": "alpine:3",
                "network": "bridge",
                "publish": ["8080:80/tcp"],
                "command": ["sleep", "1"],
                "env": {"A": "b"},
                "healthcheck": {
                    "test": ["CMD", "true"],
                    "interval": "1500ms",
                    "timeout": "2s",
                    "retries": 4,
                    "start_period": "90s",
                },
                "ready": {"port": "53/udp", "command": ["true"], "timeout": "30s"},
            },
            "job": {"node": "n1", "image": "nginx", "network": "none", "expect": "exit 3"},
            "c2": {
                "node": "n1",
                "image": "nginx",
                "networks": {
                    "front": {
                        "ipv4_address": "172.30.0.10",
                        "ipv6_address": "fd00:30::10",
                        "mac_address": "02:00:00:00:00:10",
                        "aliases": ["web"],
                        "gw_priority": 0,
                        "interface_name": "front0",
                        "driver_opts": {"com.docker.network.endpoint.ifname": "lan0"},
                    }
                },
                "hostname": "web.example",
                "entrypoint": ["sleep"],
                "user": "1000:1000",
                "working_dir": "/srv",
                "labels": {"tier": "front"},
                "privileged": True,
                "cap_add": ["NET_ADMIN"],
                "cap_drop": ["ALL"],
                "devices": ["/dev/fuse:/dev/fuse:rw"],
                "sysctls": {"net.ipv4.ip_forward": 1},
                "pids_limit": 50,
                "ulimits": {"nofile": 1024, "nproc": {"soft": 1, "hard": 2}},
                "cpus": 0.5,
                "mem_limit": 64 << 20,
                "volumes": ["data:/data:ro"],
                "tmpfs": ["/run:size=64m"],
                "dns": ["10.0.0.53", "fd00::53"],
                "extra_hosts": ["db:10.0.0.5"],
                "restart": "on-failure:3",
                "init": True,
                "stop_signal": "SIGINT",
                "stop_grace_period": "3s",
            },
            "c3": {
                "node": "n1",
                "image": "nginx",
                "network": "bridge",
                "mac_address": "02:00:00:00:00:11",
            },
        },
        "namespaces": {"ns1": {"node": "n1"}},
        "bridges": {"br0": {"node": "n1"}},
        "faults": {"off": "partition n1", "down": "kill n1/etcd", "lost": "loss n1 0.5%"},
        "links": [
            ["n1:p1", "n2:p1"],
            {
                "ends": ["n1:p2", "n2:p2"],
                "subnet": "10.7.0.0/31",
                "subnet6": "fd00:7::/127",
                "mtu": 1400,
            },
            {"ends": ["n1:p3", "n2:p3"], "addresses": ["10.8.0.1/30", "10.8.0.2/30"]},
        ],
        "veths": [
            {
                "node": "n1",
                "ends": [
                    {"name": "a", "namespace": "ns1", "address": "10.9.0.1/24"},
                    {"name": "b", "bridge": "br0"},
                ],
            }
        ],
    }
    # The one is read before a topology is built, the others are of labs of machines that exist.
    of_providers = {name for name, kind in PROVIDERS.items() if kind.section}
    assert set(everything) == keys_of_files() - {INCLUDE} - of_providers
    of_providers = {name for name, kind in PROVIDERS.items() if kind.node_section}
    assert {*everything["nodes"]["n1"], "bird", "image", "on"} == set(keys_of(Node)) - of_providers
    frr, bird = everything["nodes"]["n1"]["frr"], everything["nodes"]["n3"]["bird"]
    assert {*frr, *bird} == set(keys_of(RouterOfNode))
    assert {*bird["ospf"], "networks"} == set(keys_of(Ospf))  # instead of `interfaces`
    assert set(bird["bgp"]) == set(keys_of(Bgp))
    assert set(everything["docker"]) == set(keys_of(DockerSection))
    assert set(everything["flannel"]) == set(keys_of(FlannelSection))
    assert set(everything["flannel"]["networks"]["blue"]) == set(keys_of(FlannelNetwork))
    assert set(everything["flannel"]["ipv6"]) == set(keys_of(FlannelIPv6))
    assert set(everything["flannel"]["networks"]["blue"]["ipv6"]) == set(keys_of(FurtherIPv6))
    assert set(everything["kubernetes"]) == set(keys_of(KubernetesSection))
    assert set(everything["kubernetes"]["arguments"]) == set(keys_of(Arguments))
    assert set(everything["kubernetes"]["ipv6"]) == set(keys_of(KubernetesIPv6))
    assert set(everything["kubernetes"]["configuration"]) == set(keys_of(Configuration))
    first, *others = everything["containers"].values()
    assert set(first).union(*others) == set(keys_of(Container))
    network = everything["docker"]["networks"]["front"]
    assert set(network) == set(keys_of(DockerNetwork))
    attached = everything["containers"]["c2"]["networks"]["front"]
    assert set(attached) == set(keys_of(Attachment))
    assert set(first["healthcheck"]) == set(keys_of(Healthcheck))
    assert set(first["ready"]) == set(keys_of(Ready))
    assert load_data(everything, "record").to_dict() == everything
    VALIDATOR.validate(everything)
