"""The places in clusters of the labs of one state folder."""

from __future__ import annotations

import contextlib
import os
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

from testbed.errors import LabError, MachineError, NoAnswer, TestbedError, UsageError
from testbed.nodes.kubernetes import CONTEXT
from testbed.nodes.kubernetes.remembered import Place

# Modules for clusters are imported where needed: other labs don't load them.

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from testbed.nodes.base import NodeSpec
    from testbed.nodes.kubernetes.cluster import Cluster
    from testbed.nodes.kubernetes.remembered import Remembered
    from testbed.nodes.kubernetes.settings import Settings
    from testbed.nodes.kubernetes.site import Site

PER_IDLE = 3  # signs of use in the time after which an unused lab is removed


class Sites:
    """Finds, creates, keeps and removes the sites of labs.

    ``remembered`` has the places of those that were created with this state folder.
    """

    #: What to do about a lab of the same name that another state folder has created, as a hint.
    taken: ClassVar[str] = f"use another name (--name), or set {CONTEXT} to use that lab here"

    def __init__(self, remembered: Remembered) -> None:
        self.remembered = remembered
        self._clusters: dict[tuple[str, str, float], Cluster] = {}
        self._beating: dict[str, threading.Event] = {}  # of labs; ends the thread
        self._lock = threading.Lock()

    def site(self, lab: str, place: Place) -> Site:
        """Return the site of a lab at a place; nothing is asked."""
        from testbed.nodes.kubernetes.site import Site

        return Site(lab, place, self.cluster(place))

    # -- finding ----------------------------------------------------------

    def cluster(self, given: Settings | Place, patience: float | None = None) -> Cluster:
        """Return the cluster of settings or of a place."""
        from testbed.nodes.kubernetes.cluster import PATIENCE, Cluster

        seconds = PATIENCE if patience is None else patience
        key = (given.kubeconfig, given.context, seconds)
        made = Cluster(given.kubeconfig, given.context, patience=seconds)
        return self._clusters.setdefault(key, made)

    def find(self, lab: str) -> Site | None:
        """Return where a lab is; None if it has no place that we know."""
        place = self.remembered.place(lab)
        if place is None and CONTEXT in os.environ:
            # A lab of another provider needs no cluster that answers.
            with contextlib.suppress(LabError, MachineError, UsageError):
                place = self.elsewhere().get(lab)
        return None if place is None else self.site(lab, place)

    def elsewhere(self) -> dict[str, Place]:
        """Return the places of this user's labs in the cluster that the user names.

        Another machine may have created them.  Without a name in the environment, no cluster is
        asked, so labs of other providers pay nothing; with one, it is not waited for.
        """
        if CONTEXT not in os.environ:
            return {}
        from testbed.nodes.kubernetes import settings
        from testbed.nodes.kubernetes.labs import labs_in

        given = settings.of()
        return labs_in(self.cluster(given, patience=0), given)

    # -- creating and keeping ---------------------------------------------

    def make(
        self,
        lab: str,
        given: Settings,
        *,
        expired: Site | None,
        privileged: bool,
        specs: Sequence[NodeSpec] = (),
        check: Callable[[Site], None] = lambda _: None,
    ) -> Site:
        """Create the place of a lab, after a check that the cluster allows the lab.

        ``expired`` is the place of a lab whose janitor has ended, ``specs`` are the nodes,
        ``privileged`` tells that one needs a privileged Pod, and ``check`` raises an error for
        what the cluster lacks.  Raises UsageError, MachineError, LabError.
        """
        from testbed.nodes.kubernetes import manifests
        from testbed.nodes.kubernetes.cluster import Refused
        from testbed.nodes.kubernetes.labs import abandoned, labs_in

        if expired is not None:
            expired.remove()  # the cluster has removed its Job, and may be about to remove the rest
        cluster = self.cluster(given)
        try:
            for left in abandoned(cluster, given):  # by a killed `up` of any machine
                left.remove_namespace()
            others = labs_in(cluster, given)
        except Refused as error:
            if error.status != HTTPStatus.FORBIDDEN:
                raise
            others = {}  # who may not look may still create; what is missing is told below
        if expired is None and lab in others:
            raise UsageError(
                f"you have a lab {lab} in the namespace {others[lab].namespace} already, created "
                "with another state folder",
                hint=self.taken,
            )
        own = not given.namespace
        name = given.namespace or f"testbed-{lab}-{manifests.suffix()}"
        owner = manifests.owner_label(cluster.user())
        place = Place(given.kubeconfig, cluster.current(), name, own, owner)
        site = self.site(lab, place)
        check(site)
        site.try_rights(given.image, given.terms, specs, privileged=privileged)
        self.remembered.keep(lab, place)  # first, so that what a killed `up` leaves is found
        try:
            site.make(given.image, given.terms, specs, privileged=privileged)
        except TestbedError:
            with contextlib.suppress(LabError, MachineError):  # `down` tries it again
                site.remove()
                self.remembered.forget(lab)
            raise
        return site

    def keep_used(self, site: Site) -> None:
        """Tell the janitor of a lab, while this process runs, that the lab is in use."""
        with self._lock:
            if site.lab in self._beating:
                return
            ended = self._beating[site.lab] = threading.Event()

        def beat() -> None:
            while not ended.wait(site.idle / PER_IDLE):
                with contextlib.suppress(TestbedError):  # tried again
                    site.used()

        threading.Thread(target=beat, name="testbed-beat", daemon=True).start()

    # -- removing ---------------------------------------------------------

    def remove(self, site: Site) -> None:
        """Remove all of a lab, and forget its place.  Raises NoAnswer, Refused, MachineError."""
        from testbed.nodes.kubernetes.cluster import Refused

        try:
            site.remove()
        except (NoAnswer, Refused, MachineError) as error:
            file = self.remembered.file(site.lab)
            if file.exists():
                error.hint = (
                    f"{error.hint or 'ask who runs the cluster'}; if it does not exist any more, "
                    f"`rm {file}` forgets the lab there"
                )
            raise
        self.remembered.forget(site.lab)
        with self._lock:
            if beating := self._beating.pop(site.lab, None):
                beating.set()
