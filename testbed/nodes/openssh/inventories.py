"""Lists of machines in the files of other tools, as nodes of a topology.

Ansible's inventories (INI and YAML, by ``ansible-inventory`` where it is installed), ssh_config(5),
which ``vagrant ssh-config`` prints, too, and the table of ``docker context ls``.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from testbed import owner
from testbed.errors import UsageError
from testbed.nodes.attachable import Listed
from testbed.nodes.openssh import ansible
from testbed.nodes.openssh.section import PORTS, WORD

HOSTS = re.compile(r"\s*(Host|Include)(?:[ \t]*=[ \t]*|[ \t]+)(\S.*)", re.IGNORECASE)
CONTEXT = re.compile(r"^(\S+)(?: \*)?\s.*?(ssh://\S+)", re.MULTILINE)
JUMP = re.compile(
    r"""(?:^|\s)(?:-J\s*|-o\s*["']?ProxyJump(?:\s*=\s*|\s+))["']?([^\s"']+)["']?""", re.IGNORECASE
)
#: Variables of Ansible's connection plugin ``ssh``, the older names last, with our keys.
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "address": ("ansible_host", "ansible_ssh_host"),
    "user": ("ansible_user", "ansible_ssh_user"),
    "port": ("ansible_port", "ansible_ssh_port"),
    "key": ("ansible_ssh_private_key_file", "ansible_private_key_file"),
}
ARGUMENTS = ("ansible_ssh_common_args", "ansible_ssh_extra_args")
BY_SSH = ("ssh", "smart", "paramiko", "paramiko_ssh", "")


def read(path: str, text: str) -> Listed | None:
    """Return the machines that a file lists; None for a file of another kind.

    ``path`` is absolute, or empty for standard input.  Raises UsageError.
    """
    for kind in (_contexts, _ssh_config, _ansible):
        found = kind(path, text)
        if found is not None:
            return _usable(found)
    return None


def _usable(listed: Listed) -> Listed:
    """Leave out machines whose values ssh cannot use, such as templates of Ansible."""
    wrong = {name: key for name, keys in listed.machines.items() if (key := _unusable(keys))}
    return Listed(
        listed.what,
        {name: keys for name, keys in listed.machines.items() if name not in wrong},
        listed.shared,
        {**listed.left, **{name: f"its {key}" for name, key in wrong.items()}},
    )


def _unusable(keys: Mapping[str, Any]) -> str:
    """Return the first key, with its value, that ssh cannot use; empty if it can use all."""
    for key, value in keys.items():
        text = str(value)
        if key == "port":
            good = text.isdecimal() and int(text) in PORTS
        else:
            good = "{{" not in text and (key == "key" or bool(re.fullmatch(WORD, text)))
        if not good:
            return f"{key} is {text}"
    return ""


# -- docker context ls ---------------------------------------------------------------------


def _contexts(path: str, text: str) -> Listed | None:
    """Read the output of ``docker context ls``: a table, or a line of JSON for each."""
    del path
    lines = text.strip().splitlines()
    if lines and lines[0].startswith("{") and '"DockerEndpoint"' in lines[0]:
        try:
            given = [json.loads(line) for line in lines]
        except ValueError:
            return None
        pairs = [(str(one.get("Name")), str(one.get("DockerEndpoint"))) for one in given]
    elif lines and re.match(r"NAME\s.*DOCKER ENDPOINT", lines[0]):
        pairs = CONTEXT.findall(text)
    else:
        return None
    found, left = {}, {}
    for name, endpoint in pairs:
        try:
            url = urlsplit(endpoint)
            keys = {"address": url.hostname, "user": url.username, "port": url.port}
        except ValueError as error:
            left[name] = f"{endpoint}: {error}"
            continue
        if url.scheme == "ssh" and url.hostname:
            found[name] = {key: value for key, value in keys.items() if value}
    return Listed("contexts of Docker over ssh", found, left=left)


# -- ssh_config ----------------------------------------------------------------------------


def _ssh_config(path: str, text: str) -> Listed | None:
    # An inventory in INI form may have a host with the name host.
    if re.search(r"^\s*(\[|host\b.*\bansible_\w+=)", text, re.MULTILINE | re.IGNORECASE):
        return None
    names = list(_hosts(path, text, {path}))
    if not names:
        return None
    if not path:
        raise UsageError(
            "a configuration of ssh must be a file, because ssh reads it at each connection",
            hint="write it to one first: vagrant ssh-config > hosts; testbed attach hosts",
        )
    plain = [name for name in names if not re.search(r"[*?!]", name)]
    return Listed(
        "hosts of ssh_config", {name: {"address": name} for name in plain}, {"config": path}
    )


def _hosts(path: str, text: str, passed: set[str]) -> Iterator[str]:
    """Yield the patterns of all ``Host`` lines, also of included files.

    ``passed`` are the files that were read.  Raises UsageError.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if (found := HOSTS.fullmatch(line)) is None:
            continue
        try:
            words = shlex.split(found[2], comments=True)
        except ValueError as error:
            raise UsageError(str(error), where=f"{path or '-'}:{number}") from error
        if found[1].lower() == "host":
            yield from words
            continue
        for file in (one for word in words for one in _included(word)):
            if file not in passed:
                passed.add(file)
                yield from _hosts(file, _text(file), passed)


def _included(pattern: str) -> list[str]:
    """Return the files of an ``Include``, which begins at ~/.ssh in a user's own file."""
    folder = owner.login_home() / ".ssh"
    return sorted(glob.glob(str(folder / owner.expanded(pattern))))  # noqa: PTH207  an absolute pattern


def _text(file: str) -> str:
    """Return the text of a file; empty for one that ssh could not read either."""
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# -- Ansible -------------------------------------------------------------------------------


def _ansible(path: str, text: str) -> Listed | None:
    hosts = ansible.read(path, text)
    if not hosts:
        return None
    found, left = {}, {}
    for name, variables in hosts.items():
        connection = str(variables.get("ansible_connection") or "")
        if connection.removeprefix("ansible.builtin.") not in BY_SSH:
            left[name] = f"ansible_connection is {connection}"
            continue
        keys: dict[str, Any] = {"address": name}
        for key, names in VARIABLES.items():
            if given := next((variables[one] for one in names if variables.get(one)), None):
                keys[key] = int(given) if str(given).isdecimal() and key == "port" else str(given)
        if "key" in keys and not keys["key"].startswith("~"):
            keys["key"] = os.path.join(os.path.dirname(path), keys["key"])  # noqa: PTH118, PTH120  of any text
        arguments = " ".join(str(variables.get(one) or "") for one in ARGUMENTS)
        if jump := JUMP.search(arguments):
            keys["jump"] = jump[1]
            arguments = arguments.replace(jump[0], " ")
        if arguments.strip():
            left[f"{name}: options of ssh"] = arguments.strip()
        found[name] = keys
    return Listed("hosts of an inventory of Ansible", found, left=left)
