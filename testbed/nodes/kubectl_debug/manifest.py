"""The Pod by which a node of a cluster is reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from testbed.nodes.kubernetes import CONTAINER, NODE
from testbed.nodes.kubernetes.manifests import GRACE


def pod(
    name: str,
    marks: Mapping[str, str],
    owner: Mapping[str, str],
    *,
    machine: str,
    host: str,
    image: str,
    seconds: int,
) -> dict[str, Any]:
    """Return a Pod in the namespaces of a node of the cluster, with all rights there.

    It is that of ``kubectl debug node/HOST --profile=sysadmin`` (Kubernetes documentation,
    "Debugging Kubernetes Nodes With Kubectl"), but for the volume with the node's root: the
    mount namespace of the node's first process is entered.  ``nodeName`` passes the scheduler by,
    so a cordoned or full node takes the Pod, too.

    ``marks`` and ``owner`` are as in :func:`testbed.nodes.kubernetes.manifests.node`.  ``machine``
    is the node of the lab, ``host`` that of the cluster; empty for any.  After ``seconds`` the
    kubelet ends the Pod, if nobody has removed it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {**marks, NODE: machine},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", **owner}],
        },
        "spec": {
            **({"nodeName": host} if host else {}),
            "hostNetwork": True,
            "hostPID": True,
            "hostIPC": True,
            "tolerations": [{"operator": "Exists"}],
            "restartPolicy": "Never",
            "activeDeadlineSeconds": seconds,
            "terminationGracePeriodSeconds": GRACE,
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            "containers": [
                {
                    "name": CONTAINER,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "securityContext": {"privileged": True},
                }
            ],
        },
    }
