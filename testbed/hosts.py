"""testinfra hosts in labs: ``testbed://LAB[/NODE[/CONTAINER]]``.

While a run is confined to labs (:func:`testbed.hostspec.confine`), every hostspec
must name one of their nodes; any other machine is refused.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

from testbed.errors import NoSuchNode, UsageError
from testbed.hostspec import PREFIX, SCHEME, confined, original
from testbed.nodes.testinfra_backend import NodeBackend, Place

if TYPE_CHECKING:
    from testbed.labs.live import LiveLab

PARTS = 3  # LAB/NODE/CONTAINER

_labs: dict[str, LiveLab] = {}


def lend(live: LiveLab) -> None:
    """Use an open lab for the hostspecs that name it.  The caller closes it."""
    _labs[live.name] = live


def live(name: str) -> LiveLab:
    """Return a lab by its name; open it on first use.  Raises NoSuchLab if it is not running."""
    if name not in _labs:
        from testbed.labs.lab import Lab
        from testbed.labs.live import LiveLab
        from testbed.settings import settings

        _labs[name] = LiveLab(Lab(name, settings()).context())
    return _labs[name]


def close() -> None:
    """Close all open labs."""
    while _labs:
        _labs.popitem()[1].close()


def forget(name: str) -> None:
    """Forget a lab of :func:`lend`, without closing it."""
    _labs.pop(name, None)


def parse(hostspec: str | None) -> tuple[str, dict[str, Any]]:
    """Parse a hostspec like testinfra, with support for places in labs.

    Raises UsageError for a hostspec outside the labs that the run is confined to.
    """
    labs = confined()
    if hostspec is not None and hostspec.startswith(PREFIX):
        _, keywords = original(hostspec)  # testinfra's own: the parameters after "?"
        url = urllib.parse.urlsplit(hostspec)
        place = urllib.parse.unquote(url.netloc + url.path).rstrip("/")
        lab, *_ = place.split("/")
        if labs is not None and place and lab not in labs:
            raise _refused(hostspec)
        if len(place.split("/")) > PARTS or (place and not all(place.split("/"))):
            raise UsageError(
                f"{hostspec}: not a valid host of a lab",
                hint=f"write {PREFIX}LAB[/NODE[/CONTAINER]]",
            )
        return place, keywords
    if labs is None:
        found: tuple[str, dict[str, Any]] = original(hostspec)
        return found
    if len(labs) != 1 or (hostspec is not None and "://" in hostspec):
        raise _refused(hostspec)
    (lab,) = labs
    if hostspec is None:
        return lab, {"connection": SCHEME}
    if hostspec.partition("/")[0] not in live(lab).topology.nodes:
        raise _refused(hostspec)
    return f"{lab}/{hostspec}", {"connection": SCHEME}


def _refused(hostspec: str | None) -> UsageError:
    """Return the error for a hostspec outside the labs that the run is confined to."""
    labs = ", ".join(confined() or ())
    if hostspec is None:
        what = (
            f"several labs are named: {labs}" if labs else "no lab is named for testinfra's `host`"
        )
        return UsageError(what, hint=f"choose one: --hosts={PREFIX}LAB")
    if not labs:
        return UsageError(f"the host {hostspec!r} cannot be used: the run has no lab")
    return UsageError(
        f"the host {hostspec!r} is not a node of lab {labs}",
        hint=f"use {PREFIX}{labs.split(', ')[0]}/NODE, or run without naming the lab",
    )


def resolve(hostspec: str | None) -> list[str]:
    """Check a hostspec and return the hostspecs for testinfra; None means all nodes of the lab.

    Raises UsageError for a host outside the labs that the run is confined to,
    NoSuchLab if the lab is not running, NoSuchNode if it has no such node.
    """
    place, keywords = parse(hostspec)
    found = places(place) if keywords.get("connection") == SCHEME else []
    return [f"{PREFIX}{one}" for one in found] if hostspec is None else [hostspec]


def places(place: str) -> list[str]:
    """Return the places of all nodes for ``LAB``; any other place itself, after a check."""
    if not place:
        return []
    lab, *rest = place.split("/")
    topology = live(lab).topology
    if not rest:
        return [f"{lab}/{node}" for node in topology.nodes]
    node, *_ = rest
    if node not in topology.nodes:
        raise NoSuchNode(
            f"lab {lab} has no node {node!r}",
            name=node,
            known=topology.nodes,
            hint=f"nodes of {lab}: {', '.join(topology.nodes)}",
        )
    return [place]


class SpecBackend(NodeBackend):
    """A host at a place ``LAB/NODE[/CONTAINER]``, looked up for each command.

    So a restarted container, or a lab that the test itself has updated, is found in
    its current state.
    """

    def __init__(self, place: str, **kwargs: Any) -> None:
        parts = place.split("/")
        if len(parts) == 1:
            raise UsageError(
                f"{PREFIX}{place} is a lab, not a host",
                hint=f"name a node, {PREFIX}{place}/NODE, or use testinfra.get_hosts()",
            )
        self._place = place
        self._lab, self._node_name, *rest = parts
        self._container = rest[0] if rest else None
        super().__init__(None, rest[0] if rest else self._node_name, **kwargs)

    @classmethod
    def get_hosts(cls, host: str, **_: Any) -> list[str]:
        """Return the places for a part of a hostspec; called by testinfra."""
        return places(host)

    def get_pytest_id(self) -> str:
        return f"{PREFIX}{self._place}"

    @property
    def _is_container(self) -> bool:
        return self._container is not None

    def _where(self) -> Place:
        lab = live(self._lab)
        if self._container is None:
            return Place(lab.node(self._node_name))
        found = lab.container(self._container, node=self._node_name)
        return Place(found.node, found.argv((), mounts=True), found.env)
