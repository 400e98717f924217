"""The cgroup of a node, in version 1, version 2 and mixed hierarchies.

Every node has one folder, ``testbed/LAB/NODE``, in each mounted hierarchy.  All
processes of the node run below it, containers included, because the node sees
that folder as its root (cgroup_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import LabError, MachineError
from testbed.polling import until

TOP = "testbed"
PERIOD = 100_000  # microseconds, the kernel's own default for cpu.cfs_period_us


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted cgroup hierarchy; ``controllers`` as in the mount's options."""

    mount: Path
    version: int
    controllers: tuple[str, ...]

    @property
    def option(self) -> tuple[str, str]:
        """The option of ``testbed-init`` that mounts it (see ``init.c``)."""
        if self.version == 2:
            unified = self.mount == Path("/sys/fs/cgroup")
            return ("mount2", "." if unified else self.mount.name)
        return ("mount1", f"{self.mount.name}={','.join(self.controllers)}")


def hierarchies(mountinfo: str | None = None) -> list[Hierarchy]:
    """The hierarchies mounted below /sys/fs/cgroup, from proc_pid_mountinfo(5) text."""
    text = mountinfo
    if text is None:  # mount points may have any encoding
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    found: dict[Path, Hierarchy] = {}
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, super_options = [*after.split(" "), "", "", ""][:3]
        fields = before.split(" ")
        if len(fields) < 5:  # an unknown format, not a cgroup mount
            continue
        mount = Path(fields[4])
        if not mount.is_relative_to("/sys/fs/cgroup"):
            continue
        if kind == "cgroup2":
            found[mount] = Hierarchy(mount, 2, ())
        elif kind == "cgroup":
            names = tuple(o for o in super_options.split(",") if _is_controller(o))
            found[mount] = Hierarchy(mount, 1, names)
    return list(found.values())


def _is_controller(option: str) -> bool:
    other = ("rw", "ro", "xattr", "clone_children", "noprefix", "nsdelegate", "none")
    return option not in other and not option.startswith(("release_agent=", "cpuset_v2_mode"))


def folder_name(lab: str, state: Path) -> str:
    """Return the name of a lab's folder, from the lab's name and its state folder."""
    return f"{lab}.{hashlib.sha256(os.fsencode(state)).hexdigest()[:8]}"


def create(name: str, node: str, *, cpus: float | None, memory: int | None) -> list[str]:
    """Create a node's folders with their limits; return them for ``testbed-init``.

    ``cpus`` is a number of CPUs, ``memory`` is in bytes; None means no limit.
    Raises LabError if a limit cannot be set on this machine.
    """
    options: list[str] = []
    limited: set[str] = set()
    for hierarchy in hierarchies():
        folder = hierarchy.mount / TOP / name / node
        _make(hierarchy, folder)
        limited |= _limit(hierarchy, folder, cpus, memory)
        options += ["cgroup", str(folder), *hierarchy.option]
    wanted = {k for k, v in (("cpu", cpus), ("memory", memory)) if v is not None}
    if wanted - limited:
        raise LabError(
            f"{node}: this machine has no cgroup controller that limits "
            f"{' or '.join(sorted(wanted - limited))}",
            hint="remove the limit from the topology, or mount that controller",
        )
    return options


def places(name: str, node: str) -> list[Path]:
    """Return the folders of a node for one more process, one in each hierarchy."""
    found = [hierarchy.mount / TOP / name / node for hierarchy in hierarchies()]
    # Version 2 has processes in leaves only: `testbed-init` is in one (delegate_v2() of init.c).
    return [folder / "init" if (folder / "init").is_dir() else folder for folder in found]


def _make(hierarchy: Hierarchy, folder: Path) -> None:
    for _ in range(100):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            break
        except FileNotFoundError:  # a concurrent `down` has just removed the parent
            continue
    ladder = [hierarchy.mount, *reversed(list(folder.parents)[:2]), folder]
    if "cpuset" in hierarchy.controllers:
        for above, below in itertools.pairwise(ladder):
            for file in ("cpuset.cpus", "cpuset.mems"):
                # Empty sets refuse processes; a child starts empty in version 1.
                if not (below / file).read_text().strip():
                    (below / file).write_text((above / file).read_text())
    if hierarchy.version == 2:
        # Not on the mount itself: the machine decides which controllers it delegates.
        for above in ladder[1:-1]:
            for controller in (above / "cgroup.controllers").read_text().split():
                try:
                    (above / "cgroup.subtree_control").write_text(f"+{controller}")
                except OSError as error:
                    # Busy or unsupported for this controller: the node does without it.
                    if error.errno not in (errno.EBUSY, errno.EINVAL, errno.ENOTSUP):
                        raise


def _limit(hierarchy: Hierarchy, folder: Path, cpus: float | None, memory: int | None) -> set[str]:
    done = set()
    quota = None if cpus is None else max(1000, int(cpus * PERIOD))
    if hierarchy.version == 2:
        values = {
            "cpu": ("cpu.max", None if quota is None else f"{quota} {PERIOD}"),
            "memory": ("memory.max", memory),
        }
    else:
        values = {
            "cpu": ("cpu.cfs_quota_us", quota),
            "memory": ("memory.limit_in_bytes", memory),
        }
    for name, (file, value) in values.items():
        if value is not None and (folder / file).exists():
            (folder / file).write_text(str(value))
            done.add(name)
    return done


