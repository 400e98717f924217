"""The nodes of a cluster, from a kubeconfig, as machines of a topology."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import yaml

from testbed.artifacts.node_image import NAME
from testbed.errors import MachineError, UsageError
from testbed.nodes.attachable import Listed
from testbed.nodes.kubernetes import settings
from testbed.nodes.kubernetes.cluster import Cluster, Refused

#: Keys of a kubeconfig (k8s.io/client-go, tools/clientcmd/api/v1, Config).
KEYS = ("clusters", "contexts", "users")


def read(path: str, text: str, chosen: Mapping[str, str]) -> Listed | None:
    """Return the nodes of the cluster of a kubeconfig; None for a file of another kind.

    ``path`` is absolute, or empty for standard input.  ``chosen`` has the options on the command
    line.  The cluster is asked.  Raises UsageError, MachineError, NoAnswer, Refused.
    """
    if not _is_kubeconfig(text):
        return None
    if not path:
        raise UsageError(
            "a kubeconfig must be a file, because it is read at each connection",
            hint="testbed attach ~/.kube/config",
        )
    given = settings.of({name: value for name, value in chosen.items() if name == "image"})
    context = chosen.get("context") or given.context
    cluster = Cluster(path, context)
    context = cluster.current()
    machines: dict[str, Mapping[str, Any]] = {}
    words, left = {}, {}
    for node in _nodes(cluster):
        name = str(node["metadata"]["name"])
        info = (node.get("status") or {}).get("nodeInfo") or {}
        system = str(info.get("operatingSystem") or "linux")
        if system != "linux":
            left[name] = f"its operating system is {system}"
            continue
        machines[name] = {}
        runtime = str(info.get("containerRuntimeVersion") or "").replace("://", " ")
        words[name] = [runtime] if runtime else []
    shared = {"kubeconfig": path, "context": context}
    shared |= {"namespace": given.namespace} if given.namespace else {}
    shared |= {"image": given.image} if given.image != NAME else {}
    what = f"nodes of the cluster of the context {context}"
    return Listed(what, machines, shared, left, words, name=context)


def _is_kubeconfig(text: str) -> bool:
    # A large file of another kind is not parsed.
    if not all(key in text for key in KEYS):
        return False
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return False
    return isinstance(data, dict) and all(key in data for key in KEYS)


def _nodes(cluster: Cluster) -> list[dict[str, Any]]:
    try:
        return cluster.items("list its nodes", "/api/v1/nodes", {})
    except Refused as error:
        if error.status != HTTPStatus.FORBIDDEN:
            raise
        raise MachineError(
            error.message,
            missing=["list nodes"],
            hint="ask for a ClusterRole with the verbs get and list of nodes",
        ) from error
