"""One lab in its cluster: its objects are created, found and removed."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.errors import LabError, MachineError, TimeoutExpired, UsageError
from testbed.nodes.base import NodeSpec
from testbed.nodes.kubernetes import BEAT, IDLE, LAB, NODE, OWNER, manifests
from testbed.nodes.kubernetes.cluster import MERGE, Refused
from testbed.nodes.kubernetes.entrance import Entrance
from testbed.nodes.kubernetes.pods import Found, is_lost
from testbed.nodes.kubernetes.watching import Wanted, changes
from testbed.polling import until
from testbed.topology.load import place

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.nodes.kubernetes.cluster import Cluster
    from testbed.nodes.kubernetes.manifests import Terms
    from testbed.nodes.kubernetes.pods import Pod
    from testbed.nodes.kubernetes.remembered import Place
    from testbed.nodes.kubernetes.watching import Change
    from testbed.topology.model import Topology

START = 180.0  # seconds for all Pods to run, with a pull of the image
NO_ROOM = 15.0  # seconds that no node of the cluster may have room
READY = 20.0  # seconds for a new namespace to have its service account
END = 60.0  # seconds for all of a lab to be gone
EACH = 0.2  # seconds more for each Pod: a cluster starts and ends many one after the other
PAUSE = 0.1  # seconds
THREADS = 16  # requests at once
#: Verbs and resources, with their API groups, that a lab needs in its namespace.
RIGHTS = (
    ("create", "", "pods"), ("list", "", "pods"), ("patch", "", "pods"), ("delete", "", "pods"),
    ("create", "", "pods/exec"), ("create", "batch", "jobs"), ("list", "batch", "jobs"),
    ("delete", "batch", "jobs"),
)  # fmt: skip
#: Those of a lab that has a namespace of its own, too.
OWN_RIGHTS = (("get", "", "namespaces"), ("delete", "", "namespaces"))
DRY = {"dryRun": "All"}
TRY = "testbed-try"  # name of objects of a dry run
#: Words of a LimitRange's refusal, after which the numbers come (kubernetes/plugin/pkg/admission/
#: limitranger/admission.go).
LIMITED = re.compile(r"per (Container|Pod) is")
ELSEWHERE = "set TESTBED_KUBE_NAMESPACE to a namespace in which you have the ClusterRole `admin`"


@dataclass(frozen=True, slots=True)
class Janitor:
    """The Job that owns a lab: the image of the lab's Pods, and its seconds without use."""

    name: str
    uid: str
    image: str
    idle: int


