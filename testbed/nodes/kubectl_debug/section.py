"""Keys of a topology file: the cluster whose nodes the machines are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from testbed.topology import keys
from testbed.topology.declare import Section, key
from testbed.topology.shapes import Pattern, UsersPath

PROVIDER = "kubectl-debug"


@dataclass(frozen=True, slots=True)
class DebugSection(Section):
    """The cluster, and the Pods by which its nodes are reached."""

    role: ClassVar[str] = PROVIDER
    implied: ClassVar[bool] = False
    about: ClassVar[str] = "The Kubernetes cluster whose nodes the machines are."
    elsewhere: ClassVar[Mapping[str, str]] = {
        "config": "write kubeconfig",
        "install": "testbed only looks at the nodes of a cluster",
        "node": "write `on` in the node",
        "profile": "the Pods are those of the profile sysadmin",
    }

    kubeconfig: str = key(
        UsersPath(), "Kubeconfig file. Default: as for kubectl, $KUBECONFIG.", default=""
    )
    context: str = key(
        Pattern(r"[^\x00-\x1f\x7f]+", "the name of a context", "`kubectl config get-contexts`"),
        "Context of the kubeconfig. Default: $TESTBED_KUBE_CONTEXT, or the current one.",
        default="",
    )
    namespace: str = key(
        Pattern(
            keys.LABEL, "the name of a namespace", "`kubectl get namespaces` lists them",
            keys.LABEL_MAX, "a name",
        ),
        "Existing namespace for the Pods, in which privileged ones are allowed. Default: "
        "$TESTBED_KUBE_NAMESPACE, or a new one.",
        default="",
    )  # fmt: skip
    image: str = key(
        Pattern(
            keys.IMAGE, "the name of an image", "`testbed image push` prints it",
            keys.IMAGE_MAX, "a name",
        ),
        "Image of the Pods. Default: $TESTBED_KUBE_IMAGE, or testbed/node:1.",
        default="",
    )  # fmt: skip
