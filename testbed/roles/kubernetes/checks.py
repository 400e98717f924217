"""Kubernetes: its nodes and networks, and other software on its nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from testbed.roles.flannel.section import ONLY_WITH
from testbed.roles.kubernetes.section import ROLE, KubernetesIPv6, KubernetesSection
from testbed.topology import tree
from testbed.topology.check.look import Look, Subnet
from testbed.topology.tree import quote

if TYPE_CHECKING:
    from collections import abc

__all__ = ["KubernetesChecks"]

NAMESPACES = "netns"
IPV6_BACKENDS = ONLY_WITH["ipv6"][0]
#: Roles whose programs and ports a node of a cluster already has.
OWN = ("docker", "etcd", "flannel")
#: Plugins that route between nodes without a tunnel in this configuration.
ROUTED = ("bgp", "calico")


class KubernetesChecks(Look):
    """Rules for the cluster."""

    def rules(self) -> tuple[abc.Callable[[], None], ...]:
        return (
            self.section_and_nodes,
            self.control_plane,
            self.nothing_twice_on_a_node,
            self.made_of_namespaces,
            self.networks_are_apart,
            self.ranges,
            self.backend_is_flannels,
            self.ipv6_is_flannels,
            self.nodes_have_ipv6,
            self.routes_are_within_one_segment,
            self.nodes_reach_each_other,
        )

    def section_and_nodes(self) -> None:
        written = isinstance(self.root, tree.Mapping) and ROLE in self.root.entries
        unsure = any(self.unsure(n, "roles") for n in self.nodes)
        if written and not unsure and self.nodes and not self.t.with_role(ROLE):
            hint = "give nodes the role, or remove the section"
            self.add(self.key(ROLE), "a node with the role kubernetes", "none", hint)

    def control_plane(self) -> None:
        cluster, path = KubernetesSection.find(self.t), (ROLE, "control-plane")
        if cluster is None or "control-plane" not in tree.keys_at(self.root, ROLE):
            return
        name = cluster.control_plane
        if self.on_known_node(name, path, ROLE) and not self.has_role(name, ROLE):
            hint = "add the role, or choose another node"
            self.add(self.value(*path), "a node with the role kubernetes", quote(name), hint)

    def nothing_twice_on_a_node(self) -> None:
        for node in self.t.with_role(ROLE):
            for role in node.roles:
                if role in OWN:
                    hint = f"remove it; the cluster has its own {role}" * (role != "docker")
                    self.add(
                        self.role(node, role),
                        f"no {role} on a node of the cluster",
                        quote(role),
                        hint or "remove it; the cluster runs containers with containerd",
                    )

    def made_of_namespaces(self) -> None:
        for node in self.t.with_role(ROLE):
            provider = self.t.provider_of(node.name)
            if provider != NAMESPACES and not self.bad("nodes", node.name, "provider"):
                wanted = f"nodes of a cluster with the provider {NAMESPACES}"
                hint = "remove the provider; clusters on other machines are not supported yet"
                self.add(self.role(node, ROLE), wanted, f"{node.name} by {provider}", hint)

    def networks_are_apart(self) -> None:
        cluster = KubernetesSection.find(self.t)
        if cluster is None:
            return
        networks = self.t.networks.values()
        self._networks_are_apart(
            cluster,
            (),
            [(one.subnet, one.name, self.subnet(one)) for one in networks if one.subnet],
        )
        if cluster.ipv6:
            self._networks_are_apart(
                cluster.ipv6,
                ("ipv6",),
                [
                    (one.subnet6, one.name, self.subnet(one, "subnet6"))
                    for one in networks
                    if one.subnet6
                ],
            )

    def _networks_are_apart(
        self,
        part: KubernetesSection | KubernetesIPv6,
        path: tuple[str, ...],
        others: list[Subnet],
    ) -> None:
        """Require networks of one IP family, below ``path``, that do not overlap."""
        if self.bad(ROLE, *path, "pods") or self.bad(ROLE, *path, "services"):
            return
        mine: list[Subnet] = [
            (part.pods, "the Pods", self._at(*path, "pods")),
            (part.services, "the Services", self._at(*path, "services")),
        ]
        # Networks without a path between them may have the same subnet.
        for other in others:
            self.apart([other, *mine], "networks")
        if not others:
            self.apart(mine, "networks")

    def _at(self, *path: str) -> tree.Tree:
        """Return the position of a setting.

        For a default it is that of the section.
        """
        *folders, name = (ROLE, *path)
        if name in tree.keys_at(self.root, *folders):
            return self.value(*folders, name)
        return self.value(*folders) if ROLE in tree.keys_at(self.root) else self.root

    def ranges(self) -> None:
        if (cluster := KubernetesSection.find(self.t)) is not None:
            self._ranges(cluster, (ROLE,))
            if cluster.ipv6:
                self._ranges(cluster.ipv6, (ROLE, "ipv6"))

    def _ranges(self, part: KubernetesSection | KubernetesIPv6, at: tuple[str, ...]) -> None:
        if self.bad(*at, "pods"):
            return
        pods: Any = part.pods
        good: list[Subnet] = []
        for name in tree.keys_at(self.root, *at, "ranges"):
            path = (*at, "ranges", name)
            found = part.ranges.get(name)
            if name not in self.nodes:
                hint = self.nearest_node(name, ROLE)
                self.add(self.key(*path), "the name of a node", quote(name), hint)
            elif not self.has_role(name, ROLE):
                wanted = "a node with the role kubernetes"
                self.add(self.key(*path), wanted, quote(name), "add the role, or remove this")
            elif found and not found.subnet_of(pods):
                wanted = f"a range inside the network of the Pods, {pods}"
                hint = "change it, or the network of the Pods"
                self.add(self.value(*path), wanted, str(found), hint)
            elif found:
                good.append((found, name, self.value(*path)))
        self.apart(good, "ranges of Pods")

    def backend_is_flannels(self) -> None:
        cluster, path = KubernetesSection.find(self.t), (ROLE, "backend")
        if cluster is None or self.bad(ROLE, "cni") or cluster.cni == "flannel":
            return
        if "backend" in tree.keys_at(self.root, ROLE):
            hint = "remove it, or choose cni: flannel"
            self.add(
                self.value(*path), "no backend, which only flannel has", f"cni {cluster.cni}", hint
            )

    def ipv6_is_flannels(self) -> None:
        cluster, path = KubernetesSection.find(self.t), (ROLE, "ipv6")
        if cluster is None or cluster.ipv6 is None or self.bad(ROLE, "cni"):
            return
        if cluster.cni != "flannel":
            hint = "remove it, or choose cni: flannel"
            wanted = f"no ipv6 with {cluster.cni}, which is set up for IPv4 alone"
            self.add(self.key(*path), wanted, "one", hint)
        elif cluster.backend not in IPV6_BACKENDS and not self.bad(ROLE, "backend"):
            backends = " or ".join(IPV6_BACKENDS)
            hint = f"remove it, or choose backend: {backends}"
            self.add(self.key(*path), f"no ipv6 with {cluster.backend}", "one", hint)

    def nodes_have_ipv6(self) -> None:
        cluster = KubernetesSection.find(self.t)
        if cluster is not None and cluster.ipv6:
            self.dual_stack(ROLE, "the cluster's ipv6")

    def nodes_reach_each_other(self) -> None:
        cluster = KubernetesSection.find(self.t)
        if cluster is None:
            return
        members = sorted(self.t.with_role(ROLE), key=lambda n: n.name != cluster.control_plane)
        self.underlay(ROLE, cluster.interface, members)

    def routes_are_within_one_segment(self) -> None:
        """Require one segment for plugins that route without a tunnel.

        The gateway of a route is a node, which must be on the link.
        """
        cluster = KubernetesSection.find(self.t)
        if cluster is None:
            return
        who = "all nodes of the cluster"
        if cluster.cni in ROUTED:
            self.one_segment(ROLE, who, cluster.cni, "network plugin")
        elif cluster.cni == "flannel" and cluster.backend == "host-gw":
            self.one_segment(ROLE, who, cluster.backend, "backend")
