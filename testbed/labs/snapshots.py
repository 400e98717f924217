"""Snapshots of labs: the state of all nodes at one moment, kept by their providers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from testbed import signals
from testbed.errors import LabError, NotFound, UsageError
from testbed.labs.lab import waits
from testbed.labs.run import Watch
from testbed.labs.stopping import forget_running
from testbed.spelling import nearest

if TYPE_CHECKING:
    from testbed.labs.lab import Lab
    from testbed.steps.context import Context
    from testbed.topology.model import Topology

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


@dataclass(frozen=True, slots=True)
class LabSnapshot:
    """A snapshot of a lab.

    ``created`` are Unix seconds, ``size`` are bytes. ``missing`` are the nodes that do not have it,
    because they were created after it.
    """

    name: str
    created: float
    size: int
    nodes: list[str]
    missing: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def found(lab: Lab) -> list[LabSnapshot]:
    """Return the snapshots of a lab, the oldest first; none of a lab that is only attached."""
    if lab.attached or lab.settings.state.read(lab.name) is None:
        return []
    topology = lab.topology()
    if _unable(lab, topology):
        return []
    seen: dict[str, list[tuple[str, float, int]]] = {}
    for node, snapshots in lab.settings.makers(topology).snapshots(lab.name).items():
        for one in snapshots:
            seen.setdefault(one.name, []).append((node, one.created, one.size))
    there = [
        LabSnapshot(
            name,
            max(created for _, created, _ in parts),
            sum(size for _, _, size in parts),
            sorted(node for node, _, _ in parts),
            sorted({*topology.nodes} - {node for node, _, _ in parts}),
        )
        for name, parts in seen.items()
    ]
    return sorted(there, key=lambda one: one.created)


def take(
    lab: Lab, name: str | None = None, *, replace: bool = False, watch: Watch | None = None
) -> LabSnapshot:
    """Save the state of all nodes of a lab, under a name (default: the next free number).

    ``replace`` removes a snapshot of this name before. Raises UsageError for a lab with nodes
    that have no snapshots, NoSuchLab, LabError.
    """
    if name is not None and not NAME.fullmatch(name):
        raise UsageError(
            f"wanted a name of letters, digits, '.', '_' and '-', got {name!r}", where="NAME"
        )
    with _locked(lab, "snapshot", watch):
        context = _whole(lab)
        there = found(lab)
        names = [one.name for one in there]
        if name is None:
            name = next(word for word in map(str, range(1, len(names) + 2)) if word not in names)
        if name in names and not replace:
            raise UsageError(
                f"lab {lab.name} has a snapshot {name} already",
                hint="choose another name, or replace it with --replace",
            )
        with signals.held() as held:
            _drop(context, [one for one in there if one.name == name])
            context.provider.snapshot(lab.name, [*context.topology.nodes], name)
        held.check()
        return next(one for one in found(lab) if one.name == name)


def restore(lab: Lab, name: str | None = None, *, watch: Watch | None = None) -> LabSnapshot:
    """Return all nodes of a lab to a snapshot (default: the newest one that all nodes have).

    Raises UsageError, NoSuchLab, NotFound for an unknown snapshot, LabError.
    """
    with _locked(lab, "restore", watch):
        context = _whole(lab)
        there = found(lab)
        meant = _named(lab, there, name) if name else _newest(lab, there)
        if meant.missing:
            raise LabError(
                f"{', '.join(meant.missing)} of lab {lab.name} cannot return to the snapshot "
                f"{meant.name}, which they do not have",
                hint="they were created after it, or it was interrupted: take a new one",
            )
        with signals.held() as held:
            context.provider.revert(lab.name, [*context.topology.nodes], meant.name)
            forget_running(lab)
        held.check()
        return meant


def drop(lab: Lab, name: str, *, watch: Watch | None = None) -> LabSnapshot:
    """Remove a snapshot of a lab.  Raises the errors of :func:`restore`."""
    with _locked(lab, "snapshot", watch):
        context = _whole(lab)
        meant = _named(lab, found(lab), name)
        with signals.held() as held:
            _drop(context, [meant])
        held.check()
        return meant


def _locked(lab: Lab, verb: str, watch: Watch | None) -> AbstractContextManager[None]:
    waiting = waits(watch or Watch())
    return lab.settings.state.lock(lab.name, f"{verb} {lab.name}", waiting=waiting)


def _unable(lab: Lab, topology: Topology) -> dict[str, list[str]]:
    """Return the nodes whose providers have no snapshots, by provider."""
    found: dict[str, list[str]] = {}
    for node in topology.nodes:
        maker = topology.provider_of(node)
        if not lab.settings.provider(maker).snapshot_parts:
            found.setdefault(maker, []).append(node)
    return found


def _whole(lab: Lab) -> Context:
    """Return a lab whose nodes all run and can have snapshots."""
    lab.refuse_attached("saved or returned to a snapshot")
    context = lab.context()
    _refuse_unable(lab, context.topology)
    if stopped := lab.stopped():
        raise LabError(
            f"{', '.join(stopped)} of lab {lab.name}: stopped by a fault",
            hint=f"`testbed fault heal -l {lab.name} stop` continues it",
        )
    if absent := [name for name in context.topology.nodes if name not in context.nodes]:
        raise LabError(
            f"lab {lab.name} is incomplete: {', '.join(absent)} not running",
            hint=f"`testbed up -l {lab.name}` restores it",
        )
    return context


def _refuse_unable(lab: Lab, topology: Topology) -> None:
    """Raise UsageError for nodes whose provider has no snapshots."""
    unable = [f"{', '.join(nodes)} ({maker})" for maker, nodes in _unable(lab, topology).items()]
    if unable:
        raise UsageError(
            f"lab {lab.name} has no snapshots: the provider of {'; '.join(unable)} cannot save "
            "running processes",
            hint=f"`testbed save {lab.name}` writes what was changed by hand as a topology file; "
            f"{_able()}",
        )


def _able() -> str:
    from testbed.registry import PROVIDERS

    able = sorted(name for name, kind in PROVIDERS.usable().items() if kind.snapshot_parts)
    return f"labs with --provider {' or '.join(able) or '(none here)'} have snapshots"


def _drop(context: Context, some: Iterable[LabSnapshot]) -> None:
    for one in some:
        having = [node for node in context.topology.nodes if node in one.nodes]
        context.provider.drop_snapshot(context.lab, having, one.name)


def _named(lab: Lab, there: list[LabSnapshot], name: str) -> LabSnapshot:
    names = [one.name for one in there]
    if name not in names:
        others = f"snapshots: {', '.join(names) or 'none'}"
        raise NotFound(
            f"lab {lab.name} has no snapshot {name!r}",
            name=name,
            known=names,
            hint=nearest(name, names, others),
        )
    return there[names.index(name)]


def _newest(lab: Lab, there: list[LabSnapshot]) -> LabSnapshot:
    if not there:
        raise NotFound(
            f"lab {lab.name} has no snapshot",
            name="",
            known=[],
            hint=f"`testbed snapshot {lab.name}` takes one",
        )
    return next((one for one in reversed(there) if not one.missing), there[-1])
