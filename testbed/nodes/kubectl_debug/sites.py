"""The Pods of labs whose machines are nodes of a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.nodes.kubectl_debug import manifest
from testbed.nodes.kubernetes import settings
from testbed.nodes.kubernetes.manifests import LATER
from testbed.nodes.kubernetes.site import Site
from testbed.nodes.kubernetes.sites import Sites

if TYPE_CHECKING:
    from testbed.nodes.base import NodeSpec
    from testbed.nodes.kubernetes.remembered import Place


class DebugSite(Site):
    """The Pods of one lab."""

    image_by: ClassVar[str] = "`image` in the file"
    room_by: ClassVar[str] = "use another namespace"
    limits_by: ClassVar[str] = "use another namespace, since the Pods have no limits"

    def _pod(
        self, name: str, owner: Mapping[str, str], spec: NodeSpec, image: str, *, privileged: bool
    ) -> dict[str, Any]:
        del privileged  # each is
        return manifest.pod(
            name, self._marks, owner,
            machine=spec.name, host=spec.host, image=image,
            seconds=settings.of().terms.longest + LATER,
        )  # fmt: skip


class DebugSites(Sites):
    """The places of the labs of one state folder."""

    taken: ClassVar[str] = "use another name (--name)"

    def site(self, lab: str, place: Place) -> DebugSite:
        return DebugSite(lab, place, self.cluster(place))