class Site:
    """The objects of one lab.

    ``place`` is where they are or will be.  ``idle`` is the time in seconds without use after which
    the janitor removes the lab.
    """

    #: What a user does for another image, for less room, and for limits of Pods, in hints.
    image_by: ClassVar[str] = "--image"
    room_by: ClassVar[str] = "use fewer nodes, smaller `cpus` and `memory`"
    limits_by: ClassVar[str] = "set `cpus` and `memory` of the nodes"

    def __init__(self, lab: str, place: Place, cluster: Cluster) -> None:
        self.lab = lab
        self.place = place
        self.cluster = cluster
        self.idle = 60  # until the cluster has told it
        self._size = manifests.SIZES[0]
        self._core = f"/api/v1/namespaces/{place.namespace}"
        self._jobs = f"/apis/batch/v1/namespaces/{place.namespace}/jobs"
        self._marks = manifests.labels(lab, place.owner)
        self._mine = {LAB: lab, OWNER: place.owner}

    # -- looking --------------------------------------------------------------

    def _listed(self, node: str = "") -> list[dict[str, Any]]:
        chosen = self._mine | ({NODE: node} if node else {})
        return self.cluster.items("list Pods", f"{self._core}/pods", chosen)

    def pods(self) -> dict[str, Pod]:
        """Return the Pods of the lab's nodes, running or not, by node."""
        return self._nodes(self._listed())

    def pod(self, node: str) -> Pod | None:
        """Return the Pod of one node, running or not."""
        return self._nodes(self._listed(node)).get(node)

    def used(self) -> dict[str, Pod]:
        """Return :meth:`pods`, and tell the janitor that the lab is in use."""
        items = self._listed()
        now = time.time()
        for item in items:
            meta = item["metadata"]
            notes = meta.get("annotations") or {}
            if NODE in meta["labels"] or IDLE not in notes:
                continue
            self.idle = int(notes[IDLE])
            if abs(now - int(notes[BEAT])) < self.idle / 10:
                continue
            with contextlib.suppress(LabError):  # the next command tells it
                self.cluster.ask(
                    "tell that the lab is in use",
                    "PATCH",
                    f"{self._core}/pods/{meta['name']}",
                    {"metadata": {"annotations": {BEAT: str(int(now))}}},
                    kind=MERGE,
                )
        return self._nodes(items)

    @staticmethod
    def _nodes(items: Iterable[Mapping[str, Any]]) -> dict[str, Pod]:
        found = Found()
        for item in items:
            found.take(item["metadata"]["uid"], item)
        return found.all()

    def entrance(
        self, pod: Pod, agent: Callable[[], Path], ended: Callable[[str], LabError]
    ) -> Entrance:
        """Return the way into a Pod.  ``agent`` and ``ended`` are as in :class:`Entrance`."""
        return Entrance(
            pod,
            namespace=self.place.namespace,
            cluster=self.cluster,
            now=lambda: self.pod(pod.node),
            agent=agent,
            ended=ended,
        )

    def _changes(self, seconds: float, node: str = "") -> Iterator[Change | None]:
        chosen = self._mine | ({NODE: node} if node else {})
        pods = Wanted(self.cluster, "list Pods", f"{self._core}/pods", chosen)
        return changes(pods, seconds)

    def janitor(self) -> Janitor | None:
        """Return the Job that owns the lab."""
        for job in self.cluster.items("list Jobs", self._jobs, self._mine):
            meta, template = job["metadata"], job["spec"]["template"]
            if not ends(job):
                idle = int(template["metadata"]["annotations"][IDLE])
                image = template["spec"]["containers"][0]["image"]
                return Janitor(meta["name"], meta["uid"], image, idle)
        return None

    # -- making ---------------------------------------------------------------

    def try_rights(
        self, image: str, terms: Terms, specs: Iterable[NodeSpec] = (), *, privileged: bool
    ) -> None:
        """Check that the cluster would let this user create the lab; create nothing.

        ``specs`` are the nodes, ``privileged`` tells that one needs it.  Raises MachineError with
        what to do.
        """
        name, own = self.place.namespace, self.place.own
        if own:
            body = manifests.namespace(name, self._marks)
            self._post("create a namespace", "/api/v1/namespaces", body, dry=True)
        rights = (*RIGHTS, *OWN_RIGHTS) if own else RIGHTS
        with ThreadPoolExecutor(len(rights)) as pool:
            allowed = pool.map(self._may, rights)
            missing = [
                f"{verb} {resource}"
                for (verb, _, resource), may in zip(rights, allowed, strict=True)
                if not may
            ]
        if missing:
            raise MachineError(
                f"in the namespace {name}, you may not: {', '.join(missing)}",
                missing=missing,
                hint=ELSEWHERE
                if own
                else "ask for the ClusterRole `admin` there, by a RoleBinding",
            )
        if not own:
            self._try_objects(image, terms, specs, privileged=privileged)

    def find_hosts(self, topology: Topology) -> None:
        """Check that the cluster has the nodes on which nodes of the lab must run.

        A user who may not look at the cluster's nodes learns it from the scheduler, by
        :meth:`started`.  Raises UsageError.
        """
        wanted = {one.host: name for name, one in topology.nodes.items() if one.host}
        for host, node in sorted(wanted.items()):
            path = f"/api/v1/nodes/{host}"
            try:
                there = self.cluster.ask("find a node of the cluster", "GET", path, missing=True)
            except Refused as error:
                if error.status == HTTPStatus.FORBIDDEN:
                    return
                raise
            if not there:
                raise UsageError(
                    f"the cluster has no node {host}, on which {node} is to run",
                    where=place(topology, "nodes", node, "on"),
                    hint="`kubectl get nodes` lists them",
                )

    def _may(self, right: tuple[str, str, str]) -> bool:
        verb, group, resource = right
        resource, _, sub = resource.partition("/")
        asked = {"namespace": self.place.namespace, "verb": verb, "group": group}
        asked |= {"resource": resource, "subresource": sub}
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        answer = self.cluster.ask("ask for rights", "POST", path, review)
        return bool(answer.get("status", {}).get("allowed"))

    def _try_objects(
        self, image: str, terms: Terms, specs: Iterable[NodeSpec], *, privileged: bool
    ) -> None:
        """Let the cluster judge the Job and a Pod of each size, as if they were created."""
        owner = {"name": "none", "uid": "00000000-0000-0000-0000-000000000000"}
        self._post("create a Job", self._jobs, self._job(TRY, image, terms), dry=True)
        self._size = self._size_of_janitor(image, terms)
        sizes: dict[object, NodeSpec] = {}
        for spec in specs:
            sizes.setdefault((spec.cpus, spec.memory), spec)
        for spec in sizes.values() or [NodeSpec("try", "")]:
            pod = self._pod(TRY, owner, spec, image, privileged=privileged)
            self._post(f"create the Pod of {spec.name}", f"{self._core}/pods", pod, dry=True)

    def _size_of_janitor(self, image: str, terms: Terms) -> Mapping[str, Mapping[str, str]]:
        """Return the first size of the janitor that the LimitRanges of the namespace allow.

        A Job of another size would be created, and never have a Pod.  Raises MachineError.
        """
        *others, last = manifests.SIZES
        for size in others:
            pod = manifests.janitor_pod(self._job(TRY, image, terms, size=size))
            try:
                self._post("create the janitor's Pod", f"{self._core}/pods", pod, dry=True)
            except MachineError as error:
                if not LIMITED.search(error.message):
                    raise
            else:
                return size
        pod = manifests.janitor_pod(self._job(TRY, image, terms, size=last))
        self._post("create the janitor's Pod", f"{self._core}/pods", pod, dry=True)
        return last

    def _pod(
        self, name: str, owner: Mapping[str, str], spec: NodeSpec, image: str, *, privileged: bool
    ) -> dict[str, Any]:
        """Return the Pod of a node.  ``owner`` is as in :func:`manifests.node`."""
        return manifests.node(
            name, self._marks, owner,
            machine=spec.name, digest=spec.digest, image=image, privileged=privileged,
            cpus=spec.cpus, memory=spec.memory, host=spec.host,
        )  # fmt: skip

    def _job(
        self,
        name: str,
        image: str,
        terms: Terms,
        own: str = "",
        size: Mapping[str, Mapping[str, str]] | None = None,
    ) -> dict[str, Any]:
        chosen = self._size if size is None else size
        return manifests.janitor(name, self._marks, image, terms, own, size=chosen)

    def make(
        self, image: str, terms: Terms, specs: Iterable[NodeSpec] = (), *, privileged: bool
    ) -> None:
        """Create the lab's namespace, if it is its own, and its janitor.

        The arguments are those of :meth:`try_rights`, which comes first.
        """
        own = ""
        if self.place.own:
            own = self.place.namespace
            body = manifests.namespace(own, self._marks)
            self._post("create a namespace", "/api/v1/namespaces", body)
            try:
                for path, body in manifests.rights(own, self._marks):
                    self.cluster.ask("give rights to the janitor", "POST", path, body)
            except Refused:
                own = ""  # the janitor removes all but the empty namespace
            self._try_objects(image, terms, specs, privileged=privileged)
        job = f"{self.lab}-janitor-{manifests.suffix()}"
        self._post("create a Job", self._jobs, self._job(job, image, terms, own))

    def create(self, specs: Iterable[NodeSpec], privileged: Collection[str]) -> None:
        """Create the Pods of nodes; ``privileged`` names those that need it."""
        janitor = self.janitor()
        if janitor is None:
            raise LabError(
                f"the janitor of lab {self.lab} is gone: the lab has expired, or somebody removed "
                "it",
                hint=f"`testbed down {self.lab}`, then repeat the `up`",
            )

        owner = {"name": janitor.name, "uid": janitor.uid}
        specs = list(specs)
        self._clear({spec.name for spec in specs})

        def one(spec: NodeSpec) -> None:
            first = "" if self.place.own else f"{self.lab}-"
            name = f"{first}{spec.name}-{manifests.suffix()}"
            needs = spec.name in privileged
            body = self._pod(name, owner, spec, janitor.image, privileged=needs)
            self._post(f"create the Pod of {spec.name}", f"{self._core}/pods", body)

        with ThreadPoolExecutor(THREADS) as pool:
            for made in [pool.submit(one, spec) for spec in specs]:
                made.result()

    def _clear(self, names: Collection[str]) -> None:
        """Delete Pods of nodes that have ended; one on a lost node could come back with it."""
        items = [item for item in self._listed() if item["metadata"]["labels"].get(NODE) in names]
        self._delete_pods(items)

    def started(self, names: Collection[str]) -> dict[str, Pod]:
        """Wait until the Pods of nodes run, and return them.

        Raises LabError for a Pod that cannot, or has ended, TimeoutExpired.
        """
        found, waiting = Found(), set(names)
        listed, no_room_since = False, None
        longest = START + EACH * len(names)
        only = next(iter(names)) if len(names) == 1 else ""
        for change in self._changes(longest, only):
            due: Collection[str] = {found.take(*change)} & {*names} if change else names
            listed = listed or change is None
            for name in due if listed else ():
                if self._runs(name, found.pod(name)):
                    waiting.discard(name)
                else:
                    waiting.add(name)
            if listed and not waiting:
                there = found.all()
                return {name: there[name] for name in names}
            if change is None:
                no_room_since = self._refuse_full(found, waiting, no_room_since)
        late = [pod for name in sorted(waiting) if (pod := found.pod(name))]
        said = "; ".join(f"{pod.node}: {pod.ended or pod.waits or 'Pending'}" for pod in late[:3])
        raise TimeoutExpired(
            f"{len(late)} Pods of {self.lab} do not run within {longest:g} s ({said})",
            hint=f"kubectl -n {self.place.namespace} describe pod {late[0].name}",
        )

    def _runs(self, node: str, pod: Pod | None) -> bool:
        """Tell whether the Pod of a node runs.  Raises LabError if it never will."""
        if pod is None:
            raise LabError(f"the Pod of {node} was deleted while it was created")
        self._refuse_broken(pod)
        return pod.running and bool(pod.address)

    @staticmethod
    def _refuse_full(found: Found, waiting: Iterable[str], since: float | None) -> float | None:
        """Return the time since which no node of the cluster takes one of the Pods, or None.

        Raises LabError when it is too long ago.
        """
        pods = filter(None, map(found.pod, waiting))
        full = next((pod for pod in pods if pod.unschedulable), None)
        if full is None:
            return None
        since = time.monotonic() if since is None else since
        if time.monotonic() - since > NO_ROOM:
            raise LabError(
                f"no node of the cluster takes the Pod of {full.node}: {full.waits}",
                hint="use fewer nodes, smaller `cpus` and `memory`, other values of `on`, or a "
                "larger cluster",
            )
        return since

    def _refuse_broken(self, pod: Pod) -> None:
        if pod.ended and not pod.lost:
            raise LabError(f"the Pod of {pod.node} has ended: {pod.ended}")
        if pod.stuck:
            raise LabError(
                f"{pod.node} cannot start on {pod.worker}: {pod.waits}",
                hint=f"the cluster must be able to pull {pod.image}: `testbed image push` "
                f"pushes it to your registry, and prints its name for {self.image_by}",
            )

    def _post(self, what: str, path: str, body: Mapping[str, Any], *, dry: bool = False) -> None:
        """Create an object, or let the cluster judge it.

        A new namespace is waited for.  Raises MachineError for a refusal, with what to do.
        """
        deadline = time.monotonic() + READY
        while True:
            try:
                self.cluster.ask(what, "POST", path, body, query=DRY if dry else None)
            except Refused as error:
                early = "error looking up service account" in error.words
                if not early or time.monotonic() > deadline:
                    raise self._explained(error) from error
                time.sleep(PAUSE)
            else:
                return

    def _explained(self, error: Refused) -> MachineError:
        """Return the error for a refusal, with what to do about it."""
        name, words = self.place.namespace, error.words
        if "PodSecurity" in words:
            hint = f"kubectl label namespace {name} {manifests.ENFORCE}={manifests.LEVEL}"
        elif "exceeded quota" in words:
            hint = f"{self.room_by}, or ask for a larger quota"
        elif LIMITED.search(words):
            hint = (
                f"{self.limits_by}; `kubectl describe limitrange -n {name}` shows what is allowed"
            )
        elif "failed quota" in words:  # the quota counts what the Pod does not state
            hint = f"{self.limits_by}: the namespace has a quota for them"
        elif error.status == HTTPStatus.FORBIDDEN and self.place.own:
            hint = ELSEWHERE
        elif error.status == HTTPStatus.NOT_FOUND:
            hint = f"kubectl create namespace {name}"
        elif error.status == HTTPStatus.UNAUTHORIZED and error.hint:
            hint = error.hint
        else:
            hint = f"kubectl auth can-i --list -n {name}"
        return MachineError(error.message, missing=[error.reason or "rights"], hint=hint)

    # -- removing -------------------------------------------------------------

    def remove_nodes(self, names: Collection[str]) -> None:
        """Remove the Pods of nodes, and wait until they are gone."""
        items = [item for item in self._listed() if item["metadata"]["labels"].get(NODE) in names]
        self._delete_pods(items)
        self._gone(len(items), {item["metadata"]["uid"] for item in items})

    def _delete_pods(self, items: Iterable[Mapping[str, Any]]) -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for deleted in [pool.submit(self._delete_pod, item) for item in items]:
                deleted.result()

    def _delete_pod(self, item: Mapping[str, Any]) -> None:
        """Delete a Pod; at once if its node does not answer, which ends it when it is back."""
        meta = item["metadata"]
        path = f"{self._core}/pods/{meta['name']}"
        self._delete(path, meta["uid"], **({"gracePeriodSeconds": 0} if is_lost(item) else {}))

    def _delete(self, path: str, uid: str, **more: int) -> None:
        """Delete an object if it is the one with this UID; its dependents go after it.

        ``more`` are other options of a deletion.  Raises Refused, NoAnswer.
        """
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
            **more,
        }
        try:
            self.cluster.ask("delete an object", "DELETE", path, options, missing=True)
        except Refused as error:
            if error.status != HTTPStatus.CONFLICT:  # another object has the name by now
                raise

    def remove(self) -> None:
        """Remove all of the lab, and wait until it is gone.

        Raises Refused, also if all but the lab's own namespace could be removed.
        """
        refused = None
        if self.place.own:
            try:
                self.remove_namespace()
            except Refused as error:
                refused = error
        for job in self.cluster.items("list Jobs", self._jobs, self._mine):
            meta = job["metadata"]
            self._delete(f"{self._jobs}/{meta['name']}", meta["uid"])
        items = self._listed()
        self._delete_pods(items)
        self._gone(len(items))
        if not until(lambda: not self.janitor(), END, pause=PAUSE):
            raise self._stays("the janitor", END)
        if refused is not None:
            raise refused

    def remove_namespace(self) -> None:
        """Let the cluster remove the lab's own namespace, with all in it.  Raises Refused."""
        path = f"/api/v1/namespaces/{self.place.namespace}"
        found = self.cluster.ask("find the lab's namespace", "GET", path, missing=True)
        meta = found.get("metadata") or {}
        if self._mine.items() <= (meta.get("labels") or {}).items():
            self._delete(path, meta["uid"])

    def _gone(self, count: int, uids: Collection[str] | None = None) -> None:
        """Wait until Pods with these UIDs are gone, or all of the lab; there are ``count``."""
        longest = END + EACH * count
        there: set[str] = set()
        listed = False
        for change in self._changes(longest):
            listed = listed or change is None
            if change is not None:
                uid, item = change
                if item is None:
                    there.discard(uid)
                elif uids is None or uid in uids:
                    there.add(uid)
                    if is_lost(item):  # it has been found only now
                        self._delete_pod(item)
            if listed and not there:
                return
        raise self._stays(f"{len(there)} Pods", longest)

    def _stays(self, what: str, seconds: float) -> TimeoutExpired:
        return TimeoutExpired(
            f"{what} of {self.lab} are still there {seconds:g} s after they were deleted",
            hint=f"kubectl -n {self.place.namespace} get pods,jobs; the cluster removes them as "
            "soon as their node answers",
        )


def ends(item: Mapping[str, Any]) -> bool:
    """Tell whether an object is being removed, or is a Job that has ended, which follows soon."""
    conditions = item.get("status", {}).get("conditions") or ()
    done = (one["type"] for one in conditions if one.get("status") == "True")
    return "deletionTimestamp" in item["metadata"] or not {"Complete", "Failed"}.isdisjoint(done)
