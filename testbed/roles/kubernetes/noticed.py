"""Kubernetes on a machine that no lab has."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from testbed.roles.kubernetes.config import CNI

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: Prints the version of the kubelet that runs, wherever its program is, and on the next lines the
#: network configuration that a container runtime takes: the first by name (containernetworking/cni,
#: libcni/conf.go, ConfFiles).
LOOK = f"""\
for folder in /proc/[0-9]*; do
  [ "$(cat "$folder/comm" 2> /dev/null)" = kubelet ] && "$folder/exe" --version && break
done || echo
for file in {CNI}/*; do
  case $file in *.conf | *.conflist | *.json) cat "$file"; break;; esac
done
"""


def words(machine: Node) -> str:
    """Return the version of a machine's kubelet and its network plugin.  Raises LabError."""
    version, _, network = machine.run(["sh", "-c", LOOK]).stdout.partition("\n")
    kubelet = f"kubelet {version.strip().rpartition(' ')[2]}".strip()
    plugin = plugin_of(network)
    return f"{kubelet}, CNI {plugin}" if plugin else kubelet


def plugin_of(text: str) -> str:
    """Return the type of the first plugin of a CNI configuration; empty without one.

    >>> plugin_of('{"name": "cbr0", "plugins": [{"type": "flannel"}, {"type": "portmap"}]}')
    'flannel'
    """
    with contextlib.suppress(ValueError, LookupError, TypeError):
        given = json.loads(text)
        return str((given["plugins"][0] if "plugins" in given else given)["type"])
    return ""
