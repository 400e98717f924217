"""Providers, roles and other plug-ins by name, as distributions declare them by entry points.

The groups are ``testbed.providers``, ``testbed.roles``, ``testbed.commands``,
``testbed.catalogues``, ``testbed.formats`` and ``testbed.exports``; testbed declares its own in the
same way, in its ``pyproject.toml``.  What is declared is imported when it is first used.  A
catalogue is declared as the package that has its files.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from testbed import owner
from testbed.errors import Interrupted, MachineError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import click

    from testbed.exports.base import Export
    from testbed.nodes.base import Provider
    from testbed.roles.base import Role
    from testbed.topology.format import Format

T = TypeVar("T")

KEPT = ".plugins.json"  #: in the cache folder: entry points by folder of sys.path
SETTLED = 2 * 10**9  # nanoseconds; a folder that has just changed may change again in the same tick


@dataclass(frozen=True, slots=True)
class Declared:
    """An entry point: ``value`` is ``module:class``, ``distribution`` declares it.

    ``about`` is the short help of a command.
    """

    name: str
    value: str
    distribution: str
    about: str = ""


class Registry(Mapping[str, T], Generic[T]):
    """Plug-ins of one kind by name, in alphabetical order.

    ``make`` converts a declared class to the value.  Looking up a name raises KeyError if it is
    unknown, and MachineError if it cannot be imported or is declared twice.
    """

    def __init__(
        self, group: str, noun: str, make: Callable[[Any], T], *, ours: bool = True
    ) -> None:
        self.group = group
        self.noun = noun
        self._ours = ours  # True if testbed's own distribution declares some
        self._make = make
        self._declared: dict[str, list[Declared]] | None = None
        self._made: dict[str, T] = {}
        self._broken: dict[str, MachineError] | None = None

    def declared(self) -> dict[str, list[Declared]]:
        """Return all entry points of the group by name; more than one per name is an error."""
        if self._declared is None:
            found: dict[str, list[Declared]] = {}
            for one in sorted(_entry_points(self.group), key=lambda d: (d.name, d.distribution)):
                found.setdefault(one.name, []).append(one)
            if not found and self._ours:
                raise MachineError(
                    f"no {self.noun} is registered: this copy of testbed is not installed",
                    hint=f"pip install -e {Path(__file__).resolve().parents[1]}",
                )
            self._declared = found
        return self._declared

    def __iter__(self) -> Iterator[str]:
        return iter(self.declared())

    def __len__(self) -> int:
        return len(self.declared())

    def __contains__(self, name: object) -> bool:
        return name in self.declared()

    def __getitem__(self, name: str) -> T:
        if name not in self._made:
            self._made[name] = self._load(name)
        return self._made[name]

    def usable(self) -> dict[str, T]:
        """Return all plug-ins that can be loaded, by name; :meth:`broken` has the others."""
        return {name: self[name] for name in self if name not in self.broken()}

    def broken(self) -> dict[str, MachineError]:
        """Return the errors of plug-ins that cannot be loaded, by name."""
        if self._broken is None:
            self._broken = {}
            for name in self:
                try:
                    self[name]
                except MachineError as error:
                    self._broken[name] = error
        return self._broken

    def _load(self, name: str) -> T:
        one, *others = self.declared()[name]
        if others:
            owners = ", ".join(dict.fromkeys(each.distribution for each in (one, *others)))
            raise MachineError(
                f"{self.noun} {name} is declared by several distributions: {owners}",
                hint="uninstall all but one of them",
            )
        module, _, attribute = one.value.partition(":")
        try:
            found: Any = importlib.import_module(module)
            for part in filter(None, attribute.split(".")):
                found = getattr(found, part)
            return self._make(found)
        except Interrupted:
            raise
        except (Exception, SystemExit) as error:
            raise MachineError(
                f"{self.noun} {name} of {one.distribution} cannot be loaded from {one.value}: "
                f"{type(error).__name__}: {error}",
                hint=f"update or uninstall {one.distribution}",
            ) from error


def _entry_points(group: str) -> Iterator[Declared]:
    """Yield the entry points of a group on sys.path, from the cache for unchanged folders.

    ``importlib.metadata`` reads every distribution's metadata, which takes longer than the rest
    of ``testbed plan``; a folder's modification time changes when a distribution is installed.
    """
    file = owner.cache() / KEPT
    kept = _recall(file)
    used: dict[str, Any] = {}
    seen: set[tuple[str, str]] = set()
    for folder in dict.fromkeys(sys.path):
        with contextlib.suppress(OSError):
            changed = os.stat(folder or ".").st_mtime_ns  # noqa: PTH116  (a path a process, at each start)
            entry = kept.get(folder) if folder else None
            if not entry or entry["changed"] != changed:
                entry = {"changed": changed, "groups": _read(folder)}
            used[folder] = entry
            for words in entry["groups"].get(group, []):
                found = Declared(*words)
                key = (found.distribution, found.name)
                if key not in seen:  # the first on sys.path hides later ones
                    seen.add(key)
                    yield found
    now = time.time_ns()
    fresh = {k: v for k, v in used.items() if k and now - v["changed"] > SETTLED}
    if any(kept.get(folder) != entry for folder, entry in fresh.items()):
        _keep(file, {**{k: v for k, v in kept.items() if Path(k).is_dir()}, **fresh})


def _read(folder: str) -> dict[str, list[list[str]]]:
    """Return the entry points for testbed of distributions in a folder, by group."""
    from importlib import metadata

    found: dict[str, list[list[str]]] = {}
    for distribution in metadata.distributions(path=[folder]):
        for point in distribution.entry_points:
            if point.group.startswith("testbed."):
                words = [point.name, point.value, distribution.metadata["Name"]]
                if point.group == COMMANDS.group:
                    words.append(_about(point))
                found.setdefault(point.group, []).append(words)
    return found


def _about(point: EntryPoint) -> str:
    """Return the short help of a command, so that listing it later does not import it.

    Empty if it cannot be imported.
    """
    try:
        command: click.Command = point.load()
        return command.get_short_help_str(limit=80)
    except Interrupted:
        raise
    except (Exception, SystemExit):  # noqa: BLE001  whoever uses the command is told
        return ""


def _recall(file: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(
            isinstance(one, dict) and {"changed", "groups"} <= one.keys() for one in found.values()
        ):
            return found
    return {}


def _keep(file: Path, found: Mapping[str, Any]) -> None:
    """Write the cache; if that fails, the folders are read again the next time."""
    from testbed import files

    with contextlib.suppress(OSError, UsageError):
        owner.make(file.parent)
        files.keep(file, json.dumps(found))


def _role(found: Any) -> Role:
    role: Role = found()
    return role


def _format(found: Any) -> Format:
    made: Format = found()
    return made


def _export(found: Any) -> Export:
    export: Export = found()
    return export


def _folder(found: Any) -> Path:
    """Return the folder of a catalogue, which is declared as a package."""
    return Path(next(iter(found.__path__)))


PROVIDERS: Registry[type[Provider]] = Registry("testbed.providers", "provider", lambda found: found)
ROLES: Registry[Role] = Registry("testbed.roles", "role", _role)
COMMANDS: Registry[click.Command] = Registry("testbed.commands", "command", lambda found: found)
EXPORTS: Registry[Export] = Registry("testbed.exports", "export format", _export)
CATALOGUES: Registry[Path] = Registry("testbed.catalogues", "catalogue", _folder, ours=False)
FORMATS: Registry[Format] = Registry("testbed.formats", "format", _format, ours=False)


def existing(providers: Iterable[object]) -> str:
    """Return where the machines of providers are if these exist already; else an empty text.

    Unknown providers, and those that cannot be loaded, have no such machines.
    """
    for name in providers:
        with contextlib.suppress(KeyError, MachineError):
            if isinstance(name, str) and (place := PROVIDERS[name].existing):
                return place
    return ""


def link_faults(provider: str) -> bool:
    """Tell whether links of a provider's nodes can have faults, which are caused in the fabric.

    Raises KeyError, MachineError for a provider that is unknown or cannot be loaded.
    """
    return PROVIDERS[fabric_kind(PROVIDERS[provider])].shapes


def fabric_kind(provider: Provider | type[Provider]) -> str:
    """Return the name of the provider that creates the fabric of a provider's nodes."""
    return provider.fabric_of or provider.name
