"""The lab: create, inspect and remove it.

Commands and suites use this module.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from testbed import signals
from testbed.errors import (
    Interrupted,
    LabError,
    MachineError,
    NoSuchLab,
    NoSuchNode,
    StepsFailed,
    TestbedError,
    UsageError,
)
from testbed.labs import base_steps, difference, offers, origin, packages, preflight
from testbed.labs import plan as planning
from testbed.labs import run as running
from testbed.labs.run import Watch
from testbed.labs.state import Record, State
from testbed.nodes.attachable import refuse
from testbed.nodes.base import Setup
from testbed.nodes.mixed import MixedProvider
from testbed.registry import fabric_kind
from testbed.steps.context import Context

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.labs.difference import Effect
    from testbed.nodes.base import Node, Provider
    from testbed.steps.step import Plan
    from testbed.topology.model import Topology


@dataclass(slots=True)
class Settings:
    """The environment of labs: state folder, providers, artifact store."""

    state: State
    store: Store
    providers: Mapping[str, Provider]
    #: Providers of other distributions that cannot be loaded, with the reason: their labs are
    #: not seen, and all others work as ever.
    broken: Mapping[str, MachineError] = field(default_factory=dict)
    #: Providers that could not tell their labs to :func:`labs`, with the reason.
    silent: dict[str, TestbedError] = field(default_factory=dict)

    @property
    def setup(self) -> Setup:
        """The arguments from which a provider is constructed."""
        return Setup(self.state.path, self.store)

    def provider(self, name: str) -> Provider:
        try:
            return self.providers[name]
        except KeyError:
            if name in self.broken:
                raise self.broken[name] from None
            known = ", ".join(sorted(self.providers))
            raise UsageError(f"no provider {name!r}", hint=f"there are: {known}") from None

    def makers(self, topology: Topology) -> Provider:
        """Return a provider that uses each node's own provider.

        Raises UsageError for an unknown provider.
        """
        if topology.existing:
            return self.provider(topology.provider).of_machines(topology)
        if topology.attached:
            return self._attached(topology)
        own = {node: self.provider(topology.provider_of(node)) for node in topology.nodes}
        # Include providers of nodes that were created before the file was edited.
        members = [self.providers[name] for name in self.sharing(topology)]
        return MixedProvider(members, own.__getitem__)

    def _attached(self, topology: Topology) -> Provider:
        """Return the provider of a lab that testbed is attached to."""
        kind = self.provider(topology.provider).attachable()
        if kind is None:
            raise MachineError(
                f"the provider {topology.provider} cannot attach to lab {topology.name} any more",
                hint=f"`testbed down {topology.name}` forgets the lab",
            )
        return kind(self.setup).provider(topology)

    def sharing(self, topology: Topology) -> list[str]:
        """Return the providers on the topology's fabric, its own ones first.

        A lab of another tool's file has that tool's provider alone.
        """
        if topology.foreign is not None:
            return [topology.provider]
        fabrics = {fabric_kind(self.provider(name)) for name in topology.providers}
        there = [name for name, one in self.providers.items() if fabric_kind(one) in fabrics]
        return sorted(there, key=lambda name: (name not in fabrics, name))


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a successful ``up``.

    ``seconds`` is wall time; ``changed`` lists what was created or changed. ``differences`` is what
    differed from the topology before, in an update.
    """

    topology: Topology
    seconds: float
    steps: list[running.Done] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    differences: list[Effect] = field(default_factory=list)

    @property
    def changed(self) -> list[running.Done]:
        return [done for done in self.steps if done.changed]


@dataclass(frozen=True, slots=True)
class _Up:
    """One call of :meth:`Lab.up`; the times are in seconds of time.monotonic."""

    plan: Plan
    watch: Watch
    keep: bool
    replace: bool
    left: frozenset[str]
    began: float
    deadline: float


