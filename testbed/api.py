"""The public interface, as :mod:`testbed` exports it; its ``__all__`` has the list.

docs/api.md describes each name.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Protocol

from testbed import errors
from testbed.labs import lab as labs
from testbed.labs.difference import Effect, of_lab
from testbed.labs.live import LiveContainer, LiveLab  # noqa: F401  (testbed exports it)
from testbed.labs.save import Saved, save
from testbed.labs.stopping import GRACE, Act, Stopping
from testbed.nodes.base import Node, Result  # noqa: F401  (testbed exports them)
from testbed.requirement import need_root
from testbed.settings import settings
from testbed.topology import Overrides, Topology, vary
from testbed.topology import load as load_topology
from testbed.walk.model import Walk  # noqa: TC001  (testbed exports it)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Follow(Protocol):
    """The function :func:`follow` for one lab."""

    def __call__(
        self,
        source: str,
        target: str,
        *,
        tcp: int | None = None,
        udp: int | None = None,
        http: str | None = None,
        reply: bool = False,
        ipv6: bool = False,
        size: int | None = None,
        timeout: float = 1.0,
    ) -> Walk: ...


def follow(
    lab: LiveLab,
    source: str,
    target: str,
    *,
    tcp: int | None = None,
    udp: int | None = None,
    http: str | None = None,
    reply: bool = False,
    ipv6: bool = False,
    size: int | None = None,
    timeout: float = 1.0,
) -> Walk:
    """Send one request on a running lab and follow its packets, as ``testbed walk`` does.

    ``source`` is NODE, NODE/CONTAINER, a Pod or a named namespace; ``target`` is one of these, a
    Service, an address, or a name that the source resolves.  At most one of ``tcp`` and ``udp``
    (ports) and ``http`` (a URL, or a path on port 80) is given; without one it is an ICMP echo,
    and to a Service a TCP connection.  With ``reply`` the walk also has the way back.  ``size`` is
    the data of an echo or a datagram in octets, ``timeout`` the time to wait for an answer in
    seconds.  Raises UsageError, LabError, MachineError.
    """
    from testbed.walk.request import request_of
    from testbed.walk.run import walk

    request = request_of(tcp=tcp, udp=udp, http=http, size=size, seconds=timeout)
    return walk(lab, source, target, request, reply=reply, family=6 if ipv6 else 4, seconds=timeout)


class Lab(labs.Lab):
    """A lab by its name, running or not.

    >>> Lab("two-node").name
    'two-node'
    """

    def __init__(self, name: str, config: labs.Settings | None = None) -> None:
        super().__init__(name, settings() if config is None else config)

    def live(self) -> LiveLab:
        """Return the running lab, with its nodes and containers.  Raises NoSuchLab.

        Close it, or use it in a ``with`` statement, because it keeps connections to the engines.
        """
        return LiveLab(self.context())

    def stop(self, target: str, *, grace: float = GRACE) -> Act:
        """Stop NODE, NODE/SERVICE or NODE/CONTAINER; return what was done.

        After ``grace`` seconds it is killed. It stays stopped until :meth:`start` or the next
        :meth:`up`. Raises NotFound, LabError.
        """
        return Stopping(self, grace=grace).stop(target)

    def start(self, target: str) -> Act:
        """Start what was stopped or has ended; return what was done.  Raises NotFound, LabError."""
        return Stopping(self).start(target)

    def restart(self, target: str, *, grace: float = GRACE) -> Act:
        """Stop and start a target; return what was done.  Raises the errors of :meth:`stop`."""
        return Stopping(self, grace=grace).restart(target)

    def diff(self, topology: Topology) -> list[Effect]:
        """Return what an :meth:`up` of a topology changes on the running lab.  Raises NoSuchLab."""
        return of_lab(self, topology)

    def walk(self, source: str, target: str, **request: Any) -> Walk:
        """Follow the packets of a request.

        The arguments are those of :func:`follow`.  Raises NoSuchLab, and the errors of it.
        """
        with self.live() as live:
            return follow(live, source, target, **request)

    def save(self) -> Saved:
        """Return the running lab, with what was changed by hand, as a topology.

        Its ``text()`` is the topology file. Raises NoSuchLab, and LabError if a node does not run.
        """
        from testbed.faults.force import Faults

        faults = [seen.fault for seen in Faults(self).in_force()]
        return save(self.context(), faults, file=self.record().source)


def load(
    topology: str | os.PathLike[str] | Topology,
    *,
    variables: Mapping[str, str] | None = None,
    **changes: Any,
) -> Topology:
    """Load a topology: a bundled one by name, or a file by path (``-`` is standard input).

    ``variables`` are filled into the file, and then those of the environment. ``changes`` are the
    options of ``testbed up``: ``name``, ``provider``, and those of roles, such as ``backend``,
    ``docker`` and ``nodes``.  Raises UsageError for an unknown name, a change that does not
    apply or a variable that the file does not have, TopologyError for a file with problems.

    >>> load("two-node", backend="udp", name="mine").sections["flannel"].backend
    'udp'
    """
    overrides = Overrides(**changes)
    if isinstance(topology, Topology):
        if variables:
            raise errors.UsageError(
                f"{topology.name} is loaded, and its variables are filled in",
                hint="load it with other variables",
            )
        return vary(topology, overrides)
    return load_topology(topology, overrides, variables=variables)


@contextlib.contextmanager
def lab(
    topology: str | os.PathLike[str] | Topology,
    *,
    keep: bool = False,
    timeout: float | None = None,
    variables: Mapping[str, str] | None = None,
    **changes: Any,
) -> Iterator[LiveLab]:
    """Create a lab, and remove it at the end of the ``with`` block.

    ::

        with testbed.lab("two-node", backend="udp") as lab:
            lab.node("node1").run(["ping", "-c1", "node2"])

    ``topology``, ``variables`` and ``changes`` are as in :func:`load`.  A lab that already runs is
    updated, and keeps running at the end.  With ``keep`` the lab also keeps running when the block
    raises, for inspection.  ``timeout`` limits its creation, in seconds.  If the process is killed,
    its lab keeps running: ``testbed down NAME`` removes it.
    Raises UsageError, TopologyError, MachineError, LabError, Interrupted.
    """
    wanted = load(topology, variables=variables, **changes)
    need_root("creating a lab")
    one = Lab(wanted.name)
    was_there = one.name in labs.labs(one.settings)
    one.up(wanted, timeout=timeout)
    try:
        with one.live() as live:
            yield live
    except BaseException:
        if not (was_there or keep):
            one.down()
        raise
    if not was_there:
        one.down()


def labs_running() -> list[str]:
    """Return the names of all running labs of this user's state folder."""
    return labs.labs(settings())