@dataclass(frozen=True, slots=True)
class Freezer:
    """Pauses all processes of a node: cgroup.freeze in version 2, the freezer in version 1."""

    hierarchy: Hierarchy

    def file(self, name: str, node: str) -> Path:
        """Return the file with a node's state."""
        file = "cgroup.freeze" if self.hierarchy.version == 2 else "freezer.state"
        return self.hierarchy.mount / TOP / name / node / file

    def set(self, name: str, node: str, *, on: bool, timeout: float = 10.0) -> None:
        """Pause or continue a node and wait until that is done.

        Raises LabError after ``timeout`` seconds.
        """
        words = {2: ("0", "1"), 1: ("THAWED", "FROZEN")}[self.hierarchy.version]
        path = self.file(name, node)
        try:
            path.write_text(words[on])
            if not until(lambda: self._is_so(path) is on, timeout, pause=0.001):
                raise LabError(
                    f"{node}: not all processes have {'stopped' if on else 'continued'} "
                    f"after {timeout:g} s",
                    hint="a process of the node hangs in the kernel; look at /proc/PID/stack",
                )
        except FileNotFoundError:
            raise LabError(
                f"{node} cannot be stopped: it has no cgroup",
                hint="stop its services instead: NODE/SERVICE",
            ) from None

    def _is_so(self, path: Path) -> bool:
        if self.hierarchy.version == 2:  # what was asked, and what has come of it
            return "frozen 1" in (path.parent / "cgroup.events").read_text().splitlines()
        return path.read_text().strip() == "FROZEN"

    def is_set(self, name: str, node: str) -> bool:
        """Tell whether a node is paused or being paused."""
        return is_paused(str(self.file(name, node)))

    def stopped(self, name: str) -> list[str]:
        """Return the paused nodes of a lab (see :func:`folder_name`)."""
        there = folders(self.hierarchy.mount / TOP / name)
        return sorted(node for node in there if self.is_set(name, node))


def is_paused(file: str) -> bool:
    """Tell whether a node is paused or being paused, from its :meth:`Freezer.file`.

    Each request to a node asks, so this uses no Path, which takes three times as long.
    """
    try:
        with open(file, encoding="ascii") as text:  # noqa: PTH123
            return text.read().strip() not in ("0", "THAWED")
    except OSError:  # no such node, or none that could be stopped
        return False


@functools.cache
def freezer() -> Freezer | None:
    """Return the freezer of this machine; None if it has none."""
    for hierarchy in sorted(hierarchies(), key=lambda h: -h.version):
        if hierarchy.version == 2 or "freezer" in hierarchy.controllers:
            return Freezer(hierarchy)
    return None


def need_freezer() -> Freezer:
    """Return the freezer of this machine.  Raises MachineError if it has none."""
    found = freezer()
    if found is None:
        raise MachineError(
            "no cgroup hierarchy on this machine can stop a node (v2, or the freezer of v1)",
            hint="mount one below /sys/fs/cgroup, or stop a service instead: NODE/SERVICE",
        )
    return found


def folders(path: Path) -> set[str]:
    """Return the names of the subfolders; empty if ``path`` is missing or just removed."""
    try:
        with os.scandir(path) as entries:
            return {entry.name for entry in entries if entry.is_dir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def labs() -> list[str]:
    """Return the names (see :func:`folder_name`) of all labs that have a folder."""
    return sorted(set().union(*(folders(h.mount / TOP) for h in hierarchies())))


def nodes(name: str) -> set[str]:
    """Return the nodes of a lab that have a folder."""
    return set().union(*(folders(h.mount / TOP / name) for h in hierarchies()))


def busy(name: str) -> bool:
    """Tell whether a process runs in one of a lab's folders."""
    for hierarchy in hierarchies():
        for path in _bottom_up(hierarchy.mount / TOP / name):
            with contextlib.suppress(OSError):  # removed while we look
                if (path / "cgroup.procs").read_text().strip():
                    return True
    return False


def age(name: str) -> float:
    """Return the seconds since the last of a lab's folders was created, or less."""
    made = [0.0]
    for hierarchy in hierarchies():
        for path in _bottom_up(hierarchy.mount / TOP / name):
            with contextlib.suppress(OSError):
                made.append(path.stat().st_mtime)
    return time.time() - max(made)


def task_limits() -> list[tuple[Path, int, int]]:
    """Return the process limits that apply to all nodes: file, limit, current number."""
    found = []
    for hierarchy in hierarchies():
        if hierarchy.version == 2 or "pids" in hierarchy.controllers:
            for folder in (hierarchy.mount, hierarchy.mount / TOP):
                with contextlib.suppress(OSError, ValueError):  # without a limit it says "max"
                    file = folder / "pids.max"
                    used = int((folder / "pids.current").read_text())
                    found.append((file, int(file.read_text()), used))
    return found


def remove(name: str, node: str | None = None, *, timeout: float = 10.0) -> None:
    """Remove the folders of a node, or of the whole lab, as soon as no process is in them.

    Raises LabError if a process is still in one after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    for hierarchy in hierarchies():
        lab = hierarchy.mount / TOP / name
        for path in _bottom_up(lab / node if node else lab):
            _remove_folder(path, deadline)
        for parent in (lab, lab.parent):
            with contextlib.suppress(OSError):  # other nodes or labs are in it, or it is gone
                parent.rmdir()


def _bottom_up(path: Path) -> Iterator[Path]:
    for folder, _, _ in os.walk(path, topdown=False):
        yield Path(folder)


def _remove_folder(path: Path, deadline: float) -> None:
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            # The kernel still counts a process that has just been killed.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise LabError(
                    f"cannot remove the cgroup {path}: {error.strerror}",
                    hint=f"list its processes with `cat {path}/cgroup.procs`",
                ) from error
            time.sleep(0.002)
        else:
            return
