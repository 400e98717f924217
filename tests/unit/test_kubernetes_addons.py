"""Add-ons of a cluster: their manifests, and the conditions for their readiness."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from testbed.labs.plan import make
from testbed.roles.kubernetes import addons, ingress, runtime
from testbed.topology import load

PLAIN, WITH_INGRESS = load("k8s-two-node"), load("k8s-ingress")


def objects(name: Any) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(addons.manifest(name, WITH_INGRESS)))


def of_kind(name: Any, *kinds: str) -> list[dict[str, Any]]:
    return [one for one in objects(name) if one["kind"] in kinds]


@pytest.mark.parametrize("name", addons.ADD_ONS)
def test_a_manifest_has_what_is_waited_for_and_runs_images_that_nodes_have(name: Any) -> None:
    made = addons.ADD_ONS[name]
    workloads = of_kind(name, "Deployment", "DaemonSet")
    found = {
        f"{one['kind'].lower()}s/{one['metadata']['namespace']}/{one['metadata']['name']}"
        for one in workloads
    }
    assert found == set(made.workloads)
    specs = [one["spec"]["template"]["spec"] for one in workloads]
    containers = [
        one for spec in specs for one in [*spec.get("initContainers", []), *spec["containers"]]
    ]
    assert {one["image"].removeprefix("docker.io/") for one in containers} == set(
        made.images.values()
    )
    for one in containers:
        assert one["imagePullPolicy"] == "IfNotPresent", "no registry can be asked"
        assert one["securityContext"]["allowPrivilegeEscalation"] is False
        assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]


@pytest.mark.parametrize("name", addons.ADD_ONS)
def test_rights_are_of_an_account_of_its_own(name: Any) -> None:
    (account,) = of_kind(name, "ServiceAccount")
    (binding,) = of_kind(name, "ClusterRoleBinding")
    (role,) = of_kind(name, "ClusterRole")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [subject["name"] for subject in binding["subjects"]] == [account["metadata"]["name"]]
    for rule in role["rules"]:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_envoys_are_behind_the_nodes_ports_for_the_web() -> None:
    (envoy,) = of_kind("ingress", "DaemonSet")
    (container,) = envoy["spec"]["template"]["spec"]["containers"]
    assert [port["hostPort"] for port in container["ports"]] == [80, 443]


def test_contour_is_told_what_envoy_is_and_where_nodes_are() -> None:
    text = addons.manifest("ingress", WITH_INGRESS)
    assert text.count("10.97.0.11") == 2, "Contour's Service, and where Envoys look for it"
    assert "--ingress-status-address=10.168.0.2,10.168.0.3\n" in text


def test_only_labs_with_an_add_on_have_its_images_and_steps() -> None:
    images, steps = runtime.images(PLAIN), set(make(PLAIN).steps)
    assert "testbed/coredns:1" in images
    assert {"add-on dns", "dns ready"} <= steps
    more = set(runtime.images(WITH_INGRESS)) - set(images)
    assert more == {"testbed/contour:1", "testbed/envoy:1"}
    assert set(make(WITH_INGRESS).steps) - steps == {
        "add-on ingress", "ingress ready",
    }  # fmt: skip


def certificate(secret: dict[str, Any], file: str = "tls.crt") -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(secret["data"][file]))


def test_contour_and_envoy_know_each_other_by_one_authority() -> None:
    contour, envoy = ingress.secrets()
    assert [one["metadata"]["name"] for one in (contour, envoy)] == ["contourcert", "envoycert"]
    authority = certificate(contour, "ca.crt")
    key = authority.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    for secret, name in ((contour, "contour"), (envoy, "envoy")):
        shown = certificate(secret)
        shown.verify_directly_issued_by(authority)
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert name in names.get_values_for_type(x509.DNSName)
        assert set(secret["data"]) == {"ca.crt", "tls.crt", "tls.key"}


@pytest.mark.parametrize(
    ("workload", "available"),
    [
        ({}, False),
        ({"spec": {"replicas": 1}, "status": {}}, False),
        ({"spec": {"replicas": 1}, "status": {"availableReplicas": 1}}, True),
        ({"spec": {"replicas": 2}, "status": {"availableReplicas": 1}}, False),
        ({"spec": {"replicas": 0}, "status": {}}, False),
        ({"status": {"desiredNumberScheduled": 0}}, False),
        ({"status": {"desiredNumberScheduled": 2, "numberAvailable": 1}}, False),
        ({"status": {"desiredNumberScheduled": 2, "numberAvailable": 2}}, True),
    ],
)
def test_available_is_who_has_all_its_pods(workload: dict[str, Any], available: bool) -> None:
    assert addons.all_available(workload) is available
