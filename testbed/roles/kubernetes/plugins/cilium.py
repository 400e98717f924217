"""Cilium: programs of BPF on every Pod's device, which forward, and enforce policies.

kube-proxy stays, and makes Services for all but Pods; the nodes are joined by VXLAN.  L7 rules
would want Cilium's own build of Envoy, which is neither a Go module nor in a package: the agent
runs without (``--enable-l7-proxy=false``).

What the agent attaches goes with the node.  Its programs are on links of the node's network
namespace and pinned in a file system that is mounted in the node's mount namespace alone; the
root of its cgroups is the node's own (cgroup_namespaces(7)); the machine's sysctls are read-only
on a node.  It has ways to reach further where it replaces kube-proxy, and is not told to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.errors import MachineError
from testbed.nodes.base import Service
from testbed.roles.base import start
from testbed.roles.kubernetes import client, config, runtime
from testbed.roles.kubernetes.daemons import daemon, digest, way
from testbed.roles.kubernetes.plugins.base import Object, Plugin
from testbed.roles.kubernetes.rights import rights
from testbed.steps.step import Step

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Kubernetes, Topology

AGENT, OPERATOR = "cilium-agent", "cilium-operator"
STATE = "/run/cilium"  # where the CNI plugin looks for the agent's socket
LIBRARY = "/var/lib/cilium"
TOOLS = "/run/testbed/cilium"
PINS = "/sys/fs/bpf"
HEALTH_PORT = 9879
#: The compiler, which warns of more than that of Cilium's own images does.
CLANG = """\
#!/bin/sh
exec {clang} "$@" -Wno-shorten-64-to-32 -Wno-error -Wno-unused-command-line-argument
"""
#: Arguments: the folders of state, library, tools and pins; where the sources are.
PREPARE = """
set -eu
mkdir -p "$1" "$2" "$3"
if ! grep -q "^[^ ]* $4 bpf " /proc/mounts; then mount -t bpf bpf "$4"; fi
if [ ! -e "$2/bpf" ]; then cp -r "$5" "$2/bpf"; fi
# The kernel's modules; one that has none has no such list either.
cat /proc/modules > /run/testbed/modules 2> /dev/null || : > /run/testbed/modules
# The node's own, shown as the root of all: nothing is ever attached above it.
awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts
"""


class Cilium(Plugin):
    name = "cilium"
    title = "Cilium"
    takes = "once, and for long"
    enforces = True
    port_ranges = False  # since release 1.16
    artifacts = (AGENT, OPERATOR, "cilium-cni", "clang", "bpftool", "host-local")
    services = (AGENT,)
    offers = (AGENT, "bpftool")
    binaries = ("cilium-cni",)
    clients: ClassVar[dict[str, str]] = {"cilium": AGENT, "cilium-operator": OPERATOR}

    def kernel(self, cluster: Kubernetes) -> tuple[str, ...]:  # noqa: ARG002  the same for all
        return ("vxlan",)

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:
        first = node == config.cluster_of(topology).control_plane
        return (AGENT, OPERATOR) if first else (AGENT,)

    def objects(self, topology: Topology) -> Iterable[Object]:  # noqa: ARG002  the same for all
        """What both ask for (Cilium, install/kubernetes/cilium/templates/*/clusterrole.yaml)."""
        see = ["get", "list", "watch"]
        core = ["namespaces", "services", "pods", "endpoints", "nodes"]
        own = {"apiGroups": ["cilium.io"], "resources": ["*"], "verbs": ["*"]}
        slices = {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": see}
        kinds = {
            "apiGroups": ["apiextensions.k8s.io"],
            "resources": ["customresourcedefinitions"],
            "verbs": [*see, "create", "update"],
        }
        status = {
            "apiGroups": [""],
            "resources": ["nodes", "nodes/status"],
            "verbs": ["patch"],
        }
        leases = {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "verbs": ["create", "get", "update"],
        }
        policies = {
            "apiGroups": ["networking.k8s.io"],
            "resources": ["networkpolicies"],
            "verbs": see,
        }
        seen = {"apiGroups": [""], "resources": core, "verbs": see}
        return (
            *rights(AGENT, seen, slices, policies, status, own, kinds),
            *rights(OPERATOR, seen, slices, status, own, kinds, leases),
        )

    def network(self, topology: Topology, node: str) -> dict[str, Any]:  # noqa: ARG002  the same for all
        log = f"{STATE}/cni.log"
        return {
            "cniVersion": "0.3.1",
            "name": "pods",
            "plugins": [
                {"type": "cilium-cni", "log-file": log},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }

    def steps(self, topology: Topology, node: str, after: tuple[str, ...]) -> Iterable[Step]:
        first = config.cluster_of(topology).control_plane
        if node == first:
            yield daemon(
                OPERATOR, node, after, lambda _: [
                    f"--k8s-kubeconfig-path={config.FOLDER}/cilium-operator.conf",
                    "--operator-api-serve-addr=127.0.0.1:9234",
                    "--enable-ipv6=false", "--ipam=kubernetes",
                ],
                about="Cilium's own kinds of objects",
                env=environment(node),
            )  # fmt: skip
        needs = (f"{OPERATOR} {first}", f"containerd {node}")
        about = f"Pods of {config.cluster_of(topology).ranges[node]} by BPF"
        yield Step(f"{AGENT} {node}", about, needs, heavy=True, act=_agent(node))


def environment(node: str) -> dict[str, str]:
    """What both programs are told by variables."""
    return {
        "K8S_NODE_NAME": node,
        "CILIUM_K8S_NAMESPACE": "kube-system",
        "GOPS_CONFIG_DIR": f"{STATE}/gops",  # root's home is not the node's to write
    }


def words(cgroups: str, interface: str) -> list[str]:
    """The agent's arguments; ``cgroups`` is where the node has version 2's hierarchy.

    ``interface`` is the link to the other nodes.
    """
    return [
        f"--k8s-kubeconfig-path={config.FOLDER}/cilium.conf",
        "--ipam=kubernetes",
        "--enable-ipv6=false",
        "--routing-mode=tunnel",
        "--tunnel-protocol=vxlan",
        "--kube-proxy-replacement=false",
        "--enable-session-affinity=true",  # of what it takes from kube-proxy: ClusterIPs of Pods
        "--enable-l7-proxy=false",
        "--enable-hubble=false",
        "--enable-ipv4-masquerade=false",  # the node's own rules do it
        "--install-iptables-rules=false",
        "--enable-health-checking=false",
        "--enable-endpoint-health-checking=false",
        "--enable-bpf-clock-probe=false",
        f"--devices={interface}",
        f"--cgroup-root={cgroups}",
        f"--bpf-root={PINS}",
        f"--state-dir={STATE}",
        f"--lib-dir={LIBRARY}",
        f"--agent-health-port={HEALTH_PORT}",
    ]


def _agent(node: str) -> Callable[[Context], tuple[str, bool]]:
    def act(context: Context) -> tuple[str, bool]:
        machine = context.node(node)
        cgroups = _prepare(context, machine)
        program = machine.provide(context.store.binary(AGENT))
        path = runtime.path(context, machine)["PATH"]
        service = Service(
            AGENT,
            (program, *words(cgroups, context.topology.interface(node))),
            env={"PATH": f"{TOOLS}:{path}", **environment(node)},
            digest=digest(context, node),
        )
        changed = start(
            machine, service, timeout=client.SECONDS, context=context, seen=way(context, node)
        )
        changed |= client.until(
            context, node, lambda: _is_healthy(machine), "it says itself that all of it works",
            service=AGENT,
        )  # fmt: skip
        return f"Cilium {context.store.version('cilium')}", changed

    return act


def _prepare(context: Context, machine: Node) -> str:
    """Make the agent's folders and mounts; return where the node's cgroups of version 2 are."""
    sources = machine.provide(context.store.file("cilium", "bpf"))
    argv = ["sh", "-c", PREPARE, "sh", STATE, LIBRARY, TOOLS, PINS, sources]
    cgroups = machine.run(argv).stdout.strip()
    if not cgroups:
        raise MachineError(
            "Cilium attaches to cgroups of version 2, and this machine has none mounted",
            hint="mount them: mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    clang = CLANG.format(clang=machine.provide(context.store.binary("clang")))
    machine.put(clang.encode(), f"{TOOLS}/clang", mode=0o755)
    bpftool = machine.provide(context.store.binary("bpftool"))
    machine.run(["ln", "-sf", bpftool, f"{TOOLS}/bpftool"])
    return cgroups


def _is_healthy(machine: Node) -> bool:
    """Whether the agent says that all of it works (Cilium, "Troubleshooting")."""
    url = f"http://127.0.0.1:{HEALTH_PORT}/healthz"
    return machine.run(["curl", "-sf", "-m", "5", "-H", "brief: true", url], check=False).ok
