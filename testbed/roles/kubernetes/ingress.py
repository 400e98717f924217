"""The Ingress controller: Contour watches objects, Envoy proxies.

The setup follows upstream's (Contour, examples/contour), reduced for a lab: a single Contour
without leader election, and Envoys that exit at once instead of draining.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from testbed.roles.kubernetes import config
from testbed.roles.kubernetes.pki import Authority
from testbed.roles.kubernetes.section import KubernetesSection

if TYPE_CHECKING:
    from collections.abc import Mapping

    from testbed.roles.kubernetes.api import Api, Object
    from testbed.topology.model import Topology

NAMESPACE = "projectcontour"
CLASS = "contour"  #: the IngressClass
CONTOUR = "contour"
ENVOY = "envoy"
#: Upstream's names of the pairs (contour certgen --secrets-format=compact).
SECRETS: Mapping[str, str] = {CONTOUR: "contourcert", ENVOY: "envoycert"}


def values(topology: Topology) -> Mapping[str, str]:
    """Return the values for the manifest's template."""
    members = topology.with_role("kubernetes")
    return {
        "namespace": NAMESPACE,
        # By address, not by name: an Envoy that starts before DNS retries only late.
        "xds": str(KubernetesSection.of(topology).contour),
        # The published address of an Ingress: every node has an Envoy.
        "addresses": ",".join(str(topology.address(member.name)) for member in members),
        "class": CLASS,
    }


def prepare(api: Api) -> None:
    """Create the namespace and the key pairs.

    Contour and Envoy authenticate each other with them.
    """
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    api.create("/api/v1/namespaces", namespace)
    for secret in secrets():
        api.create(f"/api/v1/namespaces/{NAMESPACE}/secrets", secret)


def secrets() -> list[Object]:
    """Return the Secrets that `contour certgen` would create.

    They hold a key pair for each program. The authority's key is not kept.
    """
    authority = Authority.new("Project Contour")
    made = []
    for name, secret in SECRETS.items():
        local = f"{name}.{NAMESPACE}"
        hosts = (name, local, f"{local}.svc", f"{local}.svc.{config.DOMAIN}")
        pair = authority.issue(name, hosts=hosts)
        files = {
            "ca.crt": authority.pair.certificate,
            "tls.crt": pair.certificate,
            "tls.key": pair.key,
        }
        made.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "type": "kubernetes.io/tls",
                "metadata": {"name": secret, "namespace": NAMESPACE},
                "data": {file: base64.b64encode(data).decode() for file, data in files.items()},
            }
        )
    return made
