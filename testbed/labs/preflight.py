"""Check this machine for a topology's requirements.

Kernel features are tested in practice, once per boot. Successful tests are stored in the cache
folder, so later calls cost nothing. Failed tests are repeated each time, because the user may have
fixed the cause.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import boot_cache, kernel, limits
from testbed.artifacts import release
from testbed.errors import MachineError, UsageError
from testbed.memory import available
from testbed.process import which
from testbed.registry import PROVIDERS, ROLES, fabric_kind

if TYPE_CHECKING:
    from testbed.limits import Takes
    from testbed.nodes.base import Provider
    from testbed.topology.model import Topology

PROGRAMS = {"ip": "iproute2", "nsenter": "util-linux", "mount": "mount"}
KEPT = "machine"
PROC = Path("/proc")
SYSCTL = PROC / "sys"
INSTANCE = "anon_inode:inotify"  # target of the link in /proc/PID/fd
FILES = 48  # open files of testbed itself with one running step
TASKS = ("pid_max", "threads-max")
#: Connections that the kernel of a node tracks at once, and more for each other node, with some to
#: spare: two-node has 10 on the node of etcd, 18 with ten nodes, and 170 after all checks.
CONNECTIONS = 256
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "uts")


def kernel_features(topology: Topology) -> set[str]:
    """Return the kernel features that the topology needs.

    Their names are those of :mod:`testbed.kernel`.
    """
    wanted = set(kernel.EVERY_LAB)
    for provider in topology.providers:
        wanted |= set(PROVIDERS[provider].kernel)
    wanted |= {"tun", "nft nat"} if topology.uplinks else set()
    ports = [port for node in topology.nodes.values() for port in node.ports]
    # What a node sends is shaped by its own kernel, and VLANs by the bridges of this machine.
    shaped = [port for port in ports if port.shaping and _maker(topology, port.node).shares_kernel]
    kinds = {one.kind for port in shaped for one in port.shaping}
    wanted |= {"tbf"} if "rate" in kinds else set()
    wanted |= {"netem"} if kinds & {"delay", "loss"} else set()
    wanted |= {"bridge vlan"} if any(port.vlan or port.trunk for port in ports) else set()
    for role in _roles_where(topology, lambda maker: maker.shares_kernel):
        wanted |= set(ROLES[role].kernel_for(topology))
    return wanted


def programs(topology: Topology) -> dict[str, str]:
    """Return the programs that the steps run on this machine, with their Debian packages."""
    wanted: dict[str, str] = dict(PROGRAMS)
    for provider in topology.providers:
        wanted |= PROVIDERS[provider].programs
    wanted |= {"nft": "nftables"} if topology.uplinks else {}
    for role in _roles_where(topology, lambda maker: maker.shares_programs):
        wanted |= ROLES[role].programs_for(topology)
    return wanted


def _roles_where(topology: Topology, trait: Callable[[type[Provider]], bool]) -> set[str]:
    """Return the roles of nodes whose provider has a trait."""
    nodes = (n for n in topology.nodes.values() if trait(_maker(topology, n.name)))
    return {role for node in nodes for role in node.roles}


def _maker(topology: Topology, node: str) -> type[Provider]:
    return PROVIDERS[topology.provider_of(node)]


def check(topology: Topology, cache: Path) -> None:
    """Raise MachineError if this machine lacks a requirement.

    The error lists everything that is missing.
    """
    _files(topology)
    missing = {name: of for name, of in programs(topology).items() if which(name) is None}
    if missing:
        packages = " ".join(sorted(set(release.packages(missing.values()))))
        raise MachineError(
            f"missing on this machine: {', '.join(sorted(missing))}",
            missing=sorted(missing),
            hint=f"apt-get install {packages}, or let `{_doctor(topology)} --fix` do it",
        )
    wanted = kernel_features(topology)
    if wanted <= _known(cache):
        return
    found = {item.name: item for item in kernel.features()}
    lacking = [found[name] for name in sorted(wanted) if name in found and not found[name].ok]
    if not any(name in found for name in wanted):  # no namespaces at all: one finding says why
        lacking = [item for item in found.values() if not item.ok]
    if lacking:
        raise MachineError(
            "this machine's kernel lacks features that the topology needs\n"
            + "\n".join(f"    {item.name}: {item.detail}; {item.fix}" for item in lacking),
            missing=[item.name for item in lacking],
            hint=f"`{_doctor(topology)}` shows all requirements{_other(topology)}",
        )
    _keep(cache, {name for name, item in found.items() if item.ok})


def memory(topology: Topology, making: Iterable[str]) -> None:
    """Check that the new nodes have enough memory for their software.

    Raises UsageError if a node's own limit is too low, MachineError if this machine has too
    little memory.
    """
    wanted = {}
    for name in making:
        node = topology.nodes[name]
        if _maker(topology, name).shares_kernel:
            wanted[name] = sum(ROLES[role].memory(topology, name) for role in node.roles)
            if node.memory is not None and node.memory < wanted[name]:
                raise UsageError(
                    f"{name} has {node.memory >> 20} MiB of memory (`memory:`), but its "
                    "software needs "
                    f"{wanted[name] >> 20} MiB",
                    hint="raise `memory` of the node, or remove it",
                )
    if sum(wanted.values()) > (free := available()):
        raise MachineError(
            f"the new nodes of {topology.name} need {sum(wanted.values()) >> 20} MiB of "
            "memory, but "
            f"only {free >> 20} MiB are free",
            hint="use fewer nodes, or end other programs and labs",
        )


def _files(topology: Topology) -> None:
    """Raise the limit of open files, which the daemons on nodes inherit.

    With too few file descriptors dockerd accepts no connections.
    """
    takes = [part for name in topology.nodes for part in _takes(topology, name)]
    limits.require(max([FILES, *(part.files for part in takes)]), topology.name, hard=True)


def _takes(topology: Topology, name: str) -> list[Takes]:
    """Return the use of this machine's limits by a node and its roles."""
    maker = _maker(topology, name)
    roles = topology.nodes[name].roles if maker.shares_kernel else ()
    return [maker.takes, *(ROLES[role].takes(topology, name) for role in roles)]


