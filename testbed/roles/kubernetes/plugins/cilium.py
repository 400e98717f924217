"""Cilium: BPF programs forward packets and enforce policies.

The programs are on every Pod's device. kube-proxy still runs and serves Services for all clients
except Pods. VXLAN connects the nodes. L7 rules would require Cilium's own build of Envoy, which is
neither a Go module nor in a package, so the agent runs without it (``--enable-l7-proxy=false``).

Everything that the agent attaches is deleted with the node. Its programs are on links of the
node's network namespace and pinned in a file system that is mounted only in the node's mount
namespace. The root of its cgroups is the node's own (cgroup_namespaces(7)). This machine's sysctls
are read-only on a node. Only as a replacement of kube-proxy, which is disabled here, could the
agent affect more than the node.
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
from testbed.roles.kubernetes.section import KubernetesSection
from testbed.steps.step import Step

if TYPE_CHECKING:
    from testbed.nodes.base import Node
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

AGENT, OPERATOR = "cilium-agent", "cilium-operator"
STATE = "/run/cilium"  # the CNI plugin expects the agent's socket here
LIBRARY = "/var/lib/cilium"
TOOLS = "/run/testbed/cilium"
PINS = "/sys/fs/bpf"
HEALTH_PORT = 9879
#: The compiler; it has more warnings than the compiler of Cilium's own images.
CLANG = """\
#!/bin/sh
exec {clang} "$@" -Wno-shorten-64-to-32 -Wno-error -Wno-unused-command-line-argument
"""
#: Arguments: the folders of state, library, tools, pins and sources.
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
    takes = "takes long, once"
    enforces = True
    port_ranges = False  # since release 1.16
    artifacts = (AGENT, OPERATOR, "cilium-cni", "clang", "bpftool", "host-local")
    services = (AGENT,)
    offers = (AGENT, "bpftool")
    binaries = ("cilium-cni",)
    clients: ClassVar[dict[str, str]] = {"cilium": AGENT, "cilium-operator": OPERATOR}

    def kernel(self, cluster: KubernetesSection) -> tuple[str, ...]:  # noqa: ARG002  the same for all
        return ("vxlan",)

    def services_on(self, topology: Topology, node: str) -> tuple[str, ...]:
        first = node == KubernetesSection.of(topology).control_plane
        return (AGENT, OPERATOR) if first else (AGENT,)

    def objects(self, topology: Topology) -> Iterable[Object]:  # noqa: ARG002  the same for all
        """Return the rights of both programs.

        See Cilium, install/kubernetes/cilium/templates/*/clusterrole.yaml.
        """
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
        first = KubernetesSection.of(topology).control_plane
        if node == first:
            yield daemon(
                OPERATOR, node, after, lambda _: [
                    f"--k8s-kubeconfig-path={config.FOLDER}/cilium-operator.conf",
                    "--operator-api-serve-addr=127.0.0.1:9234",
                    "--enable-ipv6=false", "--ipam=kubernetes",
                ],
                about="Cilium's own resource types (CRDs)",
                env=environment(node),
            )  # fmt: skip
        needs = (f"{OPERATOR} {first}", f"containerd {node}")
        about = f"Pods of {KubernetesSection.of(topology).ranges[node]} by BPF"
        yield Step(f"{AGENT} {node}", about, needs, heavy=True, act=_agent(node))


def environment(node: str) -> dict[str, str]:
    """Return the environment of both programs."""
    return {
        "K8S_NODE_NAME": node,
        "CILIUM_K8S_NAMESPACE": "kube-system",
        "GOPS_CONFIG_DIR": f"{STATE}/gops",  # a node cannot write to root's home
    }


def words(cgroups: str, interface: str) -> list[str]:
    """Return the agent's arguments.

    ``cgroups`` is the node's mount point of cgroups version 2, ``interface`` the link to the
    other nodes.
    """
    return [
        f"--k8s-kubeconfig-path={config.FOLDER}/cilium.conf",
        "--ipam=kubernetes",
        "--enable-ipv6=false",
        "--routing-mode=tunnel",
        "--tunnel-protocol=vxlan",
        "--kube-proxy-replacement=false",
        "--enable-session-affinity=true",  # for ClusterIPs, which it serves to Pods
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
            context, node, lambda: _is_healthy(machine), "it reports itself healthy",
            service=AGENT,
        )  # fmt: skip
        return f"Cilium {context.store.version('cilium')}", changed

    return act


def _prepare(context: Context, machine: Node) -> str:
    """Create the agent's folders and mounts.

    Return the mount point of cgroups version 2.
    """
    sources = machine.provide(context.store.file("cilium", "bpf"))
    argv = ["sh", "-c", PREPARE, "sh", STATE, LIBRARY, TOOLS, PINS, sources]
    cgroups = machine.run(argv).stdout.strip()
    if not cgroups:
        raise MachineError(
            "Cilium needs cgroups v2, but this machine has none mounted",
            hint="mount them with mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    clang = CLANG.format(clang=machine.provide(context.store.binary("clang")))
    machine.put(clang.encode(), f"{TOOLS}/clang", mode=0o755)
    bpftool = machine.provide(context.store.binary("bpftool"))
    machine.run(["ln", "-sf", bpftool, f"{TOOLS}/bpftool"])
    return cgroups


def _is_healthy(machine: Node) -> bool:
    """Tell whether the agent reports that all of it works.

    See Cilium, "Troubleshooting".
    """
    url = f"http://127.0.0.1:{HEALTH_PORT}/healthz"
    return machine.run(["curl", "-sf", "-m", "5", "-H", "brief: true", url], check=False).ok