class Lab:
    """A lab, by its name; it need not exist."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name = name
        self.settings = settings

    # -- up ---------------------------------------------------------------

    def up(
        self,
        topology: Topology,
        *,
        keep: bool = False,
        replace: bool = False,
        timeout: float | None = None,
        watch: Watch | None = None,
        left: Collection[str] = (),
    ) -> Outcome:
        """Create or update the lab.

        Only what is missing or different is created or replaced. After a failure everything that
        this call created is removed, unless ``keep``. ``replace`` allows the update of a lab that
        was created from another file. ``timeout`` limits the whole call, in seconds, except for the
        removal after a failure. ``left`` is what stays stopped: NODE, NODE/SERVICE or
        NODE/CONTAINER. Without it, what was stopped by hand starts. Raises UsageError,
        MachineError, LabError (TimeoutExpired after the timeout), Interrupted.
        """
        if topology.name != self.name:
            raise ValueError(f"the topology is named {topology.name}, but the lab {self.name}")
        began = time.monotonic()
        asked = _Up(
            planning.make(topology),
            watch or Watch(),
            keep=keep,
            replace=replace,
            left=frozenset(left),
            began=began,
            deadline=began + (math.inf if timeout is None else timeout),
        )
        provider = self.settings.makers(topology)
        bring_up = self._look if topology.existing else self._up
        with signals.alarm(timeout) as off:
            return bring_up(asked, topology, provider, off)

    def _look(
        self, asked: _Up, topology: Topology, provider: Provider, no_alarm: Callable[[], None]
    ) -> Outcome:
        """Look at machines that exist already, install what the file says, and record the lab."""
        preflight.check(topology, self.settings.store.folder)
        state = self.settings.state
        with state.lock(self.name, f"up {self.name}", waiting=waits(asked.watch)):
            record = state.read(self.name)
            # What an interrupted `up` of these machines has left is no other lab.
            others = labs(self.settings, but=topology.provider)
            if self.name in others and not (record and record.attached):
                raise self._is_another(record, topology, replaceable=False)
            same = record is None or (
                origin.is_same(record.source, topology.file)
                or record.topology == topology.to_dict()
            )
            if not (same or asked.replace):
                raise self._is_another(record, topology)
            before = record.topology["nodes"] if record else {}
            there = provider.nodes(self.name)
            known = {name: node for name, node in there.items() if name in before}
            context = Context(topology, provider, self.settings.store, known)
            if topology.installs:
                self._fetch(topology)
            no_alarm()  # from here on the run itself checks the timeout
            clean = bool(topology.installs) and not asked.keep
            undo = functools.partial(self._undo, context) if clean else None
            with signals.held() as held:
                self._remove_installed(topology)
                if topology.installs:
                    # Written first, so that `down` finds what an interrupted run has installed.
                    state.write(_record(topology, asked, [], {}))
                try:
                    provider.prepare(self.name, ())
                    done = running.carry_out(
                        asked.plan,
                        context,
                        watch=asked.watch,
                        give_up=undo,
                        signals=held,
                        deadline=asked.deadline,
                    )
                    held.check()
                except BaseException as error:
                    self._after_failure(asked, context, record, error)
                    raise
                versions = versions_of(self.settings.store, topology) if topology.installs else {}
                state.write(_record(topology, asked, done, versions))
        return Outcome(topology, time.monotonic() - asked.began, done)

    def _undo(self, context: Context) -> None:
        """Remove what this run has installed on machines that exist already."""
        if context.begun:
            context.provider.destroy(self.name, sorted(context.begun))

    def _after_failure(
        self, asked: _Up, context: Context, before: Record | None, error: BaseException
    ) -> None:
        """Remove what a failed :meth:`_look` has installed, and return to the record before."""
        state = self.settings.state
        if asked.keep:
            if isinstance(error, StepsFailed):
                state.write(_record(context.topology, asked, [], {}))
            return
        self._undo(context)  # if that fails, the record stays for `down`
        if before is None:
            self._disconnect()
            state.remove(self.name)
        elif context.topology.installs:
            state.write(before)

    def _remove_installed(self, topology: Topology | None = None) -> bool:
        """Remove what is installed on machines that exist already, according to the record.

        What ``topology`` has installed in the same way stays. Return False without anything.
        """
        record = self.settings.state.read(self.name)
        if record is None or not record.existing:
            return False
        before = self.topology()
        gone = {
            name
            for name in before.installs
            if topology is None
            or name not in topology.installs
            or _way(topology, name) != _way(before, name)
        }
        if gone:
            self.settings.makers(before).destroy(self.name, gone)
        return bool(gone)

    def _disconnect(self) -> None:
        """Remove what providers have added to reach machines that exist already."""
        for provider in self.settings.providers.values():
            provider.disconnect(self.name)

    def _is_another(
        self, record: Record | None, topology: Topology, *, replaceable: bool = True
    ) -> UsageError:
        """Return the error for the name of a lab that was created from something else."""
        ways = [f"remove it (`testbed down {self.name}`)", "use another name (--name)"]
        ways += ["update it (--replace)"] if replaceable else []
        return UsageError(
            f"lab {self.name} is already up, created from {origin.words(record)}, "
            f"not from {topology.file or topology.source or 'this topology'}",
            hint=f"{', '.join(ways[:-1])} or {ways[-1]}",
        )

    def _up(
        self, asked: _Up, topology: Topology, provider: Provider, no_alarm: Callable[[], None]
    ) -> Outcome:
        watch = asked.watch
        preflight.check(topology, self.settings.store.folder)
        with self.settings.state.lock(self.name, f"up {self.name}", waiting=waits(watch)):
            self.refuse_attached("updated")
            record = self.settings.state.read(self.name)
            self._refuse_stopped()
            self._refuse_other_fabric(topology)
            nodes = provider.nodes(self.name)
            self._refuse_other(record, topology, nodes, watch, replace=asked.replace)
            here = [name for name in topology.nodes if name in nodes]
            if halted := provider.recover(self.name, here):
                watch.words(f"continued {', '.join(halted)}, halted by an interrupted snapshot")
            if nodes and record and record.variables:
                _tell_changes(record.variables, topology, watch)
            effects = difference.compare(record, topology, nodes, asked.left) if nodes else []
            if effects:
                watch.differences(effects)
            self._fetch(topology)
            store = self.settings.store
            outdated = {*provider.outdated(self.name, topology)}
            outdated |= packages.outdated(store, topology, nodes)
            stay = {name: node for name, node in nodes.items() if name not in outdated}
            making = [
                spec
                for spec in base_steps.to_be_made(topology, stay, provider, store)
                if spec.name not in asked.left
            ]
            names = [spec.name for spec in making]
            preflight.memory(topology, names)
            preflight.room(topology, names)
            provider.prepare(self.name, making)
            batches = base_steps.batches(topology, provider, making)
            context = Context(
                topology, provider, self.settings.store, nodes, batches=batches, left=asked.left
            )
            no_alarm()  # from here on the run itself checks the timeout, and cleans up
            with signals.held() as held:
                return self._make(asked, context, held, effects, outdated)

    def _make(
        self,
        asked: _Up,
        context: Context,
        held: signals.Held,
        effects: Sequence[Effect],
        outdated: Collection[str],
    ) -> Outcome:
        topology, state = context.topology, self.settings.state
        existed = bool(context.nodes)
        removed = self._remove_strangers(context, {*outdated, *difference.strangers(effects)})
        before = set(context.nodes)
        # Written first, so that leftovers of an interrupted run have a topology.
        state.write(_record(topology, asked, [], {}))
        try:
            done = self._carry_out(asked, context, held)
            held.check()
            seconds = time.monotonic() - asked.began
            outcome = Outcome(topology, seconds, done, removed, list(effects))
            versions = versions_of(self.settings.store, topology)
            state.write(_record(topology, asked, done, versions))
        except BaseException as error:
            if not asked.keep:
                self._roll_back(context, before if existed else None)
            if existed and isinstance(error, StepsFailed):
                error.hint = (
                    f"{self.name} was already up and is kept; "
                    f"to start from the beginning: `testbed down {self.name}`, then repeat the `up`"
                )
            raise
        return outcome

    def _refuse_stopped(self) -> None:
        """Raise LabError if a node is stopped.

        It does not answer, or may even seem missing.
        """
        stopped = self.stopped()
        if stopped:
            raise LabError(
                f"{', '.join(stopped)} of lab {self.name} "
                f"{'are' if stopped[1:] else 'is'} stopped by a fault",
                hint=f"`testbed fault heal -l {self.name} stop` continues them",
            )

    def _fetch(self, topology: Topology) -> None:
        from testbed.registry import ROLES

        self.settings.store.bring(all_images(self.settings.store, topology, build=True))
        roles = {role for node in topology.nodes.values() for role in node.roles}
        for role in sorted(roles):
            ROLES[role].fetch(self.settings.store, topology)
        offers.fetch(self.settings.store, topology)
        packages.fetch(self.settings.store, topology)

    def _refuse_other(
        self,
        record: Record | None,
        topology: Topology,
        nodes: Mapping[str, Node],
        watch: Watch,
        *,
        replace: bool,
    ) -> None:
        """Refuse to change a lab that was created from another file.

        A lab that matches this topology is taken over, with a message, if its own file is unknown
        or does not exist any more.
        """
        if not nodes or replace:
            return
        recorded = record.source if record else ""
        if origin.is_same(recorded, topology.file):
            return
        if record is None:
            as_wanted = all(base_steps.is_as_wanted(topology, node) for node in nodes.values())
        else:
            as_wanted = record.topology == topology.to_dict()
            if as_wanted and recorded == topology.file:  # no file, or the one in the record
                return
        if as_wanted and not origin.is_known(recorded):
            watch.words(f"updating lab {self.name}, which was created from {origin.words(record)}")
            return
        raise self._is_another(record, topology)

    def _refuse_other_fabric(self, topology: Topology) -> None:
        """Raise UsageError if the lab has nodes on the fabric of another provider.

        The providers of this topology cannot find such nodes.
        """
        sharing = self.settings.sharing(topology)
        for name, provider in self.settings.providers.items():
            if name not in sharing and provider.nodes(self.name):
                wanted = " or ".join(topology.providers)
                raise UsageError(
                    f"lab {self.name} is already up with the provider {name}, not {wanted}",
                    hint=f"remove it (`testbed down {self.name}`), or use another name (--name)",
                )

    def _remove_strangers(self, context: Context, gone: Collection[str]) -> list[str]:
        """Remove nodes that are unknown, outdated, or have other settings; return their names."""
        strangers = [name for name in context.nodes if name in gone]
        if strangers:
            context.provider.destroy(self.name, strangers)
        for name in strangers:
            del context.nodes[name]
        return sorted(strangers)

    def _carry_out(self, asked: _Up, context: Context, held: signals.Held) -> list[running.Done]:
        def give_up() -> None:
            # To remove a node, even one that is being created, ends every wait for it.  Nodes that
            # existed before this call are kept; the next `up` completes them.
            fresh = [name for name in context.topology.nodes if name not in already]
            context.provider.destroy(self.name, fresh)

        already = set(context.nodes)
        return running.carry_out(
            asked.plan,
            context,
            watch=asked.watch,
            give_up=None if asked.keep else give_up,  # to see all failures
            signals=held,
            deadline=asked.deadline,
        )

    def _roll_back(self, context: Context, before: set[str] | None) -> None:
        """Remove what this ``up`` created.

        That is the whole lab if it is new, otherwise its new nodes.
        """
        if before is None:
            context.provider.destroy(self.name)
            self.settings.state.remove(self.name)
            return
        fresh = set(context.provider.nodes(self.name)) - before
        context.provider.destroy(self.name, fresh)

    def adopt(self, topology: Topology, name: str, watch: Watch | None = None) -> bool:
        """Add a machine that the user created with the provider's own tool.

        Return True when all of the topology's machines of that provider have been added. Raises
        NoSuchNode if the machine does not run or is not in the topology.
        """
        provider = self.settings.makers(topology)
        maker = topology.provider_of(name)
        with self.settings.state.lock(self.name, f"adopt {name}", waiting=waits(watch or Watch())):
            nodes = provider.nodes(self.name)
            node = nodes.get(name)
            if node is None or not base_steps.is_as_wanted(topology, node):
                raise NoSuchNode(
                    f"no machine {name} runs that matches {topology.source or self.name}",
                    name=name,
                    hint="the topology has changed since the machine was created:"
                    " destroy the machine and create it again",
                )
            base_steps.join(Context(topology, provider, self.settings.store, nodes), node)
            peers = [one for one in topology.nodes if topology.provider_of(one) == maker]
            return all(peer in nodes and base_steps.is_joined(nodes[peer]) for peer in peers)

    # -- down -------------------------------------------------------------

    def down(self, watch: Watch | None = None) -> bool:
        """Remove the whole lab; return True if there was anything to remove.

        The nodes are found on the machine, not in a record, so this works in any state of the lab.
        A lab that exists already (:attr:`attached`) stays, without what `up` has installed on its
        machines, and is forgotten.
        """
        watch = watch or Watch()
        state = self.settings.state
        with state.lock(self.name, f"down {self.name}", waiting=waits(watch)):
            with signals.held() as held:  # do not interrupt the clean-up
                there = self.remove_all()
            held.check()
        return there

    def remove_all(self) -> bool:
        """Do the work of :meth:`down`; the caller must hold the lab's lock."""
        there = self.name in self.settings.state.labs()
        if self.attached:  # its name may be that of a lab of another state folder
            self._remove_installed()
            self._disconnect()
            self.settings.state.remove(self.name)
            return there
        removed, silent = False, None
        for provider in self.settings.providers.values():
            try:
                has_it = self.name in provider.labs()
            except Interrupted:
                raise
            except TestbedError as error:  # labs of the other providers can be removed
                silent = error
                continue
            if has_it:
                removed = True
                provider.destroy(self.name)
        if silent is not None and not removed:
            raise silent  # it may be there
        there = there or removed
        self.settings.state.remove(self.name)
        return there

    # -- looking ----------------------------------------------------------

    @property
    def attached(self) -> str:
        """The place where another tool runs the lab; empty for a lab that testbed has created."""
        record = self.settings.state.read(self.name)
        return record.attached if record else ""

    @property
    def installs(self) -> bool:
        """True if `up` has installed something on machines that exist already."""
        record = self.settings.state.read(self.name)
        return bool(record and record.existing and self.topology().installs)

    def refuse_attached(self, what: str) -> None:
        """Raise UsageError if testbed is only attached to the lab.

        ``what`` is the participle of what would be done, such as "updated".
        """
        if self.attached:
            refuse(self.name, what)

    def stopped(self) -> list[str]:
        """Return the nodes that a fault has stopped.

        They exist, but do not answer.
        """
        if self.attached:
            return []
        providers = self.settings.providers.values()
        return sorted({node for provider in providers for node in provider.paused(self.name)})

    def record(self) -> Record:
        """Return the record of the lab.  Raises NoSuchLab if there is none."""
        record = self.settings.state.read(self.name)
        if record is None:
            raise self._not_up()
        return record

    def _not_up(self) -> NoSuchLab:
        """Return the error for a lab without a record, which may still have nodes."""
        from testbed.topology.load import names

        there = labs(self.settings)
        if self.name in there:
            return NoSuchLab(
                f"lab {self.name} runs, but its record is missing or cannot be read",
                name=self.name,
                known=there,
                hint="`testbed up FILE`, with the lab's topology file, writes it again; "
                f"`testbed down {self.name}` removes the lab",
            )
        how = self.name if self.name in names() else "FILE"
        return NoSuchLab(
            f"lab {self.name} is not up",
            name=self.name,
            known=there,
            hint=f"`testbed up {how}` creates it; running labs: {', '.join(there) or 'none'}",
        )

    def topology(self) -> Topology:
        """Return the topology in the lab's record.  Raises NoSuchLab."""
        from testbed.topology.load import load_data

        record = self.record()
        found = load_data(record.topology, f"the record of lab {self.name}")
        return replace(found, file=record.source, variables=record.variables)

    def context(self) -> Context:
        """Return the running lab.  Raises NoSuchLab, also if it has a record but no node runs."""
        found = self.remains()
        if not (found.nodes or self.stopped()):
            raise NoSuchLab(
                f"lab {self.name} is not up: none of its nodes runs",
                name=self.name,
                known=[name for name in labs(self.settings) if name != self.name],
                hint=f"the tool that created it starts them; `testbed down {self.name}` forgets it"
                if self.attached
                else f"`testbed up -l {self.name}` creates them again; "
                f"`testbed down {self.name}` removes the record",
            )
        return found

    def remains(self) -> Context:
        """Return the lab as it is found, even if none of its nodes runs.  Raises NoSuchLab."""
        topology = self.topology()
        provider = self.settings.makers(topology)
        nodes = provider.nodes(self.name)
        left = frozenset(self.record().stopped)
        return Context(topology, provider, self.settings.store, nodes, left=left)

    def node(self, name: str) -> Node:
        """Return a running node.  Raises NoSuchLab, NoSuchNode."""
        return self.context().node(name)


