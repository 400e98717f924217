"""A node that is a Pod, reached by an exec in it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.nodes.kubernetes import POD_NETWORK, networks
from testbed.nodes.stream.kept import KeptNode

if TYPE_CHECKING:
    from testbed.errors import LabError
    from testbed.nodes.base import Result, Running
    from testbed.nodes.kubernetes.channel import ExecChannel
    from testbed.nodes.kubernetes.entrance import Entrance


class PodNetwork:
    """A Pod's own network, in which the VXLAN packets of its node pass."""

    def __init__(self, node: PodNode) -> None:
        self._node = node
        self._enter = ["nsenter", f"--net={POD_NETWORK}"] if node.pod.privileged else []

    @property
    def name(self) -> str:
        return self._node.name

    @property
    def slowness(self) -> float:
        return self._node.slowness

    def spawn(self, argv: Sequence[str]) -> Running:
        """Start a command and return without waiting for it.  Raises NoSuchNode."""
        return self._node.spawn([*self._enter, *argv])

    def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60.0,
        check: bool = True,
    ) -> Result:
        """Run a command to its end.  Raises as :meth:`testbed.nodes.base.Node.run` does."""
        return self._node.run([*self._enter, *argv], input=input, timeout=timeout, check=check)


class PodNode(KeptNode):
    """One Pod of a lab.

    ``folder`` and ``init`` are as in :class:`KeptNode`.
    """

    is_far = True

    def __init__(
        self, entrance: Entrance, *, lab: str, folder: Path, init: Callable[[], Path]
    ) -> None:
        self.pod = entrance.pod
        self.lab = lab
        self._entrance = entrance
        super().__init__(self.pod.node, self.pod.digest, folder=folder, init=init)

    def __repr__(self) -> str:
        pod = f"{self._entrance.namespace}/{self.pod.name}"
        return f"<Pod {pod}, node {self.name} of {self.lab}>"

    @property
    def outside(self) -> PodNetwork:
        """The Pod's own network, which is also the node's unless the Pod is privileged."""
        return PodNetwork(self)

    @functools.cached_property
    def link_mtu(self) -> int:
        """The MTU that is left for networks of the lab within the packets of the Pod."""
        links, _ = self.outside.run(networks.LOOK).out.split(b"\0")
        return networks.underlay(self.pod.address, json.loads(links)).inner

    def channel(self) -> ExecChannel:
        # The engine starts programs in the Pod's network; the machine is where pid 1 is.
        machine = ["1"] if self.pod.privileged else []
        return self._entrance.open(lambda agent: [agent, *machine])

    def lost_error(self) -> LabError:
        return self._entrance.lost_error()