def room(topology: Topology, making: Iterable[str]) -> None:
    """Check that this machine's limits leave room for the new nodes.

    Raises MachineError with every limit that is too low, and the numbers.
    """
    names = list(making)
    takes = [part for name in names for part in _takes(topology, name)]
    tasks, inotify = sum(t.tasks for t in takes), sum(t.inotify for t in takes)
    short = [
        *_too_many_tasks(topology, tasks),
        *_too_many_instances(inotify),
        *_too_many_namespaces(topology, names),
        *_too_many_connections(topology, names),
    ]
    if short:
        raise MachineError(
            f"{topology.name} exceeds the limits of this machine\n"
            + "\n".join(f"    {line}" for line in short),
            hint="raise these limits, use fewer nodes, or end other labs and programs",
        )


def _too_many_tasks(topology: Topology, wanted: int) -> Iterator[str]:
    """Yield exceeded limits of processes and threads.

    These are limits of this machine and of the providers' nodes.
    """
    if not wanted:
        return
    # proc_loadavg(5): the fourth field is RUNNING/ALL.
    used = int((PROC / "loadavg").read_text(encoding="utf-8").split()[3].partition("/")[2])
    limits = [(f"sysctl kernel.{name}", _number(SYSCTL / "kernel" / name), used) for name in TASKS]
    # Nodes run beside their fabric: its limits hold for them, too.
    kinds = {kind for name in topology.providers for kind in (name, fabric_kind(PROVIDERS[name]))}
    limits += [limit for kind in sorted(kinds) for limit in PROVIDERS[kind].task_limits()]
    for name, most, taken in limits:
        if most is not None and taken + wanted > most:
            yield f"processes and threads: {wanted} needed, {taken} of {most} in use ({name})"


def _too_many_instances(wanted: int) -> Iterator[str]:
    """Yield the exceeded limit of inotify instances per user.

    It is low by default. A daemon without an instance exits with "too many open files"
    (inotify(7)).
    """
    file = SYSCTL / "fs/inotify/max_user_instances"
    if not wanted or (most := _number(file)) is None:
        return
    used = _inotify_used()
    if used + wanted > most:
        yield (
            f"inotify instances: {wanted} needed, {used} of {most} in use "
            f"(sysctl fs.inotify.{file.name})"
        )


def _too_many_namespaces(topology: Topology, making: Sequence[str]) -> Iterator[str]:
    """Yield exceeded limits of namespaces.

    Nodes, the fabric and containers use them. See namespaces(7).
    """
    wanted = len(making) + 1 + sum(c.node in making for c in topology.containers.values())
    more = sum(namespace.node in making for namespace in topology.namespaces.values())
    for kind in NAMESPACES:
        need = wanted + (more if kind == "net" else 0)
        most = _number(SYSCTL / "user" / f"max_{kind}_namespaces")
        if making and most is not None and need > most:
            name = f"user.max_{kind}_namespaces"
            yield f"{kind} namespaces: {need} needed, at most {most} (sysctl {name})"


def _too_many_connections(topology: Topology, making: Sequence[str]) -> Iterator[str]:
    """Yield the exceeded limit of tracked connections.

    It is the same in all network namespaces, but each has a count of its own (tried on Linux 6.18:
    a full table of one leaves the others alone).  So nodes do not add up.
    """
    need = CONNECTIONS + len(topology.nodes)
    most = _number(SYSCTL / "net/netfilter/nf_conntrack_max")  # 0 is no limit
    if most and most < need and any(_maker(topology, name).shares_kernel for name in making):
        yield (
            f"tracked connections of a node: {need} needed, at most {most} "
            "(sysctl net.netfilter.nf_conntrack_max)"
        )


def _number(file: Path) -> int | None:
    """Return the number in a file of /proc.

    Return None if this kernel has no such limit.
    """
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _inotify_used() -> int:
    """Return the number of inotify instances of all processes of this user."""
    user, count = os.geteuid(), 0
    for process in os.listdir(PROC):  # noqa: PTH208  (Path costs 3x in these loops)
        folder = f"{PROC}/{process}/fd"
        try:
            ours = process.isdigit() and os.stat(folder).st_uid == user  # noqa: PTH116
            links = os.listdir(folder) if ours else []  # noqa: PTH208
        except OSError:  # the process has just ended
            continue
        for link in links:
            with suppress(OSError):  # the file has just been closed
                count += os.readlink(f"{folder}/{link}") == INSTANCE  # noqa: PTH115
    return count


def _doctor(topology: Topology) -> str:
    """Return the command that shows the topology's requirements."""
    own = PROVIDERS[topology.provider]
    asks = bool(own.kernel or own.programs)
    return f"testbed doctor --provider {topology.provider}" if asks else "testbed doctor"


def _other(topology: Topology) -> str:
    """Return a hint to a variant that may need fewer kernel features."""
    hints = (ROLES[role].alternative(topology) for role in topology.roles)
    return next((f"; {hint}" for hint in hints if hint), "")


def _known(cache: Path) -> set[str]:
    found = boot_cache.recall(cache, KEPT)
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


def _keep(cache: Path, works: set[str]) -> None:
    boot_cache.keep(cache, KEPT, sorted(works))
