"""Leftovers in the cluster that the user names, for ``testbed doctor --leaks``."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from testbed.errors import LabError, MachineError
from testbed.leftover import Leftover
from testbed.nodes.kubernetes import labs, settings
from testbed.nodes.kubernetes.cluster import Cluster

if TYPE_CHECKING:
    from testbed.nodes.kubernetes.site import Site


def abandoned(known: Collection[str]) -> Iterator[Leftover]:
    """Yield the namespaces of labs without a janitor.

    ``known`` are the namespaces of labs of this machine, which are found by their records.  A
    cluster that does not answer is not waited for; it is yielded as one that cannot be judged.
    """
    given = settings.of()
    cluster = Cluster(given.kubeconfig, given.context, patience=0)
    try:
        found = [
            site for site in labs.abandoned(cluster, given) if site.place.namespace not in known
        ]
    except (LabError, MachineError) as error:
        name = given.context or "current context"
        yield Leftover("cluster", name, f"cannot be asked: {error.message}", theirs=True)
        return
    context = f" --context {shlex.quote(given.context)}" if given.context else ""
    for site in found:

        def remove(site: Site = site) -> None:
            if site.janitor() is None:
                site.remove()

        name = site.place.namespace
        yield Leftover(
            "namespace",
            name,
            f"of lab {site.lab}, in {cluster.words}: it has no janitor",
            f"kubectl{context} delete namespace {name}",
            remove=remove,
        )
