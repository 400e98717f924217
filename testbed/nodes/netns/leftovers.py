"""Leftovers of namespace nodes: processes and cgroups without a live lab."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

from testbed.leftover import AGE, FIX, Judge, Leftover
from testbed.nodes.netns import cgroups, find

PATIENCE = 2.0  # seconds for another state folder's `down` to remove a cgroup that it has emptied


class Search:
    """A search for namespace nodes of all labs of this machine."""

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self._inits = list(find.inits())
        #: Labs created in other mount or pid namespaces, so that they cannot be judged from here.
        self._far = {
            (init.lab, Path(init.state))
            for init in self._inits
            if Path(init.state) != judge.own and not _sees_what_we_see(init.pid)
        }

    def _of(self, lab: str, state: Path) -> list[find.Init]:
        return [init for init in self._inits if (init.lab, Path(init.state)) == (lab, state)]

    def processes(self) -> Iterator[Leftover]:
        for lab, state in sorted({(init.lab, Path(init.state)) for init in self._inits}):
            inits = self._of(lab, state)
            fate = self._judge.fate(lab, state)
            ours = state == self._judge.own
            name = ", ".join(f"{i.node} (pid {i.pid})" for i in sorted(inits, key=_by_node))
            if (lab, state) in self._far:
                about = f"of lab {lab} in {state}, which cannot be read from here"
                yield Leftover("nodes", name, about, theirs=True, state=state)
            elif not fate:
                about = f"of lab {lab}, which has no record in {state}"
                yield self._judge.whole("nodes", name, about, lab, state)
            elif not ours:
                yield Leftover("nodes", name, fate, theirs=True, state=state)

    def cgroups(self) -> Iterator[Leftover]:
        known = {cgroups.folder_name(i.lab, Path(i.state)): Path(i.state) for i in self._inits}
        unknown = []
        for folder in cgroups.labs():
            lab = folder.rpartition(".")[0]
            if cgroups.folder_name(lab, self._judge.own) == folder:
                known[folder] = self._judge.own
            if folder in known:
                yield from self._nodes_of(folder, lab, known[folder])
            else:
                unknown.append(folder)
        if unknown:
            time.sleep(PATIENCE)
            yield from map(_nobodys, sorted(set(unknown) & set(cgroups.labs())))
        for hierarchy in cgroups.hierarchies():
            top = hierarchy.mount / cgroups.TOP
            if top.is_dir() and not cgroups.folders(top):
                command = f"rmdir {top}"
                yield Leftover("cgroup", str(top), "empty", command, remove=top.rmdir)

    def _nodes_of(self, folder: str, lab: str, state: Path) -> Iterator[Leftover]:
        """Yield a lab's cgroups without a process, left by a killed command."""
        there = {init.node for init in self._of(lab, state)}
        if (lab, state) in self._far or self._judge.holder(lab, state):
            return
        if not there:
            about = f"of lab {lab}, which does not run"
            yield self._judge.whole("cgroup", f"{cgroups.TOP}/{folder}", about, lab, state)
            return
        for node in sorted(cgroups.nodes(folder) - there):

            def remove(node: str = node) -> None:
                with self._judge.locked(lab, state):
                    if node not in {i.node for i in find.inits() if i.lab == lab}:
                        cgroups.remove(folder, node)

            about = f"of a node of lab {lab} that does not run"
            name = f"{cgroups.TOP}/{folder}/{node}"
            yield Leftover("cgroup", name, about, FIX, state=state, remove=remove)


def _by_node(init: find.Init) -> str:
    return init.node


def _sees_what_we_see(pid: int) -> bool:
    """Tell whether a node's creator has our files and pid namespace, so we can judge its lab."""
    try:
        root, ours = os.stat(f"/proc/{pid}/root"), os.stat("/")  # noqa: PTH116  (as find.py)
        depth = [_depth(pid), _depth(os.getpid()) + 1]
    except OSError:  # it has ended meanwhile
        return False
    return (root.st_dev, root.st_ino) == (ours.st_dev, ours.st_ino) and depth[0] == depth[1]


def _depth(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return len(line.split()) - 1
    return 0


def _nobodys(folder: str) -> Leftover:
    """Return a leftover for a lab's cgroup of an unknown state folder, without processes."""
    name = f"{cgroups.TOP}/{folder}"
    if cgroups.busy(folder) or cgroups.age(folder) < AGE:
        about = "of a lab of another state folder, which may be starting"
        return Leftover("cgroup", name, about, theirs=True)
    command = f"find /sys/fs/cgroup -depth -type d -path '*/{name}*' -exec rmdir {{}} ;"

    def remove() -> None:
        cgroups.remove(folder, timeout=0)

    return Leftover(
        "cgroup", name, "of a lab that does not run", shlex.join(shlex.split(command)),
        remove=remove,
    )  # fmt: skip
