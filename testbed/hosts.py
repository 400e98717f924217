"""Hosts of testinfra by the name of a lab: ``testbed://LAB[/NODE[/CONTAINER]]``.

While a run is confined to labs (:func:`testbed.hostspec.confine`), every hostspec
means one of their nodes, and one that means another machine is refused.
"""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, Any

from testbed.errors import NoSuchLab, UsageError
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
    """A lab by its name, opened once.  Raises NoSuchLab when it is not up."""
    if name not in _labs:
        from testbed.labs.lab import Lab
        from testbed.labs.live import LiveLab
        from testbed.settings import settings

        _labs[name] = LiveLab(Lab(name, settings()).context())
    return _labs[name]


def close() -> None:
    """Close all labs that are open."""
    while _labs:
        _labs.popitem()[1].close()


def forget(name: str) -> None:
    """Drop a lab that was lent, without closing it."""
    _labs.pop(name, None)


def parse(hostspec: str | None) -> tuple[str, dict[str, Any]]:
    """Parse a hostspec as testinfra does, and the places of labs as well.

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
                f"{hostspec}: not a place of a lab", hint=f"write {PREFIX}LAB[/NODE[/CONTAINER]]"
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
    """The error for a hostspec that is outside of what the run is confined to."""
    labs = ", ".join(confined() or ())
    if hostspec is None:
        what = f"which lab? there are {labs}" if labs else "no lab for testinfra's `host`"
        return UsageError(what, hint=f"name one: --hosts={PREFIX}LAB")
    if not labs:
        return UsageError(f"the host {hostspec!r} is outside of the run, which has no lab")
    return UsageError(
        f"the host {hostspec!r} is not a node of lab {labs}, which was named",
        hint=f"use {PREFIX}{labs.split(', ')[0]}/NODE, or run without naming the lab",
    )


def resolve(hostspec: str | None) -> list[str]:
    """A hostspec as testinfra is to get it, checked; None becomes all nodes of the lab.

    Raises UsageError for a host outside the labs that the run is confined to,
    NoSuchLab where the lab is not up or has no such node.
    """
    place, keywords = parse(hostspec)
    found = places(place) if keywords.get("connection") == SCHEME else []
    return [f"{PREFIX}{one}" for one in found] if hostspec is None else [hostspec]


def places(place: str) -> list[str]:
    """``LAB`` as the places of all its nodes; another place as it is, once it is known."""
    if not place:
        return []
    lab, *rest = place.split("/")
    topology = live(lab).topology
    if not rest:
        return [f"{lab}/{node}" for node in topology.nodes]
    node, *_ = rest
    if node not in topology.nodes:
        raise NoSuchLab(
            f"no node {node!r} in lab {lab}", hint=f"nodes: {', '.join(topology.nodes)}"
        )
    return [place]


class SpecBackend(NodeBackend):
    """A host by its place ``LAB/NODE[/CONTAINER]``, looked up for each command.

    So a container that was started again, or a lab that was updated by the
    test itself, is found as it is now.
    """

    def __init__(self, place: str, **kwargs: Any) -> None:
        parts = place.split("/")
        if len(parts) == 1:
            raise UsageError(
                f"{PREFIX}{place} is a whole lab, not one host",
                hint=f"name a node, {PREFIX}{place}/NODE, or use testinfra.get_hosts()",
            )
        self._place = place
        self._lab, self._node_name, *rest = parts
        self._container = rest[0] if rest else None
        super().__init__(None, rest[0] if rest else self._node_name, **kwargs)

    @classmethod
    def get_hosts(cls, host: str, **_: Any) -> list[str]:
        """The places that a part of a hostspec means, as testinfra asks for them."""
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
