"""All keys of topology files, with descriptions and forms of values.

The loader uses these keys, enumerations and patterns, and the JSON schema is built from all of
it, so both always agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed import registry
from testbed.faults.model import KINDS, RESERVED
from testbed.topology import reserved
from testbed.topology.model import (
    ADD_ONS,
    BACKENDS,
    ENGINES,
    FIREWALLS,
    PLUGINS,
    PROXIES,
    Engine,
    Firewall,
    Plugin,
    Proxy,
)

#: Most ports of a Linux bridge (net/bridge/br_private.h, BR_MAX_PORTS minus the unused 0).
PORTS_MAX = 1023

DEFAULT_PROVIDER = "netns"
DEFAULT_BACKEND = "vxlan"
DEFAULT_IMAGE = "nginx"
DEFAULT_ENGINE: Engine = "20.10"
#: Other names of an engine; 20.10 without quotes is a number, which YAML reads as 20.1.
#: Debian's engine has the name of Debian 12's release, even if this machine has another one.
ENGINE_ALIASES: Mapping[str, Engine] = {"debian": "20.10", "20": "20.10", "20.1": "20.10"}
DEFAULT_FIREWALL: Firewall = "iptables"
#: The default network of the overlay, as in the catalogue's documents.
DEFAULT_FLANNEL = "100.96.0.0/16"
#: Default networks of Pods and Services; they do not overlap with the shipped topologies' networks.
DEFAULT_PODS = DEFAULT_FLANNEL
DEFAULT_SERVICES = "10.97.0.0/16"
DEFAULT_PROXY: Proxy = "nftables"
DEFAULT_PLUGIN: Plugin = "flannel"
#: docker0 of a daemon without settings: the first address of Docker's first pool.
DEFAULT_BIP = "172.17.0.1/16"
#: UDP ports of flannel's backends (flannel, Documentation/backends.md).
#: 8472 is the Linux kernel's default; IANA's port for VXLAN is 4789 (RFC 7348, section 8).
DEFAULT_PORT: Mapping[str, int] = {"udp": 8285, "vxlan": 8472}

#: A VXLAN network identifier has 24 bits (RFC 7348, section 5).
MAX_VNI = (1 << 24) - 1
#: In bytes; with less, dockerd and etcd do not start.
MIN_MEMORY = 32 << 20
#: The kernel's smallest CPU quota is 1 ms, of a period of 100 ms (sched-bwc.rst).
MIN_CPUS = 0.01

LAB_MAX = 30
#: IFNAMSIZ is 16 with the final NUL, and bridges of the fabric are named br-NETWORK.
INTERFACE_MAX = 15
NODE_MAX = 12
NETWORK_MAX = 12
#: A DNS label is at most 63 octets long (RFC 1035, section 2.3.4).
LABEL_MAX = 63

#: A host name's label: letters, digits, hyphens inside (RFC 952, RFC 1123 section 2.1),
#: in lower case, because names are compared literally.
LABEL = r"[a-z0-9]([a-z0-9-]*[a-z0-9])?"
#: As above, with at least two characters: Docker's own names are [a-zA-Z0-9][a-zA-Z0-9_.-]+.
CONTAINER = r"[a-z0-9][a-z0-9-]*[a-z0-9]"
#: Stricter than the kernel's dev_valid_name(): no name that ip(8) would interpret differently.
INTERFACE = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
NAMESPACE = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
ADDRESS = r"[0-9]{1,3}(\.[0-9]{1,3}){3}"
PREFIXED = ADDRESS + r"/[0-9]{1,2}"
PUBLISH = r"(" + ADDRESS + r":)?[0-9]{1,5}:[0-9]{1,5}(/(tcp|udp))?"
MEMORY = r"[0-9]{1,15}[KMGT]?"
NETWORK_MODE = r"bridge|host|none|container:" + CONTAINER
#: [registry[:port]/]path[:tag][@digest], by the grammar of the distribution project.
IMAGE = (
    r"([A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?/)?"
    r"[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(@sha256:[0-9a-f]{64})?"
)
IMAGE_MAX = 255
#: A duration as Compose writes one: 500ms, 2.5s, 1m30s (compose-spec, 11-extension.md).
DURATION = r"([0-9]{1,6}(\.[0-9]{1,3})?(ms|s|m|h))+"
DURATION_MAX = 24 * 3600.0  # seconds; longer than the start of any lab
EXPECT = r"running|exit [0-9]{1,3}"
PORT = r"[0-9]{1,5}(/(tcp|udp))?"
#: First words of a health check's test; without one of them the test is a shell command.
TESTS = ("CMD", "CMD-SHELL", "NONE")
READY_SECONDS = 60.0
#: A fault's kind, target and amount: testbed.faults.model defines the arguments of each kind.
FAULT = r"(" + "|".join(KINDS) + r")( [^ ]+){1,3}"


@dataclass(frozen=True, slots=True)
class Key:
    """A known key of a mapping, with the JSON schema of its value."""

    description: str
    schema: Mapping[str, Any]
    required: bool = False


Keys = Mapping[str, Key]


def _whole(pattern: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": f"^({pattern})$", **more}


def _object(keys: Keys) -> dict[str, Any]:
    out: dict[str, Any] = {
        "type": "object",
        "properties": {k: {"description": v.description, **v.schema} for k, v in keys.items()},
        "additionalProperties": False,
    }
    required = [name for name, key in keys.items() if key.required]
    return out | ({"required": required} if required else {})


def _named(names: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "propertyNames": dict(names), "additionalProperties": dict(values)}


_LAB_NAME = _whole(LABEL, maxLength=LAB_MAX)
_NODE_NAME = _whole(LABEL, maxLength=NODE_MAX) | reserved.schema(reserved.NODES)
_NETWORK_NAME = _whole(LABEL, maxLength=NETWORK_MAX)
_CONTAINER_NAME = _whole(CONTAINER, maxLength=LABEL_MAX) | reserved.schema(reserved.CONTAINERS)
_NAMESPACE_NAME = _whole(NAMESPACE, maxLength=LABEL_MAX)
_INTERFACE_NAME = _whole(INTERFACE, maxLength=INTERFACE_MAX) | reserved.schema(reserved.LINKS)
_FAULT_NAME = _whole(LABEL, maxLength=LABEL_MAX) | {"not": {"enum": list(RESERVED)}}
_ADDRESS = _whole(ADDRESS)
_PREFIXED = _whole(PREFIXED)

_NODE_OF = Key("The node that it is on.", _NODE_NAME, required=True)

NETWORK: Keys = {
    "subnet": Key("The IPv4 subnet used on the segment: 10.168.0.0/24.", _PREFIXED, required=True),
}

NODE: Keys = {
    "networks": Key(
        "The networks that the node is plugged into, in order: eth0, eth1, ...; "
        "each with the node's address there.",
        _named(_NETWORK_NAME, _ADDRESS),
    ),
    "roles": Key(
        "The software that the node runs.",
        {"type": "array", "items": {"enum": list(registry.ROLES)}, "uniqueItems": True},
    ),
    "gateway": Key("Is it the default route of its peers?", {"type": "boolean", "default": False}),
    "cpus": Key(
        "How many CPUs it may use; 0.5 is half of one. Without it, no limit.",
        {"type": "number", "minimum": MIN_CPUS},
    ),
    "memory": Key(
        "How much memory it may use, in bytes, or with K, M, G or T (powers of 1024). "
        "Without it, no limit.",
        {"anyOf": [{"type": "integer", "minimum": MIN_MEMORY}, _whole(MEMORY)]},
    ),
    "provider": Key(
        "What makes the node, when it is not what makes the others.",
        {"enum": list(registry.PROVIDERS)},
    ),
}

DOCKER: Keys = {
    "bip": Key(
        "The address of docker0 with its prefix: one for every Docker node without flannel, "
        "or one for each node.",
        {
            "anyOf": [_PREFIXED, _named(_NODE_NAME, _PREFIXED)],
            "default": DEFAULT_BIP,
        },
    ),
    "engine": Key(
        "The release of Docker Engine: Debian's own (`debian` or 20.10; it is 26.1 on Debian 13), "
        "or a present-day 29.",
        {"enum": [*ENGINES, 20.10, 29, *ENGINE_ALIASES, 20], "default": DEFAULT_ENGINE},
    ),
    "firewall": Key(
        "The packet filter that Docker's rules are written to: iptables is the machine's own "
        "choice of the two that follow, nftables is engine 29's own way.",
        {"enum": list(FIREWALLS), "default": DEFAULT_FIREWALL},
    ),
}

#: ethN, by the order of a node's networks.
ETH = r"eth[0-9]{1,3}"
_UNDERLAY = {
    "anyOf": [
        {"type": "string", "pattern": f"^({LABEL})$", "maxLength": NETWORK_MAX},
        _named(_NODE_NAME, _whole(LABEL, maxLength=NETWORK_MAX)),
    ]
}

FLANNEL: Keys = {
    "interface": Key(
        "The network, or ethN, whose addresses flannel and etcd use: one for all, or one for each "
        "node. Without it, the first network that all of these nodes share.",
        _UNDERLAY,
    ),
    "backend": Key(
        "How packets cross from node to node.",
        {"enum": list(BACKENDS), "default": DEFAULT_BACKEND},
    ),
    "network": Key("The network of all containers.", _PREFIXED | {"default": DEFAULT_FLANNEL}),
    "subnets": Key(
        "The subnet reserved for each node; those left out are counted on.",
        _named(_NODE_NAME, _PREFIXED),
    ),
    "port": Key(
        "The UDP port of the udp (8285) or vxlan (8472) backend.",
        {"type": "integer", "minimum": 1, "maximum": 65535},
    ),
    "vni": Key(
        "The VXLAN network identifier (RFC 7348).",
        {"type": "integer", "minimum": 1, "maximum": MAX_VNI, "default": 1},
    ),
}

KUBERNETES: Keys = {
    "interface": Key(
        "The network, or ethN, whose addresses the cluster's nodes use: one for all, or one for "
        "each node. Without it, the first network that all of these nodes share.",
        _UNDERLAY,
    ),
    "control-plane": Key(
        "The node with etcd, the API server, the controllers and the scheduler; "
        "without it the first that has the role.",
        _NODE_NAME,
    ),
    "pods": Key("The network of all Pods.", _PREFIXED | {"default": DEFAULT_PODS}),
    "ranges": Key(
        "The range of Pod addresses of each node; those left out are counted on.",
        _named(_NODE_NAME, _PREFIXED),
    ),
    "services": Key("The network of ClusterIPs.", _PREFIXED | {"default": DEFAULT_SERVICES}),
    "proxy": Key(
        "What kube-proxy makes Services with.", {"enum": list(PROXIES), "default": DEFAULT_PROXY}
    ),
    "cni": Key("Who joins the Pods.", {"enum": list(PLUGINS), "default": DEFAULT_PLUGIN}),
    "backend": Key(
        "How flannel's packets cross from node to node.",
        {"enum": list(BACKENDS), "default": DEFAULT_BACKEND},
    ),
    "add-ons": Key(
        "What the cluster runs in Pods for its own sake; without it, dns.",
        {"type": "array", "items": {"enum": list(ADD_ONS)}, "uniqueItems": True},
    ),
}

_DURATION = _whole(DURATION)

HEALTHCHECK: Keys = {
    "test": Key(
        "The command that tells whether the container is healthy: a shell's command line, or a "
        "list that begins with CMD or CMD-SHELL. [NONE] turns off the check of the image.",
        {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
            ]
        },
    ),
    "interval": Key("Time between two checks, like 1s or 1m30s.", _DURATION),
    "timeout": Key("Time after which one check has failed.", _DURATION),
    "retries": Key(
        "Failed checks in a row after which the container is unhealthy.",
        {"type": "integer", "minimum": 1, "maximum": 1000},
    ),
    "start_period": Key("Time at the start in which a failed check does not count.", _DURATION),
}

READY: Keys = {
    "port": Key(
        "A port on which it listens: 80 or 53/udp.",
        {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, _whole(PORT)]},
    ),
    "command": Key(
        "A command and its arguments that succeeds in the container.",
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
    ),
    "timeout": Key("Time after which `up` fails.", _DURATION | {"default": f"{READY_SECONDS:g}s"}),
}

CONTAINER_KEYS: Keys = {
    "node": _NODE_OF,
    "image": Key(
        "The image that it is made of.",
        _whole(IMAGE, maxLength=IMAGE_MAX, default=DEFAULT_IMAGE),
    ),
    "network": Key(
        "Its network: bridge, host, none, or container:NAME to share another container's.",
        _whole(NETWORK_MODE, default="bridge"),
    ),
    "publish": Key(
        "Published ports: [address:]host_port:container_port[/tcp|/udp].",
        {"type": "array", "items": _whole(PUBLISH), "uniqueItems": True},
    ),
    "command": Key(
        "The command and its arguments, instead of the image's own.",
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
    ),
    "env": Key(
        "Environment variables.",
        _named(_whole(VARIABLE), {"type": "string"}),
    ),
    "expect": Key(
        "Its state once the lab is up: running, or `exit N` for a command that ends.",
        _whole(EXPECT, default="running"),
    ),
    "healthcheck": Key(
        "Docker's health check, with Compose's keys; `up` waits until it is healthy.",
        _object(HEALTHCHECK),
    ),
    "ready": Key(
        "The sign that it is ready, which `up` waits for.",
        _object(READY) | {"anyOf": [{"required": ["port"]}, {"required": ["command"]}]},
    ),
}

NAMESPACE_KEYS: Keys = {"node": _NODE_OF}
BRIDGE_KEYS: Keys = {"node": _NODE_OF}

VETH_END: Keys = {
    "name": Key("The interface's name.", _INTERFACE_NAME, required=True),
    "namespace": Key("The namespace that it is put into.", _NAMESPACE_NAME),
    "bridge": Key("The bridge that it becomes a port of.", _INTERFACE_NAME),
    "address": Key("Its address with the prefix, in a namespace: 192.168.10.200/24.", _PREFIXED),
}

VETH: Keys = {
    "node": _NODE_OF,
    "ends": Key(
        "The two ends of the pair.",
        {
            "type": "array",
            "items": _object(VETH_END)
            | {
                "oneOf": [{"required": ["namespace"]}, {"required": ["bridge"]}],
                "dependentRequired": {"address": ["namespace"]},
            },
            "minItems": 2,
            "maxItems": 2,
        },
        required=True,
    ),
}

TOPOLOGY: Keys = {
    "name": Key("The lab's name.", _LAB_NAME, required=True),
    "description": Key("What the lab is for, in a sentence or two.", {"type": "string"}),
    "provider": Key(
        "What makes the nodes that do not say it themselves.",
        {"enum": list(registry.PROVIDERS), "default": DEFAULT_PROVIDER},
    ),
    "networks": Key(
        "Layer-2 segments that join nodes, by name.",
        _named(_NETWORK_NAME, _object(NETWORK)),
    ),
    "nodes": Key(
        "The machines, by name.",
        _named(_NODE_NAME, _object(NODE)) | {"minProperties": 1},
        required=True,
    ),
    "docker": Key("Docker's settings.", _object(DOCKER)),
    "flannel": Key("The overlay network; wanted when a node has the role.", _object(FLANNEL)),
    "kubernetes": Key("The cluster of the nodes that have the role.", _object(KUBERNETES)),
    "containers": Key("Containers, by name.", _named(_CONTAINER_NAME, _object(CONTAINER_KEYS))),
    "namespaces": Key(
        "Plain network namespaces, by name.", _named(_NAMESPACE_NAME, _object(NAMESPACE_KEYS))
    ),
    "bridges": Key("Linux bridges, by name.", _named(_INTERFACE_NAME, _object(BRIDGE_KEYS))),
    "faults": Key(
        "What can be broken on purpose, by name: `testbed fault apply NAME`.",
        _named(_FAULT_NAME, _whole(FAULT)),
    ),
    "veths": Key(
        "Pairs of virtual Ethernet interfaces.", {"type": "array", "items": _object(VETH)}
    ),
}

#: The JSON schema of the whole file, without the header that names it.
FILE: Mapping[str, Any] = _object(TOPOLOGY)
