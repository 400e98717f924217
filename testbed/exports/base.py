"""The contract of an export format: a lab as the files of another tool.

To add a format, write one module with a subclass of :class:`Export` and declare it as an entry
point of the group ``testbed.exports``.
"""

from __future__ import annotations

import functools
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.errors import UsageError

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology

#: Keys of a topology file that every format expresses.  The other tool creates the nodes itself,
#: in the place of a provider.
ALWAYS = ("name", "provider", "nodes.*.provider")
ANY = "*"  #: stands for one name in a key
#: Numbers of YAML 1.2 and of Go's reader, many of which are texts in YAML 1.1: 1e3, 08, 0o17.
NUMBER = re.compile(
    r"[-+]?(0[xob][0-9a-f_]+|(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)(e[-+]?[0-9]+)?)\Z", re.IGNORECASE
)
#: Beginnings of templates, variables and directives.
ACTIVE = re.compile(r"\{(?=\{)|\$(?=[\w{])|%(?=[%{])")

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Keys of a topology that a format cannot express, and the reason.

    The keys are those of the topology file, such as ``nodes.node1.roles``.
    """

    keys: tuple[str, ...]
    reason: str = ""

    def __str__(self) -> str:
        keys = ", ".join(self.keys)
        return f"{keys}: {self.reason}" if self.reason else keys

    def to_dict(self) -> dict[str, Any]:
        return {"keys": list(self.keys), "reason": self.reason}


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export: texts by file name, relative to a folder.

    The first file is the one that the other tool reads first.  ``left_out`` are keys that the
    format expresses for other labs, but not for this one.
    """

    files: Mapping[str, str]
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """The lab to export.

    ``nodes`` returns the running nodes by name; it raises NoSuchLab if the lab is not up, and
    MachineError without root.  ``store`` has the programs.  ``testbed`` is a command line for this
    program that finds the lab.
    """

    topology: Topology
    nodes: Callable[[], Mapping[str, Node]]
    store: Store
    testbed: tuple[str, ...] = ("testbed",)


class Export(ABC):
    """A format.  The name of its entry point must be its ``name``."""

    name: ClassVar[str]
    #: The other tool and its file, for the help: ``Docker Compose: compose.yaml``.
    about: ClassVar[str]
    #: Keys of a topology file that the format expresses, ``*`` for any name, with all keys below:
    #: ``containers.*.image``.  All others are reported as left out.
    says: ClassVar[tuple[str, ...]] = ()
    #: Reasons why a key is left out, by the same patterns.
    reasons: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def export(self, subject: Subject) -> Exported:
        """Return the files.  Raises UsageError for a lab that the format cannot express."""

    def check(self, topology: Topology) -> None:
        """Raise UsageError for the lab of another tool's file, if the format cannot express it."""
        if topology.foreign and not any(_path(one)[0] == "foreign" for one in self.says):
            if topology.attached:
                raise UsageError(
                    f"{topology.name} is a lab of another tool, whose links {self.name} cannot "
                    "express",
                    hint="export it to mermaid",
                )
            raise UsageError(
                f"{topology.name} was read from a file of {topology.foreign.format}, "
                f"whose links {self.name} cannot express",
                hint=f"export it to {topology.foreign.format} or mermaid",
            )

    def left_out(self, topology: Topology, exported: Exported) -> list[LeftOut]:
        """Return everything of a topology that the files do not express."""
        said = [_path(pattern) for pattern in (*ALWAYS, *self.says)]
        found: dict[str, list[str]] = {}
        for path in _unsaid(topology.to_dict(), said, ()):
            found.setdefault(self._reason(path), []).append(".".join(path))
        return [*(LeftOut(tuple(keys), why) for why, keys in found.items()), *exported.left_out]

    def _reason(self, path: Path) -> str:
        for pattern, reason in self.reasons.items():
            if _covers(_path(pattern), path):
                return reason
        return ""


