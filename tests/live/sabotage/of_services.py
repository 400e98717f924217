"""Services, names and the ways to them, made wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sabotage.means import changed, in_place_of, nft
from sabotage.trials import sabotage
from testbed.catalogues.shipped.test_services import GIVEN
from testbed.claims.observation import Observation
from testbed.roles.kubernetes import client
from testbed.roles.kubernetes.api import Refused
from testbed.suites.cluster import NAMESPACE, Cluster, pod, service
from testbed.suites.helpers import wait_until
from testbed.suites.overlay import stopped

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

CLUSTER = "k8s-two-node"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"


def address_of(cluster: Cluster, name: str) -> str:
    """A Service's virtual address."""
    found = cluster.find("Service", name)
    assert found, f"there is no Service {name}"
    return str(found["spec"]["clusterIP"])


@sabotage(
    CLUSTER,
    vain=(
        *("k8s-svc-reach-by-ip", "k8s-svc-automatic-routing", "k8s-dns-name-and-port"),
        *("k8s-svc-nodeport-every-node", "k8s-svc-nodeport-external", "k8s-svc-loadbalancer-cloud"),
        "k8s-svc-example-service",
    ),
)
def rules_stay_as_they_are(lab: LiveLab) -> Iterator[None]:
    """kube-proxy is stopped on every node: no rule is written any more."""
    with stopped(*Cluster(lab).nodes, service="kube-proxy"):
        yield


@sabotage(CLUSTER, vain=("k8s-svc-single-entry", "k8s-svc-example-deployment"))
def nobody_controls(lab: LiveLab) -> Iterator[None]:
    """The controller manager is stopped: no EndpointSlice, no Deployment is looked after."""
    with stopped(Cluster(lab).control, service="kube-controller-manager"):
        yield


@sabotage(
    CLUSTER,
    *("k8s-svc-reach-by-ip", "k8s-svc-automatic-routing", "k8s-dns-name-and-port"),
    *("k8s-svc-nodeport-every-node", "k8s-svc-nodeport-external", "k8s-svc-loadbalancer-cloud"),
    "k8s-svc-example-service",
)
def services_refuse(lab: LiveLab) -> Iterator[None]:
    """Nodes refuse what comes for Services but the API's, and for ports, despite their rules."""
    cluster = Cluster(lab)
    addresses = f"{cluster.spec.services}, {GIVEN}"
    do, undo = nft(
        f"""filter hook prerouting priority raw
        ip daddr {cluster.spec.services[1]} accept
        ip daddr {{ {addresses} }} meta l4proto tcp reject with tcp reset
        tcp dport 30000-32767 reject with tcp reset"""
    )
    with contextlib.ExitStack() as stack:
        for node in cluster.nodes:
            stack.enter_context(changed(node, do, undo))
        yield


@sabotage(CLUSTER, "k8s-svc-single-entry", "k8s-svc-example-deployment")
def another_is_behind_the_services(lab: LiveLab) -> Iterator[None]:
    """A slice of nobody's has one more address behind a Service; a Pod has the example's label."""
    cluster = Cluster(lab)
    stranger = cluster.pod("pair").address
    slice_of = {
        "kind": "EndpointSlice",
        "metadata": {"name": "sabotage", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": [{"port": 80, "protocol": "TCP"}],
        "endpoints": [{"addresses": [stranger], "conditions": {"ready": True}}],
    }
    labelled = pod("sabotage", labels={"app": "nginx"})
    cluster.create(slice_of)
    try:
        with cluster.objects(Observation(), labelled):
            yield
    finally:
        cluster.delete("EndpointSlice", "sabotage")


@sabotage(
    CLUSTER, "k8s-svc-routes-to-pod-ip", "k8s-svc-distributes", "k8s-dns-reach-by-name",
)  # fmt: skip
def another_pod_answers(lab: LiveLab) -> Iterator[None]:
    """Traffic to the Service is translated to a Pod that is not behind it."""
    cluster = Cluster(lab)
    rule = f"ip daddr {address_of(cluster, 'web')} dnat to {cluster.pod('pair').address}"
    do, undo = nft(f"nat hook prerouting priority dstnat - 50\n{rule}")
    with changed(cluster.pod("client").node, do, undo):
        yield


@sabotage(CLUSTER, "k8s-dns-reach-by-name", vain=["k8s-dns-name-and-port"])
def names_are_not_told(lab: LiveLab) -> Iterator[None]:
    """Requests to the cluster's DNS are dropped."""
    cluster = Cluster(lab)
    do, undo = nft(
        f"filter hook prerouting priority raw\nip daddr {cluster.spec.dns} udp dport 53 drop"
    )
    with changed(cluster.control, do, undo):
        yield


@sabotage(CLUSTER, "k8s-svc-virtual-ip")
def a_device_has_the_virtual_address(lab: LiveLab) -> Iterator[None]:
    """A node's loopback device has the Service's address."""
    cluster = Cluster(lab)
    address = f"{address_of(cluster, 'web')}/32 dev lo"
    with changed(cluster.other, f"ip addr add {address}", f"ip addr del {address}"):
        yield


@sabotage(CLUSTER, "k8s-svc-types", "k8s-ingress-api-object")
def the_api_refuses(lab: LiveLab) -> Iterator[None]:
    """A policy of the cluster forbids Services of the type LoadBalancer, and every Ingress."""
    cluster = Cluster(lab)
    rule = {
        "apiGroups": ["", "networking.k8s.io"],
        "apiVersions": ["*"],
        "operations": ["CREATE"],
        "resources": ["services", "ingresses"],
    }
    allowed = "request.resource.resource == 'services' && object.spec.type != 'LoadBalancer'"
    objects: dict[str, dict[str, Any]] = {
        "validatingadmissionpolicies": {
            "matchConstraints": {"resourceRules": [rule]},
            "validations": [{"expression": allowed}],
        },
        "validatingadmissionpolicybindings": {
            "policyName": "sabotage",
            "validationActions": ["Deny"],
        },
    }

    def refused() -> bool:
        asked = {"apiVersion": "v1", **service("refused", type="LoadBalancer")}
        where = f"/api/v1/namespaces/{NAMESPACE}/services?dryRun=All"
        try:
            cluster.api.ask("POST", where, asked)
        except Refused:
            return True
        return False

    try:
        for kind, spec in objects.items():
            body = {"metadata": {"name": "sabotage"}, "spec": spec}
            cluster.api.ask("POST", f"{ADMISSION}/{kind}", body)
        wait_until(refused, "the policy to be in force")
        yield
    finally:
        for kind in reversed(objects):
            with contextlib.suppress(Refused):
                cluster.api.ask("DELETE", f"{ADMISSION}/{kind}/sabotage")
        wait_until(lambda: not refused(), "the policy's end")


@sabotage(CLUSTER, "k8s-pod-example-manifests-valid")
def kubectl_takes_everything(lab: LiveLab) -> Iterator[None]:
    """kubectl says of whatever it would apply that the server takes it."""
    script = """
    case "$*" in *--dry-run=server*) cat > /dev/null; exit 0 ;; esac
    exec $real "$@" """
    path = client.kubectl(lab.context)[0]
    with in_place_of(client.control_plane(lab.context), path, script):
        yield
