"""Kube-router: routes that BGP spreads, and policies by iptables and ipset."""

from __future__ import annotations

from testbed.roles.kubernetes.plugins.manifest import ByManifest


class KubeRouter(ByManifest):
    name = "kube-router"
    title = "Kube-router"
    daemon_set = "kube-router"
    images = ("kube-router",)
    published = "https://github.com/cloudnativelabs/kube-router (daemonset/kubeadm-kuberouter.yaml)"
