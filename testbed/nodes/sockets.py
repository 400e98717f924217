"""Sockets that accept connections or datagrams, from proc(5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from testbed.nodes.base import Node

#: State in /proc/net of a socket that accepts connections or datagrams (proc(5)).
LISTENS = {"tcp": "0A", "udp": "07"}
#: Docker's DNS server in a container, 127.0.0.11, in the format of /proc/net.
DOCKER_DNS = "0B00007F"


def sockets(node: Node, pid: int, protocol: str) -> dict[str, int]:
    """Return the listening ports in a network namespace, by socket inode.

    ``pid`` is a process in the namespace.
    """
    found = {}
    for family in ("", "6"):
        try:
            table = node.get(f"/proc/{pid}/net/{protocol}{family}").decode()
        except OSError:  # the process has just ended, or IPv6 is disabled
            continue
        for line in table.splitlines()[1:]:
            fields = line.split()
            address, _, port = fields[1].partition(":")
            if fields[3] == LISTENS[protocol] and address != DOCKER_DNS:
                found[fields[9]] = int(port, 16)
    return found
