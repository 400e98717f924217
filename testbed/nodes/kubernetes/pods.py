"""A lab's Pods as the API describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from testbed.nodes.kubernetes import CONTAINER, DIGEST, NODE

#: Reasons for which a container waits, and none of them passes by itself within minutes
#: (kubernetes/pkg/kubelet/images/types.go, kuberuntime_manager.go).
STUCK = {
    "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull", "ErrImagePull",
    "ImageInspectError", "ImagePullBackOff", "InvalidImageName", "RunContainerError",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pod:
    """One Pod: ``node`` is the lab's node, ``worker`` the cluster's node that it runs on.

    ``address`` is empty until it has one.  ``waits`` is the reason that it does not run yet,
    ``stuck`` tells that it will not by itself, ``ended`` is the reason that it has ended, ``lost``
    tells that this is its cluster node's silence, which may pass.
    ``limits`` are those of its resources, with the cluster's own defaults.
    """

    name: str
    uid: str
    node: str
    digest: str
    image: str = ""
    worker: str = ""
    address: str = ""
    privileged: bool = False
    running: bool = False
    waits: str = ""
    stuck: bool = False
    unschedulable: bool = False
    ended: str = ""
    lost: bool = False
    limits: tuple[tuple[str, str], ...] = ()


class Found:
    """The Pods of a lab's nodes, kept up to date by changes."""

    def __init__(self) -> None:
        self._pods: dict[str, dict[str, Pod]] = {}  # by node and UID
        self._nodes: dict[str, str] = {}  # by UID

    def take(self, uid: str, item: Mapping[str, Any] | None) -> str:
        """Note a Pod, or that it is gone; return its node, or "" for a Pod of no node."""
        if item is None:
            node = self._nodes.pop(uid, "")
            self._pods.get(node, {}).pop(uid, None)
            return node
        pod = read(item)
        if pod.node:
            self._nodes[uid] = pod.node
            self._pods.setdefault(pod.node, {})[uid] = pod
        return pod.node

    def pod(self, node: str) -> Pod | None:
        """Return the Pod of a node.

        One that has ended, or is being removed, may be there still beside the present one.
        """
        pods = self._pods.get(node, {}).values()
        return next((pod for pod in pods if not pod.ended), next(iter(pods), None))

    def all(self) -> dict[str, Pod]:
        """Return the Pods by node."""
        found = {node: self.pod(node) for node in self._pods}
        return {node: pod for node, pod in found.items() if pod is not None}


def read(item: Mapping[str, Any]) -> Pod:
    """Return the Pod of an object of the API."""
    meta, status, spec = item["metadata"], item.get("status", {}), item.get("spec", {})
    wanted = _container(spec.get("containers") or ())
    container = _container(status.get("containerStatuses") or ())
    state: Mapping[str, Any] = container.get("state") or {}
    waiting = state.get("waiting") or {}
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled", {})
    unschedulable = scheduled.get("status") == "False"
    phase = status.get("phase", "Pending")
    return Pod(
        name=meta["name"],
        uid=meta["uid"],
        node=(meta.get("labels") or {}).get(NODE, ""),
        digest=(meta.get("annotations") or {}).get(DIGEST, ""),
        image=str(wanted.get("image") or ""),
        worker=spec.get("nodeName", ""),
        address=_address(status),
        privileged=bool((wanted.get("securityContext") or {}).get("privileged")),
        running=phase == "Running"
        and "running" in state
        and "deletionTimestamp" not in meta
        and not is_lost(item),
        waits=str(
            scheduled.get("message", "")
            if unschedulable
            else waiting.get("message") or waiting.get("reason") or ""
        ),
        stuck=waiting.get("reason") in STUCK,
        unschedulable=unschedulable,
        ended=_end(item, state),
        lost=is_lost(item),
        limits=tuple(sorted(((wanted.get("resources") or {}).get("limits") or {}).items())),
    )


def is_lost(item: Mapping[str, Any]) -> bool:
    """Tell whether the cluster's node of a Pod does not answer.

    The cluster then says that the Pod is not Ready, and leaves the rest of its status as the node
    has told it (kubernetes/pkg/controller/util/node/controller_utils.go, MarkPodsNotReady).  The
    node itself says it with a reason (kubernetes/pkg/kubelet/status/generate.go).
    """
    status = item.get("status", {})
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    ready = conditions.get("Ready", {})
    silent = ready.get("status") == "False" and not ready.get("reason")
    told = any(one.get("ready") for one in status.get("containerStatuses") or ())
    return told and status.get("phase") == "Running" and silent


def _address(status: Mapping[str, Any]) -> str:
    """Return a Pod's IPv4 address, which need not be its first one; else its IPv6 address."""
    all_of_it = [str(one.get("ip", "")) for one in status.get("podIPs") or ()]
    first = str(status.get("podIP", ""))
    return next((one for one in (first, *all_of_it) if "." in one), first)


def _container(statuses: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((one for one in statuses if one.get("name") == CONTAINER), {})


def _end(item: Mapping[str, Any], state: Mapping[str, Any]) -> str:
    """Return why a Pod has ended, in words; empty for one that has not."""
    status = item.get("status", {})
    phase = status.get("phase", "Pending")
    if phase in {"Failed", "Succeeded"}:
        words = [status.get("reason"), status.get("message")]
        if done := state.get("terminated"):
            words.append(f"{done.get('reason', '')} (exit status {done.get('exitCode')})".strip())
        return ": ".join(str(word) for word in words if word) or phase
    if "deletionTimestamp" in item["metadata"]:
        return "it is being deleted"
    return f"{item['spec'].get('nodeName')} does not answer" if is_lost(item) else ""