def waits(watch: Watch) -> Callable[[str], None]:
    """Return what :meth:`State.lock` calls with the holder of a lab's lock: it says so."""

    def waiting(holder: str) -> None:
        watch.words(f"waiting for {holder or 'another testbed'}")

    return waiting


def _way(topology: Topology, node: str) -> tuple[object, ...]:
    """Return how the provider of a topology reaches a node, as far as its file says it."""
    provider = topology.provider
    return topology.sections.get(provider), topology.nodes[node].sections.get(provider)


def _tell_changes(before: Mapping[str, str], topology: Topology, watch: Watch) -> None:
    from testbed.topology.tree import quote
    from testbed.topology.variables import changed

    for name, (old, new) in changed(before, topology.variables).items():
        watch.words(f"{name} is {quote(new)} now; it was {quote(old)} in lab {topology.name}")


def _record(
    topology: Topology, asked: _Up, done: list[running.Done], versions: Mapping[str, str]
) -> Record:
    seconds = time.monotonic() - asked.began
    return Record(
        lab=topology.name,
        topology=topology.to_dict(),
        source=topology.file,
        created=time.time() - seconds,
        seconds=round(seconds, 3) if done else 0.0,
        steps=[
            {"name": d.step.name, "began": round(d.began, 3), "seconds": round(d.seconds, 3)}
            for d in done
        ],
        versions=dict(versions),
        variables=dict(topology.variables),
        stopped=sorted(asked.left),
    )


