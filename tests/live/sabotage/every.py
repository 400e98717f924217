"""All sabotages: each module enters its own when it is imported."""

from __future__ import annotations

from sabotage import (
    of_addresses,
    of_cni,
    of_docker,
    of_flannel,
    of_ingress,
    of_ipv6,
    of_kube_router,
    of_namespaces,
    of_performance,
    of_pods,
    of_policies,
    of_routing,
    of_services,
    of_traces,
)
from sabotage.trials import SABOTAGES

__all__ = ["MODULES", "SABOTAGES"]
MODULES = (
    *(of_addresses, of_docker, of_flannel, of_namespaces, of_performance),
    *(of_ipv6, of_routing, of_traces),
    *(of_cni, of_ingress, of_kube_router, of_pods, of_policies, of_services),
)
