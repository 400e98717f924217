"""The objects of a lab in a cluster, as the API takes them.

All of a lab is in one namespace.  Its nodes are bare Pods, and one Job, the *janitor*, owns them:
when the Job goes, the cluster's garbage collector removes them (Kubernetes documentation,
"Owners and Dependents").  The Job's Pod ends when the lab has not been used for a while, or is too
old.  No object of the cluster's own is needed: no CRD, no DaemonSet, no webhook.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from testbed.artifacts.node_image import INIT, VOLUMES
from testbed.nodes.kubernetes import (
    BEAT,
    CONTAINER,
    DIGEST,
    FOLDER,
    IDLE,
    LAB,
    NODE,
    OWNER,
    POD_NETWORK,
    VERSION,
)

#: Least that wires a Pod: links, routes, and raw sockets for ping(8) and tcpdump(8).
WIRING = ("NET_ADMIN", "NET_RAW")
#: The level of PodSecurity that allows them, and the label that sets it for a namespace.
LEVEL, ENFORCE = "privileged", "pod-security.kubernetes.io/enforce"
SERVICE_ACCOUNT = "testbed-janitor"
NOTES = "/etc/testbed"  # in the janitor: its Pod's annotations, which the kubelet keeps up to date
GRACE = 1  # seconds for a Pod to end by itself
LEFT = 5  # seconds that a finished Job stays
AGAIN = 6  # new Pods for a janitor whose Pod was evicted or whose node has died
#: Resources of the janitor, the least first.  A LimitRange may ask for more, for a request equal to
#: the limit, or have defaults of its own.
SIZES: tuple[Mapping[str, Mapping[str, str]], ...] = (
    {
        "requests": {"cpu": "5m", "memory": "16Mi"},
        "limits": {"cpu": "200m", "memory": "64Mi"},
    },
    {
        "requests": {"cpu": "50m", "memory": "64Mi"},
        "limits": {"cpu": "50m", "memory": "64Mi"},
    },
    {},
)
LATER = 300  # seconds after which the Job's deadline ends a janitor that does not end by itself

#: Arguments: seconds without use, seconds in all, the namespace to remove or nothing.  A change of
#: the annotation is a sign of use: no clock of another machine counts.
JANITOR = f"""\
now() {{ cut -d. -f1 /proc/uptime; }}
began=$(now) used=$(now) last=
while [ $(($(now) - used)) -lt "$1" ] && [ $(($(now) - began)) -lt "$2" ]; do
  seen=$(grep '^{BEAT}=' {NOTES}/annotations)
  [ "$seen" = "$last" ] || {{ last=$seen; used=$(now); }}
  sleep 1
done
[ -n "$3" ] || exit 0
host=$KUBERNETES_SERVICE_HOST secrets=/var/run/secrets/kubernetes.io/serviceaccount
case $host in *:*) host="[$host]";; esac
for try in 1 2 3 4 5 6 7 8 9 10; do
  curl -fsS --cacert $secrets/ca.crt -H "Authorization: Bearer $(cat $secrets/token)" -X DELETE \\
    "https://$host:$KUBERNETES_SERVICE_PORT/api/v1/namespaces/$3" && break
  sleep 3
done
"""
#: First program of a privileged Pod.  Its machine has a network namespace of its own, so that the
#: lab's addresses, routes and rules are not among those of the Pod, which stay reachable by a file.
#: /sys is mounted again, because it shows the network of who mounts it (sysfs(5)).
MACHINE = f"""\
mkdir -p {FOLDER}/cgroup
: > {POD_NETWORK}
mount --bind /proc/self/ns/net {POD_NETWORK}
exec unshare --net sh -ec '
mount --rbind /sys/fs/cgroup {FOLDER}/cgroup
umount -l /sys
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mount --rbind {FOLDER}/cgroup /sys/fs/cgroup
umount -l {FOLDER}/cgroup
ip link set dev lo up
exec /{INIT} machine'
"""


@dataclass(frozen=True, slots=True)
class Terms:
    """Limits of the life of a lab: seconds without use, and seconds in all."""

    idle: int
    longest: int


def suffix() -> str:
    """Return five random characters for a name that nothing had before."""
    return secrets.token_hex(3)[:5]


def owner_label(user: str) -> str:
    """Return the value of a label for the name of a user of the cluster.

    Two users have two values, whatever their names are.

    >>> owner_label("jane@example.org")
    'jane-example.org-dd99b4a2'
    """
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", user)[:40].strip("-_.")
    digest = hashlib.sha256(user.encode()).hexdigest()[:8]
    return f"{plain}-{digest}" if plain else digest


def labels(lab: str, owner: str) -> dict[str, str]:
    """Return the labels of all objects of a lab."""
    from importlib import metadata

    version = re.sub(r"[^A-Za-z0-9._-]", "-", metadata.version("container-testbed"))
    return {LAB: lab, OWNER: owner, VERSION: version}


def _metadata(name: str, marks: Mapping[str, str], **more: Any) -> dict[str, Any]:
    return {"name": name, "labels": dict(marks), **more}


def namespace(name: str, marks: Mapping[str, str]) -> dict[str, Any]:
    """Return the namespace of a lab, which may have Pods that configure their network."""
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": _metadata(name, {**marks, ENFORCE: LEVEL}),
    }


def rights(namespace: str, marks: Mapping[str, str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the objects that let the janitor remove the lab's own namespace, with their paths."""
    meta = _metadata(SERVICE_ACCOUNT, marks)
    group = "rbac.authorization.k8s.io"
    rule = {
        "apiGroups": [""],
        "resources": ["namespaces"],
        "resourceNames": [namespace],
        "verbs": ["delete"],
    }
    subject = {"kind": "ServiceAccount", "name": SERVICE_ACCOUNT, "namespace": namespace}
    role = {"apiGroup": group, "kind": "Role", "name": SERVICE_ACCOUNT}
    core = f"/api/v1/namespaces/{namespace}"
    rbac = f"/apis/{group}/v1/namespaces/{namespace}"
    binding = {"subjects": [subject], "roleRef": role}
    return [
        (
            f"{core}/serviceaccounts",
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta},
        ),
        (
            f"{rbac}/roles",
            {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": meta, "rules": [rule]},
        ),
        (
            f"{rbac}/rolebindings",
            {"apiVersion": f"{group}/v1", "kind": "RoleBinding", "metadata": meta, **binding},
        ),
    ]