def all_images(store: Store, topology: Topology, *, build: bool) -> list[str]:
    """Return the images of a topology, and those that files beside it ask for, sorted.

    ``build`` and errors are as for :meth:`testbed.roles.base.Role.images`.
    """
    from testbed.registry import ROLES

    found = set(topology.images)
    for name in topology.roles:
        found.update(ROLES[name].images(store, topology, build=build))
    return sorted(found)


def versions_of(store: Store, topology: Topology) -> dict[str, str]:
    """Return the versions of a lab's artifacts, by artifact."""
    from testbed.registry import ROLES

    found: dict[str, str] = {}
    for name in sorted({role for node in topology.nodes.values() for role in node.roles}):
        role = ROLES[name]
        of_nodes = (role.parts(topology, node.name) for node in topology.with_role(name))
        for parts in dict.fromkeys(of_nodes):
            found |= store.versions_of(role.versioned(topology), *parts)
    return found | store.versions_of((), images=topology.images)


def labs(settings: Settings, *, but: str = "") -> list[str]:
    """Return every lab that has a record or a running node, of a provider that is not ``but``.

    Labs of a provider whose place does not answer are missing (:attr:`Settings.silent`).
    """
    names = set(settings.state.labs())
    settings.silent.clear()
    for name, provider in settings.providers.items():
        if name == but:
            continue
        try:
            names |= set(provider.labs())
        except Interrupted:
            raise
        except TestbedError as error:
            settings.silent[name] = error
    return sorted(names)
