"""The way into the cluster by HTTP, made wrong."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sabotage.means import changed, nft
from sabotage.trials import sabotage
from testbed.catalogues.shipped.test_ingress import NAMED, NOBODY
from testbed.claims.observation import Observation
from testbed.roles.kubernetes import ingress
from testbed.suites.cluster import Cluster

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

LAB = "k8s-ingress"


@sabotage(
    LAB,
    "k8s-ingress-admits-external",
    "k8s-ingress-http",
    "k8s-ingress-https",
    "k8s-ingress-tls-termination",
    "k8s-svc-external-mechanisms",
)
def the_nodes_ports_for_the_web_are_closed(lab: LiveLab) -> Iterator[None]:
    """Nodes refuse what comes from outside for ports 80 and 443."""
    add, delete = nft(
        """filter hook prerouting priority raw
        iifname eth0 tcp dport { 80, 443 } reject with tcp reset"""
    )
    with contextlib.ExitStack() as stack:
        for node in Cluster(lab).nodes:
            stack.enter_context(changed(node, add, delete))
        yield


@sabotage(
    LAB,
    "k8s-ingress-load-balancing",
    "k8s-svc-lb-round-robin",
    "k8s-svc-lb-ip-hash",
    "k8s-svc-lb-least-connection",
)
def all_requests_come_to_one_pod(lab: LiveLab) -> Iterator[None]:
    """The Service web has lost one of its two Pods."""
    cluster, notes = Cluster(lab), Observation()

    def label(value: str, *expected: str) -> None:
        cluster.kubectl(notes, "label", "pod", "web-2", "--overwrite", f"app={value}")
        cluster.wait_endpoints("web", *(cluster.pod(name).address for name in expected))

    label("elsewhere", "web-1")
    try:
        yield
    finally:
        label("web", "web-1", "web-2")


@sabotage(LAB, "k8s-ingress-needs-controller", "k8s-ingress-controllers")
def contour_takes_what_is_others(lab: LiveLab) -> Iterator[None]:
    """Contour serves Ingresses of every class, whoever's it is."""
    cluster, notes = Cluster(lab), Observation()
    where = (f"--namespace={ingress.NAMESPACE}", f"deployment/{ingress.CONTOUR}")
    classes = ",".join([ingress.CLASS, NOBODY, *NAMED.values()])
    place = "/spec/template/spec/containers/0/args/-"
    patch = [{"op": "add", "path": place, "value": f"--ingress-class-name={classes}"}]

    def settled() -> None:
        cluster.kubectl(notes, "rollout", "status", *where, timeout=120)

    cluster.kubectl(notes, "patch", *where, "--type=json", f"--patch={json.dumps(patch)}")
    try:
        settled()
        yield
    finally:
        cluster.kubectl(notes, "rollout", "undo", *where)
        settled()
