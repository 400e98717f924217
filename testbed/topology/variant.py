"""Variants of a topology: other settings, name or number of nodes.

A variant is the plain form of a topology, edited and read again like a file. So a variant cannot
contain anything that a file cannot. Roles declare their options as :class:`Option`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from testbed import registry
from testbed.errors import UsageError
from testbed.topology.build import build
from testbed.topology.declare import role_of
from testbed.topology.keys import DEFAULT_PROVIDER
from testbed.topology.source import from_data
from testbed.topology.tree import Problems, nearest, quote

if TYPE_CHECKING:
    from collections import abc

    from testbed.roles.base import Role
    from testbed.topology.model import Topology

__all__ = ["Option", "Overrides", "options", "vary"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option of a role, such as ``--backend``, which changes the topologies that have the role.

    ``help`` and ``metavar`` are for the command line. ``change`` edits the plain form of the
    topology; it may raise UsageError. Of the ``words`` a value must be one, if there are any, or
    one of the ``aliases`` for them; ``noun`` is what they are. ``lacking`` says what a topology
    without the role does not have, with ``{value}``; ``wanted`` says what to choose.
    """

    name: str
    help: str
    change: Callable[[dict[str, Any], Topology, Any], None]
    lacking: str
    wanted: str
    noun: str = ""
    words: Sequence[str] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    metavar: str = "NAME"
    type: type = str


@dataclass(frozen=True, init=False, eq=True)
class Overrides:
    """The changes of a topology by options; None leaves a setting unchanged.

    ``name`` is the lab's, ``provider`` that of nodes that don't set their own. Others are options
    of roles (:attr:`testbed.roles.base.Role.options`), such as ``backend``; for a hyphen in a
    name, write an underscore.
    """

    name: str | None
    provider: str | None
    given: tuple[tuple[str, Any], ...]

    def __init__(
        self, *, name: str | None = None, provider: str | None = None, **options: Any
    ) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "provider", provider)
        given = {k.replace("_", "-"): v for k, v in options.items() if v is not None}
        object.__setattr__(self, "given", tuple(given.items()))

    @property
    def options(self) -> dict[str, Any]:
        """The options of roles that are set, in the order given."""
        return dict(self.given)

    def named(self, name: str) -> Overrides:
        """Return the same changes with another name of the lab."""
        return Overrides(name=name, provider=self.provider, **self.options)


def options(roles: abc.Iterable[Role] | None = None) -> dict[str, list[Option]]:
    """Return the options of roles, by default all, by name; several roles can share one."""
    found: dict[str, list[Option]] = {}
    for role in registry.ROLES.usable().values() if roles is None else roles:
        for option in role.options:
            found.setdefault(option.name, []).append(option)
    return found


def vary(topology: Topology, overrides: Overrides) -> Topology:
    """Return the topology with changed settings.

    Raises UsageError for an override that does not apply to this topology, TopologyError if the
    result is invalid.
    """
    if overrides == Overrides():
        return topology
    data = topology.to_dict()
    given = overrides.options
    if given:
        here = options(role for name in topology.roles if (role := role_of(name)) is not None)
        if not here.keys() >= given.keys():
            _refuse(topology, given, here)
        for name, those in here.items():
            if name in given:
                value = _value(those[0], given[name])
                for option in those:
                    option.change(data, topology, value)
    if overrides.provider is not None:
        _set_provider(data, topology, overrides.provider)
    if overrides.name is not None:
        data["name"] = overrides.name
    problems = Problems(topology.source)
    return dataclasses.replace(
        build(from_data(data, problems), problems),
        file=topology.file,
        variables=topology.variables,
    )


def _refuse(topology: Topology, given: Mapping[str, Any], here: abc.Container[str]) -> None:
    """Raise UsageError for an option that is unknown or does not apply."""
    known = options()
    for name, value in given.items():
        if name not in known:
            words = ["name", "provider", *known]
            raise UsageError(f"no option {name}", hint=f"known: {', '.join(words)}")
        if name not in here:
            option = known[name][0]
            _value(option, value)
            lacking = option.lacking.format(value=value)
            raise UsageError(
                f"{topology.name} has {lacking}", hint=f"choose a topology with {option.wanted}"
            )


def _value(option: Option, value: Any) -> Any:
    value = option.aliases.get(value, value)
    if option.words:
        _known(option.noun, value, option.words)
    return value


def _known(what: str, word: str, known: abc.Sequence[str]) -> None:
    if word not in known:
        hint = nearest(word, known)
        if hint.startswith("did"):
            hint += f" known: {', '.join(known)}"
        raise UsageError(f"no {what} {quote(word)}", hint=hint)


def _set_provider(data: dict[str, Any], topology: Topology, provider: str) -> None:
    _known("provider", provider, [*registry.PROVIDERS])
    if topology.foreign is not None and provider != topology.provider:
        raise UsageError(
            f"{topology.name} comes from a file of {topology.foreign.format}, which creates its "
            f"nodes itself",
            hint=f"leave out --provider {provider}",
        )
    if all(node.provider for node in topology.nodes.values()):
        raise UsageError(
            f"each node of {topology.name} sets its own provider, so {provider} would "
            "have no effect",
            hint="change the nodes in a copy of the file",
        )
    data["provider"] = provider
    if registry.fabric_kind(registry.PROVIDERS[provider]) != DEFAULT_PROVIDER:
        for node in data["nodes"].values():
            # A plain node, such as a gateway, could not be connected to the others.
            if node.get("provider") == DEFAULT_PROVIDER:
                del node["provider"]
