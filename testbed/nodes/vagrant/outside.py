"""Access to a lab's machines for a Vagrant outside of their hypervisor (``vagrant up``).

Vagrant reaches libvirtd by its socket, and the machines by ssh through a program
that enters the hypervisor's network namespace.  Nothing of the lab is in this
machine's own network namespace.

    python -m testbed.nodes.vagrant.outside PID HOST PORT

is that program: it connects its standard input and output to a port in the network
namespace of a process.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.nodes.base import NodeSpec
    from testbed.nodes.netns.node import NetnsNode

#: libvirt's driver without machines, for a lab that is not running.
NOBODY = "test:///default"
SECONDS = 10.0  # timeout of a connection


def description(cell: NetnsNode | None, specs: Iterable[NodeSpec]) -> dict[str, Any]:
    """Return the lab's description for the Vagrantfile; ``cell`` is None if it is not running."""
    from testbed.nodes.vagrant import hypervisor

    if cell is None:
        return {
            **hypervisor.about("tcg", kernel="", initrd="", release="0"),
            "uri": NOBODY,
            "machines": {s.name: hypervisor.Machine.of(s).described() for s in specs},
        }
    lab = hypervisor.read(cell)
    for machine in lab["machines"].values():
        for word in ("key", "address"):  # the others are read only in the hypervisor
            machine[word] = cell.socket(machine[word])
    proxy = [sys.executable, "-m", __name__, str(cell.init.pid)]
    return {
        **lab,
        "uri": f"qemu+unix:///system?socket={cell.socket(hypervisor.SOCKET)}",
        "proxy": f"{shlex.join(proxy)} %h %p",
    }


def main(pid: int, host: str, port: int) -> None:
    """Copy bytes both ways until both sides are closed.  Raises OSError."""
    from testbed.nodes.inside import exchange, open_port

    with open_port(pid, host, SECONDS, port) as far:
        exchange(far)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    except OSError as error:
        sys.exit(f"{sys.argv[2]}:{sys.argv[3]} cannot be reached: {error}")