def unsaid(
    topology: Topology,
    *,
    networks: Collection[str] = (),
    ports: Collection[str] = (),
    several: bool = True,
    six: bool = False,
    why: str,
) -> tuple[LeftOut, ...]:
    """Return the settings of networks and ports that a format cannot express, for ``why``.

    It expresses the subnet of a network, the address of a port, and the keys that are given.
    The ends of links name ports. ``several`` ports of a node can be on one network.
    ``six`` is for addresses of IPv6.
    """
    plain, keys = topology.to_dict(), []
    for name, network in plain.get("networks", {}).items():
        keys += [f"networks.{name}.{key}" for key in network if key not in ("subnet", *networks)]
    for number, link in enumerate(plain.get("links", ())):
        settings = link if isinstance(link, Mapping) else {"ends": link}
        known = ("subnet", "addresses", *networks, *(["ends"] if "name" in ports else []))
        keys += [f"links.{number}.{key}" for key in settings if key not in known]
    for node, body in plain["nodes"].items():
        for name, port in body.get("networks", {}).items():
            known = ("address", *ports)
            if (isinstance(port, list) and not several) or (not six and ":" in _first(port)):
                keys.append(f"nodes.{node}.networks.{name}")
                continue
            keys += [
                f"nodes.{node}.networks.{name}.{key}"
                for one in (port if isinstance(port, list) else [port])
                for key in (one if isinstance(one, Mapping) else ())
                if key not in known
            ]
    return (LeftOut(tuple(dict.fromkeys(keys)), why),) if keys else ()


def _first(port: Any) -> str:
    """Return the address of a port in plain form; empty without exactly one."""
    found = port.get("address", "") if isinstance(port, Mapping) else port
    return found if isinstance(found, str) else ""


def dump(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, in its own order, which readers of YAML 1.1 and 1.2 read alike.

    It is without variables: a dollar sign in a topology needs :func:`topology.variables.escaped`.

    >>> print(dump({"commit": "12345e67"}))
    commit: '12345e67'
    <BLANKLINE>
    """
    import yaml

    return yaml.dump(value, Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=100)


@functools.cache
def _dumper() -> Any:
    import yaml

    from testbed.topology.source import resolve

    class Dumper(yaml.SafeDumper):
        """A dumper that quotes texts which are numbers in YAML 1.2, or which topologies refuse."""

    def text(dumper: Dumper, value: str) -> yaml.ScalarNode:
        style = "'" if resolve(value) != (value, "") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style)

    Dumper.add_representer(str, text)
    Dumper.add_implicit_resolver("number", NUMBER, list("+-.0123456789"))
    return Dumper


def comment(text: str) -> str:
    """Return a text as one line for a comment, in which no tool finds more than a comment.

    containerlab fills in templates and variables in comments, too, Mermaid looks there for
    directives, and YAML permits no control characters (YAML 1.2.2, section 5.1).

    >>> comment("costs $HOME {{ x }}"), comment("%%{init: 1}%%")
    ('costs $ HOME { { x }}', '% % {init: 1}% %')
    """
    line = "".join(one if one.isprintable() else "?" for one in " ".join(text.split()))
    return ACTIVE.sub(r"\g<0> ", line)


def _path(pattern: str) -> Path:
    return tuple(pattern.split("."))


def _covers(pattern: Path, path: Path) -> bool:
    """Tell whether a pattern names a key, or one that contains it."""
    return len(pattern) <= len(path) and all(
        ANY in {word, name} or word == name for word, name in zip(pattern, path, strict=False)
    )


def _unsaid(value: Any, said: list[Path], path: Path) -> Iterator[Path]:
    """Yield the outermost keys of which nothing is said."""
    if path and any(_covers(pattern, path) for pattern in said):
        return
    below = [one for one in said if len(one) > len(path) and _covers(one[: len(path)], path)]
    if isinstance(value, Mapping) and (below or not path):
        for name, inner in value.items():
            yield from _unsaid(inner, said, (*path, str(name)))
    else:
        yield path
