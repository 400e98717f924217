"""A node that is a Pod, reached by an exec in it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError, NoAnswer
from testbed.nodes.base import has_ended
from testbed.nodes.kubernetes import CONTAINER, FOLDER, POD_NETWORK, networks
from testbed.nodes.stream.kept import KeptNode
from testbed.nodes.stream.wire import HEADER
from testbed.polling import until

if TYPE_CHECKING:
    from testbed.nodes.base import Result, Running
    from testbed.nodes.kubernetes.channel import ExecChannel
    from testbed.nodes.kubernetes.cluster import Cluster
    from testbed.nodes.kubernetes.pods import Pod

WORDS = "no agent yet"  # as long as the agent's greeting
LACKING = WORDS.encode()
assert len(LACKING) == HEADER.size
ENDING = 5.0  # seconds for the API to tell that a Pod has ended
SENDING = 60.0  # timeout in seconds for the agent to be sent
#: Arguments: the agent's path, its size in bytes, the pid of a process to enter or nothing.  The
#: agent comes first on standard input if the Pod lacks it; nothing follows before it has answered.
START = f"""\
[ -x "$1" ] || {{
  printf '%s' '{WORDS}'
  mkdir -p "${{1%/*}}" && head -c "$2" > "$1.$$" && chmod 755 "$1.$$" && mv "$1.$$" "$1" || exit
}}
exec "$1" $3
"""


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

    ``pod`` is the Pod when it was found, ``namespace`` is its own.  ``now`` returns the Pod as it
    is now, or None.  ``folder``, ``agent`` and ``init`` are as in :class:`KeptNode`; ``agent``
    returns the path of ``testbed-agent`` on this machine.
    """

    def __init__(
        self,
        pod: Pod,
        *,
        lab: str,
        namespace: str,
        cluster: Cluster,
        now: Callable[[], Pod | None],
        folder: Path,
        agent: Callable[[], Path],
        init: Callable[[], Path],
    ) -> None:
        self.pod = pod
        self.lab = lab
        self._namespace = namespace
        self._cluster = cluster
        self._now = now
        self._agent = agent
        super().__init__(pod.node, pod.digest, folder=folder, init=init)

    def __repr__(self) -> str:
        return f"<Pod {self._namespace}/{self.pod.name}, node {self.name} of {self.lab}>"

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
        program = self._agent().read_bytes()
        path = f"{FOLDER}/agent-{hashlib.sha256(program).hexdigest()[:12]}"
        # The engine starts programs in the Pod's network; the machine is where pid 1 is.
        machine = "1" if self.pod.privileged else ""
        argv = ["sh", "-c", START, "sh", path, str(len(program)), machine]
        try:
            opened = self._cluster.exec(self._namespace, self.pod.name, CONTAINER, argv)
        except NoAnswer:
            raise
        except LabError as error:
            self._raise_ended(error)
            raise
        try:
            self._greet(opened, program)
        except BaseException:
            opened.close()
            raise
        return opened

    def _greet(self, opened: ExecChannel, program: bytes) -> None:
        """Send the agent if the Pod lacks it."""
        opened.settimeout(SENDING)
        said = b""
        try:
            while len(said) < len(LACKING):
                data = opened.recv(len(LACKING) - len(said))
                if not data:
                    self._raise_ended(None)
                    raise LabError(
                        f"the agent of {self.name} does not start: "
                        f"{opened.errors.strip() or opened.failure or 'the channel was closed'}",
                        hint="the image needs sh, mkdir, head, chmod and mv",
                    )
                said += data
            if said != LACKING:
                opened.unread(said)
                return
            while program:
                program = program[opened.send(program) :]
        except TimeoutError as error:
            raise LabError(f"{self.name} does not answer within {SENDING:g} s") from error
        except OSError as error:
            raise self.lost_error() from error

    def _raise_ended(self, cause: BaseException | None) -> None:
        """Raise NodeNotRunning if the Pod does not run any more."""
        there = self._now()
        if there is None or there.uid != self.pod.uid or not there.running:
            words = there.ended if there and there.uid == self.pod.uid else "its Pod was deleted"
            raise has_ended(self.name, self.lab, words) from cause

    def lost_error(self) -> LabError:
        # The stream ends with the container, and the kubelet reports that a moment later.
        ended: list[LabError] = []

        def told() -> bool:
            try:
                self._raise_ended(None)
            except LabError as error:
                ended.append(error)
            return bool(ended)

        if until(told, ENDING):
            return ended[0]
        return LabError(
            f"the connection to {self.name} was lost, and its Pod runs",
            hint="run the command again; the next one opens a new connection",
        )