def janitor(
    name: str,
    marks: Mapping[str, str],
    image: str,
    terms: Terms,
    own_namespace: str,
    *,
    size: Mapping[str, Mapping[str, str]] = SIZES[0],
) -> dict[str, Any]:
    """Return the Job that owns a lab.

    ``size`` is one of :data:`SIZES`.  ``own_namespace`` is the namespace that goes with the lab;
    empty for one that stays.
    """
    argv = ["sh", "-c", JANITOR, "sh", str(terms.idle), str(terms.longest), own_namespace]
    notes = {BEAT: "0", IDLE: str(terms.idle)}
    file = {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "enableServiceLinks": False,
        "automountServiceAccountToken": bool(own_namespace),
        "containers": [
            {
                "name": "janitor",
                "image": image,
                "imagePullPolicy": "IfNotPresent",
                "command": argv,
                "resources": {kind: dict(amounts) for kind, amounts in size.items()},
                "securityContext": {"allowPrivilegeEscalation": False},
                "volumeMounts": [{"name": "notes", "mountPath": NOTES}],
            }
        ],
        "volumes": [{"name": "notes", "downwardAPI": {"items": [file]}}],
    }
    if own_namespace:
        pod["serviceAccountName"] = SERVICE_ACCOUNT
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(name, marks),
        "spec": {
            "backoffLimit": AGAIN,
            "activeDeadlineSeconds": terms.longest + LATER,
            "ttlSecondsAfterFinished": LEFT,
            "template": {
                "metadata": {"labels": dict(marks), "annotations": notes},
                "spec": pod,
            },
        },
    }


def janitor_pod(job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Pod that the cluster creates for the Job, with the Job's name."""
    template = job["spec"]["template"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": job["metadata"]["name"], **template["metadata"]},
        "spec": template["spec"],
    }


def node(
    name: str,
    marks: Mapping[str, str],
    owner: Mapping[str, str],
    *,
    machine: str,
    digest: str,
    image: str,
    privileged: bool,
    cpus: float | None = None,
    memory: int | None = None,
    host: str = "",
) -> dict[str, Any]:
    """Return the Pod of a node.

    ``machine`` is the node's name, ``owner`` has the name and the UID of the Job, ``memory`` is in
    bytes.  ``host`` names the cluster's node on which it must run; empty for any.
    """
    limits: dict[str, str] = {}
    if cpus is not None:
        limits["cpu"] = f"{max(1, round(cpus * 1000))}m"
    if memory is not None:
        limits["memory"] = str(memory)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "resources": {"limits": limits, "requests": limits},
        "securityContext": {"capabilities": {"add": list(WIRING)}},
    }
    volumes = []
    if privileged:
        container["securityContext"] = {"privileged": True}
        container["command"] = ["sh", "-ec", MACHINE]
        # An engine on the node needs a file system that is no overlay.
        container["volumeMounts"] = [
            {"name": f"data{number}", "mountPath": place} for number, place in enumerate(VOLUMES)
        ]
        volumes = [{"name": one["name"], "emptyDir": {}} for one in container["volumeMounts"]]
    refers = {"apiVersion": "batch/v1", "kind": "Job", **owner}
    mine = {**marks, NODE: machine}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(name, mine, annotations={DIGEST: digest}, ownerReferences=[refers]),
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE,
            "hostname": machine,
            "enableServiceLinks": False,
            "automountServiceAccountToken": False,
            # A node knows the lab's names alone, by its /etc/hosts.
            "dnsPolicy": "None",
            "dnsConfig": {"nameservers": ["127.0.0.1"]},
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {
                        "matchLabels": {LAB: marks[LAB], OWNER: marks[OWNER]},
                        "matchExpressions": [{"key": NODE, "operator": "Exists"}],
                    },
                }
            ],
            **({"affinity": _only_on(host)} if host else {}),
            "containers": [container],
            "volumes": volumes,
        },
    }


def _only_on(host: str) -> dict[str, Any]:
    """Return the affinity for one node of the cluster.

    The scheduler still looks at room and taints there, as it does for the Pods of a DaemonSet
    (Kubernetes documentation, "How Daemon Pods are scheduled").  ``nodeName`` would pass it by.
    """
    field = {"key": "metadata.name", "operator": "In", "values": [host]}
    terms = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
