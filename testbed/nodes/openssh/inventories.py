"""Lists of machines in the files of other tools, as nodes of a topology.

Ansible's inventories (INI and YAML, by ``ansible-inventory`` where it is installed), ssh_config(5),
which ``vagrant ssh-config`` prints, too, and the table of ``docker context ls``.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import yaml

from testbed.errors import UsageError
from testbed.nodes.attachable import Listed
from testbed.process import run, which

HOST = re.compile(r"^\s*Host(?:\s+|\s*=\s*)(.+)$", re.IGNORECASE | re.MULTILINE)
CONTEXT = re.compile(r"^(\S+)(?: \*)?\s.*?(ssh://\S+)", re.MULTILINE)
SECTION = re.compile(r"^\[([^\]:]+)(?::(\w+))?\]$")
RANGE = re.compile(r"\[(\w+):(\w+)(?::(\d+))?\]")
JUMP = re.compile(r"(?:-J\s*|ProxyJump[= ])\s*[\"']?([^\s\"']+)")
#: Variables of Ansible's connection plugin ``ssh``, the older names last, with our keys.
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "address": ("ansible_host", "ansible_ssh_host"),
    "user": ("ansible_user", "ansible_ssh_user"),
    "port": ("ansible_port", "ansible_ssh_port"),
    "key": ("ansible_ssh_private_key_file", "ansible_private_key_file"),
}
ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")
BY_SSH = ("ssh", "smart", "paramiko", "ansible.builtin.ssh", "")


def read(path: str, text: str) -> Listed | None:
    """Return the machines that a file lists; None for a file of another kind.

    ``path`` is absolute, or empty for standard input.  Raises UsageError.
    """
    for kind in (_contexts, _ssh_config, _ansible):
        found = kind(path, text)
        if found is not None:
            return found
    return None


# -- docker context ls ---------------------------------------------------------------------


def _contexts(path: str, text: str) -> Listed | None:
    """Read the output of ``docker context ls``: a table, or a line of JSON for each."""
    del path
    lines = text.strip().splitlines()
    if lines and lines[0].startswith("{") and '"DockerEndpoint"' in lines[0]:
        given = [json.loads(line) for line in lines]
        pairs = [(str(one["Name"]), str(one["DockerEndpoint"])) for one in given]
    elif lines and re.match(r"NAME\s.*DOCKER ENDPOINT", lines[0]):
        pairs = CONTEXT.findall(text)
    else:
        return None
    found = {}
    for name, endpoint in pairs:
        url = urlsplit(endpoint)
        if url.scheme == "ssh" and url.hostname:
            keys = {"address": url.hostname, "user": url.username, "port": url.port}
            found[name] = {key: value for key, value in keys.items() if value}
    return Listed("contexts of Docker over ssh", found)


# -- ssh_config ----------------------------------------------------------------------------


def _ssh_config(path: str, text: str) -> Listed | None:
    found = HOST.findall(text)
    if not found:
        return None
    if not path:
        raise UsageError(
            "a configuration of ssh must be a file, because ssh reads it at each connection",
            hint="write it to one first: vagrant ssh-config > hosts; testbed attach hosts",
        )
    names = [name for line in found for name in shlex.split(line, comments=True)]
    plain = [name for name in names if not re.search(r"[*?!]", name)]
    return Listed(
        "hosts of ssh_config", {name: {"address": name} for name in plain}, {"config": path}
    )


# -- Ansible -------------------------------------------------------------------------------


def _ansible(path: str, text: str) -> Listed | None:
    if path and which("ansible-inventory"):
        done = run(["ansible-inventory", "-i", path, "--list"], check=False)
        data = json.loads(done.out) if done.status == 0 else {}
        hosts = data.get("_meta", {}).get("hostvars", {})
        members = {host for group in data.values() for host in group.get("hosts", ())}
        if members:
            return _listed({host: hosts.get(host, {}) for host in sorted(members)})
    hosts = _of_yaml(text) or _of_ini(text)
    return _listed(hosts) if hosts else None


def _listed(hosts: Mapping[str, Mapping[str, Any]]) -> Listed:
    found, left = {}, {}
    for name, variables in hosts.items():
        connection = str(variables.get("ansible_connection", ""))
        if connection not in BY_SSH:
            left[name] = f"ansible_connection is {connection}"
            continue
        keys: dict[str, Any] = {"address": name}
        for key, names in VARIABLES.items():
            if given := next((variables[one] for one in names if variables.get(one)), None):
                keys[key] = int(given) if key == "port" else str(given)
        arguments = " ".join(str(variables.get(one, "")) for one in ARGUMENTS)
        if jump := JUMP.search(arguments):
            keys["jump"] = jump[1]
        elif arguments.strip():
            left[f"{name}: options of ssh"] = arguments.strip()
        found[name] = keys
    return Listed("hosts of an inventory of Ansible", found, left=left)


def _of_yaml(text: str) -> dict[str, dict[str, Any]]:
    """Return the variables of each host of an inventory in YAML; none if it is not one."""
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    if not isinstance(data, dict) or not any(_is_group(group) for group in data.values()):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for group in data.values():
        _walk(group, {}, found)
    return found


def _is_group(group: object) -> bool:
    return isinstance(group, dict) and bool({"hosts", "children"} & group.keys())


def _walk(group: Any, above: Mapping[str, Any], found: dict[str, dict[str, Any]]) -> None:
    """Add the hosts of a group and its children; the nearest variables win."""
    if not isinstance(group, dict):
        return
    variables = {**above, **(group.get("vars") or {})}
    for pattern, own in (group.get("hosts") or {}).items():
        for name in _names(str(pattern)):
            found[name] = {**variables, **found.get(name, {}), **(own or {})}
    for child in (group.get("children") or {}).values():
        _walk(child, variables, found)


def _of_ini(text: str) -> dict[str, dict[str, Any]]:
    """Return the variables of each host of an inventory in INI form; none if it is not one."""
    hosts: dict[str, dict[str, Any]] = {}
    groups: dict[str, list[str]] = {"all": []}
    variables: dict[str, dict[str, Any]] = {}
    children: dict[str, list[str]] = {}
    group, kind, is_one = "ungrouped", "", False
    for line in (line.strip() for line in text.splitlines()):
        if not line or line[0] in "#;":
            continue
        if header := SECTION.match(line):
            group, kind, is_one = header[1], header[2] or "", True
        elif kind == "vars":
            name, _, value = line.partition("=")
            variables.setdefault(group, {})[name.strip()] = value.strip().strip("\"'")
        elif kind == "children":
            children.setdefault(group, []).append(line)
        else:
            try:
                pattern, *pairs = shlex.split(line, comments=True)
            except ValueError:
                return {}
            if any("=" not in pair for pair in pairs):
                return {}
            is_one = is_one or any(pair.startswith("ansible_") for pair in pairs)
            for name in _names(pattern):
                own = hosts.setdefault(name, {})
                own |= dict(pair.split("=", 1) for pair in pairs)
                groups.setdefault(group, []).append(name)
    if not is_one:
        return {}
    return {
        name: {**_inherited(name, groups, variables, children), **own}
        for name, own in hosts.items()
    }


def _inherited(
    name: str,
    groups: Mapping[str, list[str]],
    variables: Mapping[str, dict[str, Any]],
    children: Mapping[str, list[str]],
) -> dict[str, Any]:
    """Return the variables that a host has from its groups, those of all first."""
    found = dict(variables.get("all", {}))
    mine = [group for group, names in groups.items() if name in names]
    above = [parent for parent, below in children.items() if set(below) & set(mine)]
    for group in (*above, *mine):
        found |= variables.get(group, {})
    return found


def _names(pattern: str) -> Iterator[str]:
    """Yield the hosts of a pattern with ranges.

    >>> list(_names("web[08:10]-[a:b]"))[:3]
    ['web08-a', 'web08-b', 'web09-a']
    """
    parts = RANGE.split(pattern)
    # Four fields for each range: the text before it, its ends, its step.
    ranges = [_range(*parts[at + 1 : at + 4]) for at in range(0, len(parts) - 1, 4)]
    texts = parts[::4]
    for chosen in itertools.product(*ranges):
        pairs = itertools.zip_longest(texts, chosen, fillvalue="")
        yield "".join(text + word for text, word in pairs)


def _range(first: str, last: str, step: str | None) -> list[str]:
    by = int(step or 1)
    if first.isdigit() and last.isdigit():
        width = len(first) if first.startswith("0") else 0
        return [f"{n:0{width}d}" for n in range(int(first), int(last) + 1, by)]
    return [chr(code) for code in range(ord(first[0]), ord(last[0]) + 1, by)]
