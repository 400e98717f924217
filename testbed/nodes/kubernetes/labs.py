"""The labs of one user in a cluster, whichever machine has created them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from testbed.nodes.kubernetes import LAB, OWNER, manifests
from testbed.nodes.kubernetes.remembered import Place
from testbed.nodes.kubernetes.site import Site, ends

if TYPE_CHECKING:
    from testbed.nodes.kubernetes.cluster import Cluster
    from testbed.nodes.kubernetes.settings import Settings

#: Seconds after which a namespace without a janitor is a leftover.  `up` creates the janitor right
#: after the namespace, and gives up on a server that is silent for longer than a few requests take.
AGE = 120.0


def _items(cluster: Cluster, given: Settings) -> Iterator[tuple[str, Place, dict[str, Any]]]:
    """Yield the labs with their places, and the object that stands for each.

    They are looked for in the namespace of the settings, by their Jobs, or else by namespaces of
    labs.  Those that are being removed are left out.
    """
    owner = manifests.owner_label(cluster.user())
    if given.namespace:
        path = f"/apis/batch/v1/namespaces/{given.namespace}/jobs"
    else:
        path = "/api/v1/namespaces"
    for item in cluster.items("list labs", path, {OWNER: owner}):
        meta = item["metadata"]
        if not ends(item) and (lab := meta["labels"].get(LAB)):
            name = given.namespace or meta["name"]
            own = not given.namespace
            yield lab, Place(given.kubeconfig, given.context, name, own, owner), item


def labs_in(cluster: Cluster, given: Settings) -> dict[str, Place]:
    """Return the places of this user's labs in a cluster, by lab."""
    return {lab: place for lab, place, _ in _items(cluster, given)}


def abandoned(cluster: Cluster, given: Settings) -> list[Site]:
    """Return this user's labs whose own namespace has been without a janitor for a while.

    An `up` that was killed between the two leaves such a namespace, and a janitor that may not
    remove its namespace.  Nothing in the cluster removes it: an object in a namespace cannot own
    the namespace (Kubernetes documentation, "Owners and Dependents").  A lab in the namespace of
    the settings begins with its janitor, so none is abandoned there.
    """
    if given.namespace:
        return []
    old = [
        Site(lab, place, cluster)
        for lab, place, item in _items(cluster, given)
        if cluster.now() - _created(item) > AGE
    ]
    return [site for site in old if site.janitor() is None]


def _created(item: dict[str, Any]) -> float:
    """Return the Unix time of an object's creation, by the clock of the API server."""
    text = item["metadata"]["creationTimestamp"]  # RFC 3339, in UTC
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()
