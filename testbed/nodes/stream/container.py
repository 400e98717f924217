"""A node that is a container, entered by its first process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.nodes.base import Node, has_ended
from testbed.nodes.stream.kept import KeptNode
from testbed.polling import until

if TYPE_CHECKING:
    from testbed.nodes.stream.wire import Channel


ENDING = 5.0  # seconds for the first process of a killed container to end


class ContainerNode(KeptNode):
    """A container of any image, on any engine.

    The agent enters the container by its first process, so it needs neither a program in the
    image nor an answer of the engine.

    ``start`` runs a program where the engine runs, on this machine
    (:class:`testbed.process.Duplex`) or on a node (:meth:`duplex` of a namespace node), and
    returns its stream; ``agent`` returns the path of ``testbed-agent`` there, and ``pid`` is the
    pid of the container's first process there.  ``alive`` tells whether that process runs, and
    is called often; ``last_words`` returns the last output of a container that has ended.
    ``place`` returns the path on this machine for a path where the engine runs: ``str``, or
    :meth:`socket` of the node there.
    ``mounts`` maps folders of this machine to the paths at which the container has them,
    read-only.  The others are as in :class:`KeptNode`.
    """

    shares_kernel = True

    def __init__(
        self,
        name: str,
        digest: str,
        *,
        lab: str,
        pid: int,
        start: Callable[[Sequence[str]], Channel],
        agent: Callable[[], str],
        alive: Callable[[], bool],
        place: Callable[[str], str],
        init: Callable[[], Path],
        env: Mapping[str, str] | None = None,
        mounts: Mapping[Path, str] | None = None,
        last_words: Callable[[], str] = str,
        programs: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        self.pid = pid
        self._lab = lab
        self._start = start
        self._agent = agent
        self._alive = alive
        self._last_words = last_words
        self._mounts = dict(mounts or {})
        self._place = place
        no_forwards = Path()  # sockets are reached without
        super().__init__(name, digest, folder=no_forwards, init=init, env=env, programs=programs)

    def __repr__(self) -> str:
        return f"<container node {self.name} of {self._lab}, pid {self.pid}>"

    def alive(self) -> bool:
        return self._alive()

    def channel(self) -> Channel:
        return self._start([self._agent(), str(self.pid)])

    def lost_error(self) -> LabError:
        # The agent ends with the container, and the kernel needs a moment to end the first process.
        if not until(lambda: not self.alive(), ENDING):
            return LabError(
                f"the connection to the container {self.name} was lost, and the container runs",
                hint="run the command again; the next one opens a new connection",
            )
        return self.ended_error()

    def ended_error(self) -> LabError:
        """Return the error for a request to a container that has ended."""
        return has_ended(self.name, self._lab, self._last_words())

    def provide(self, path: Path) -> str:
        path = path.resolve()
        for folder, place in self._mounts.items():
            if path.is_relative_to(folder):
                return str(PurePosixPath(place, path.relative_to(folder)))
        return super().provide(path)

    # The container's files can be reached from here, like those of a namespace node.
    keep = Node.keep
    kept = Node.kept

    def socket(self, path: str) -> str:
        return self._place(f"/proc/{self.pid}/root{path}")
