"""Hosts of an Ansible inventory, in INI or YAML form, or as ``ansible-inventory --list`` prints it.

The forms and the order of variables are those of ansible/plugins/inventory/ini.py and yaml.py,
and of ansible/inventory/helpers.py.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Any

import yaml

from testbed.errors import UsageError
from testbed.nodes.openssh import client
from testbed.process import run, which

SECTION = re.compile(r"\[([^:\]\s]+)(?::(hosts|vars|children))?\]\s*(?:#.*)?")
RANGE = re.compile(r"\[(\w*):(\w+)(?::(\d+))?\]", re.ASCII)
ALL = "all"  # the group above all others
META = "_meta"  # the mapping with the variables of hosts beside the groups

#: Variables of a host or a group, by name.
Variables = Mapping[str, Any]


class _Loader(yaml.SafeLoader):
    """Reads values with the tags of Ansible as nothing, and times as text."""


_Loader.add_constructor(None, lambda _loader, _node: None)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _loader, node: node.value)


@dataclass(slots=True)
class _Inventory:
    """Hosts and groups by name.  ``members`` and ``children`` are those of each group."""

    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    members: dict[str, set[str]] = field(default_factory=dict)
    children: dict[str, set[str]] = field(default_factory=dict)
    variables: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, group: str, pattern: str, variables: Variables) -> None:
        """Add the hosts of a pattern to a group.  Raises UsageError for a wrong range."""
        host, port = _host(pattern)
        for name in _names(host):
            self.hosts.setdefault(name, {}).update({**port, **variables})
            self.members.setdefault(group, set()).add(name)

    def all_variables(self) -> dict[str, Variables]:
        """Return the variables of each host; those of the nearest group precede."""
        return {
            name: {
                **self.variables.get(ALL, {}),
                **_merged(self.variables.get(group, {}) for group in self._groups(name)),
                **own,
            }
            for name, own in self.hosts.items()
        }

    def _groups(self, host: str) -> list[str]:
        """Return the groups of a host but the one above all, the farthest first."""
        found = {group for group, names in self.members.items() if host in names}
        new = found
        while new:
            new = {above for group in new for above in self._above(group)} - found
            found |= new
        return sorted(found - {ALL}, key=lambda group: (self._depth(group), group))

    def _above(self, group: str) -> list[str]:
        return [above for above, below in self.children.items() if group in below]

    def _depth(self, group: str, passed: frozenset[str] = frozenset({ALL})) -> int:
        passed |= {group}
        above = [one for one in self._above(group) if one not in passed]
        return max((self._depth(one, passed) for one in above), default=0) + 1


def _merged(parts: Iterable[Variables]) -> Variables:
    return dict(itertools.chain.from_iterable(part.items() for part in parts))


def read(path: str, text: str) -> Mapping[str, Variables]:
    """Return the variables of each host, by its name; none if the text is no inventory.

    Ansible itself reads the file at ``path`` where it is installed.  ``path`` is empty for
    standard input.  Raises UsageError.
    """
    return (_by_ansible(path) if path else {}) or _of_yaml(text) or _of_ini(text)


def _by_ansible(path: str) -> Mapping[str, Variables]:
    # It takes a path with a comma for a list of hosts.
    if "," in path or not which("ansible-inventory"):
        return {}
    # As the user: its configuration is theirs, and it runs an inventory that is a program.
    done = run([*client.as_caller(), "ansible-inventory", "-i", path, "--list"], check=False)
    return {} if done.status else _of_yaml(done.out.decode())


def _of_yaml(text: str) -> Mapping[str, Variables]:
    try:
        # JSON first: it is also YAML, which takes much longer.
        data = json.loads(text) if text.lstrip()[:1] == "{" else None
    except ValueError:
        data = None
    try:
        data = data or yaml.load(text, _Loader)  # noqa: S506  a SafeLoader
    except (yaml.YAMLError, ValueError):
        return {}
    if not isinstance(data, dict) or not any(_is_group(group) for group in data.values()):
        return {}
    found = _Inventory()
    for name, group in data.items():
        if name != META:
            _add_group(found, str(name), group)
    for name, variables in _items(_mapping(data.get(META)).get("hostvars")):
        if name in found.hosts:
            found.hosts[name].update(variables)
    return {} if not any(found.members.values()) else found.all_variables()


def _is_group(group: object) -> bool:
    return isinstance(group, dict) and bool({"hosts", "children"} & group.keys())


def _add_group(found: _Inventory, name: str, group: object) -> None:
    given = {"hosts": group} if isinstance(group, list) else _mapping(group)
    for pattern, own in _items(given.get("hosts")):
        found.add(name, pattern, own)
    for child, _ in _items(given.get("children")):
        found.children.setdefault(name, set()).add(child)
    for child, below in _mapping(given.get("children")).items():
        _add_group(found, str(child), below)
    found.variables.setdefault(name, {}).update(_mapping(given.get("vars")))


def _mapping(given: object) -> dict[Any, Any]:
    return given if isinstance(given, dict) else {}


def _items(given: object) -> Iterator[tuple[str, dict[Any, Any]]]:
    """Yield the names in a list or a mapping, each with its own mapping."""
    if isinstance(given, dict):
        yield from ((str(name), _mapping(own)) for name, own in given.items())
    elif isinstance(given, list):
        yield from ((name, {}) for name in given if isinstance(name, str))


def _of_ini(text: str) -> Mapping[str, Variables]:
    found = _Inventory()
    group, kind, is_one = "ungrouped", "hosts", False
    for line in (line.strip() for line in text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if header := SECTION.fullmatch(line):
            group, kind, is_one = header[1], header[2] or "hosts", True
            continue
        if kind == "vars":
            name, _, value = line.partition("=")
            found.variables.setdefault(group, {})[name.strip()] = value.strip().strip("\"'")
            continue
        try:
            first, *pairs = shlex.split(line, comments=True)
        except ValueError:
            return {}
        if "=" in first or any("=" not in pair for pair in pairs):
            return {}
        if kind == "children":
            found.children.setdefault(group, set()).add(first)
        else:
            is_one = is_one or any(pair.startswith("ansible_") for pair in pairs)
            found.add(group, first, dict(pair.split("=", 1) for pair in pairs))
    return found.all_variables() if is_one else {}


# -- names of hosts ------------------------------------------------------------------------


def _host(pattern: str) -> tuple[str, Variables]:
    """Return the host of a pattern, and the variable with the port that follows it.

    >>> _host("web[01:10]:2222"), _host("[2001:db8::1]:22")
    (('web[01:10]', {'ansible_port': '2222'}), ('2001:db8::1', {'ansible_port': '22'}))
    """
    if _is_ipv6(pattern):
        return pattern, {}
    found = re.fullmatch(r"(.+?)(?::(\d+))?", pattern)
    if found is None:
        return pattern, {}
    host, port = found[1], {"ansible_port": found[2]} if found[2] else {}
    inner = host.removeprefix("[").removesuffix("]")
    return (inner if _is_ipv6(inner) else host), port


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _names(pattern: str) -> Iterator[str]:
    """Yield the hosts of a pattern with ranges.

    >>> list(_names("web[08:10]-[a:b]"))[:3]
    ['web08-a', 'web08-b', 'web09-a']
    """
    parts = RANGE.split(pattern)
    # Four fields for each range: the text before it, its ends, its step.
    ranges = [_range(*parts[at + 1 : at + 4]) for at in range(0, len(parts) - 1, 4)]
    if not all(ranges):
        raise UsageError(f"{pattern} has a range without hosts", hint="like web[01:10], or db[a:f]")
    texts = parts[::4]
    for chosen in itertools.product(*ranges):
        pairs = itertools.zip_longest(texts, chosen, fillvalue="")
        yield "".join(text + word for text, word in pairs)


def _range(first: str, last: str, step: str | None) -> list[str]:
    """Return the members of a range; none if it is wrong."""
    first, by = first or "0", 1 if step is None else int(step)
    if by == 0:
        return []
    if first.isdigit() and last.isdigit():
        width = len(first) if first.startswith("0") else 0
        return [f"{n:0{width}d}" for n in range(int(first), int(last) + 1, by)]
    if len(first) == len(last) == 1 and {first, last} <= {*string.ascii_letters}:
        letters = string.ascii_letters
        return [*letters[letters.index(first) : letters.index(last) + 1 : by]]
    return []
