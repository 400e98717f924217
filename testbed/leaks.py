"""Leftovers of removed labs: found on the machine, removed under the lab's lock.

A leftover looks like a part of a lab and belongs to no live lab.  A lab is live
while a process holds its lock, or if it has a record and any part of it runs.
Parts of live labs of other state folders are reported as theirs, and so are parts
that cannot be judged from here; both are never touched.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import files
from testbed.errors import LabBusy, TestbedError
from testbed.labs.lab import Lab, Settings
from testbed.labs.state import State
from testbed.nodes.netns import cgroups, find

if TYPE_CHECKING:
    from testbed.artifacts import Store

#: Age in seconds at which a part without an owner's name is a leftover: a live lab's part gets its
#: first process, or is removed by its creator, in less time.
AGE = 60.0
PATIENCE = 2.0  # seconds for another state folder's `down` to remove a cgroup that it has emptied
TEMPORARY = ("testbed-doctor-", "testbed-cc-", "testbed-accel-")
FIX = "testbed doctor --leaks --fix"


@dataclass(frozen=True, slots=True)
class Leftover:
    """One leftover.  ``about`` tells its owner, or the reason that it has none."""

    kind: str
    name: str
    about: str
    command: str = ""  #: removes it; empty if it is ``theirs``
    theirs: bool = False
    state: Path | None = None  #: the state folder of the lab, if known
    remove: Callable[[], None] = field(default=lambda: None, compare=False, repr=False)

    def to_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "name": self.name,
            "about": self.about,
            "command": self.command,
            "theirs": self.theirs,
        }


def leftovers(make_settings: Callable[[Path], Settings], state: Path) -> list[Leftover]:
    """Find all leftovers on this machine, and parts of live labs of other state folders.

    ``make_settings`` returns the settings for a state folder; ``state`` is ours.
    """
    look = _Look(make_settings, state.resolve())
    return [
        *look.processes(),
        *look.cgroups(),
        *look.files(),
        *_cache(make_settings(state).store),
        *_temporary(),
    ]


def fix(given: list[Leftover]) -> list[tuple[Leftover, str]]:
    """Remove leftovers that belong to no lab; return those that failed, with the reason."""
    failed = []
    for one in given:
        if one.theirs:
            continue
        try:
            one.remove()
        except LabBusy:
            continue  # another command now works on the lab: it is live
        except (TestbedError, OSError) as error:
            failed.append((one, str(error)))
    return failed


class _Look:
    """A search for the labs of this machine."""

    def __init__(self, make_settings: Callable[[Path], Settings], own: Path) -> None:
        self._make_settings = make_settings
        self._own = own
        self._state = State(own)
        self._inits = list(find.inits())
        #: Labs created in other mount or pid namespaces, so that they cannot be judged from here.
        self._far = {
            (init.lab, Path(init.state))
            for init in self._inits
            if Path(init.state) != own and not _sees_what_we_see(init.pid)
        }

    def _of(self, lab: str, state: Path) -> list[find.Init]:
        return [init for init in self._inits if (init.lab, Path(init.state)) == (lab, state)]

    def _fate(self, lab: str, state: Path) -> str:
        """Return the reason that a lab is live; empty if it is not."""
        its = State(state)
        if holder := its.holder(lab):
            return f"held by {holder}"
        if lab in its.labs() and self._of(lab, state):
            return f"lab {lab} of {state}"
        return ""

    def processes(self) -> Iterator[Leftover]:
        for lab, state in sorted({(init.lab, Path(init.state)) for init in self._inits}):
            inits = self._of(lab, state)
            fate = self._fate(lab, state)
            ours = state == self._own
            name = ", ".join(f"{i.node} (pid {i.pid})" for i in sorted(inits, key=_by_node))
            if (lab, state) in self._far:
                about = f"of lab {lab} in {state}, which cannot be read from here"
                yield Leftover("nodes", name, about, theirs=True, state=state)
            elif not fate:
                about = f"of lab {lab}, which has no record in {state}"
                yield self._whole("nodes", name, about, lab, state)
            elif not ours:
                yield Leftover("nodes", name, fate, theirs=True, state=state)

    def cgroups(self) -> Iterator[Leftover]:
        known = {cgroups.folder_name(i.lab, Path(i.state)): Path(i.state) for i in self._inits}
        unknown = []
        for folder in cgroups.labs():
            lab = folder.rpartition(".")[0]
            if cgroups.folder_name(lab, self._own) == folder:
                known[folder] = self._own
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
        if (lab, state) in self._far or State(state).holder(lab):
            return
        if not there:
            about = f"of lab {lab}, which does not run"
            yield self._whole("cgroup", f"{cgroups.TOP}/{folder}", about, lab, state)
            return
        for node in sorted(cgroups.nodes(folder) - there):

            def remove(node: str = node) -> None:
                with _without_trace(state), State(state).lock(lab, FIX, timeout=0):
                    if node not in {i.node for i in find.inits() if i.lab == lab}:
                        cgroups.remove(folder, node)

            about = f"of a node of lab {lab} that does not run"
            name = f"{cgroups.TOP}/{folder}/{node}"
            yield Leftover("cgroup", name, about, FIX, state=state, remove=remove)

    def files(self) -> Iterator[Leftover]:
        """Yield leftover files of our own state folder; others check theirs."""
        state = self._state
        for lab in state.labs():
            if not self._fate(lab, self._own):
                about = f"of lab {lab}, which does not run"
                yield self._whole("record", str(state.path / f"{lab}.json"), about, lab, self._own)
        for lab, path in state.pieces():
            if state.holder(lab):
                continue

            def remove(lab: str = lab) -> None:
                with state.lock(lab, FIX, timeout=0):  # the lock's file is removed on release
                    state.sweep(lab)

            about = "left by a killed testbed process"
            yield Leftover("file", str(path), about, FIX, state=self._own, remove=remove)
        parts = [*files.abandoned(state.path), *files.abandoned(state.path / "runs")]
        for path in (*parts, *_dead_sockets(state.path)):
            yield _file(path, self._own)

    def _whole(self, kind: str, name: str, about: str, lab: str, state: Path) -> Leftover:
        """Return a leftover that is removed like ``testbed down``, with the whole lab."""

        def remove() -> None:
            with _without_trace(state):
                one = Lab(lab, self._make_settings(state))
                with one.settings.state.lock(lab, FIX, timeout=0):
                    again = _Look(self._make_settings, self._own)
                    if lab not in State(state).labs() or not again._of(lab, state):
                        one.remove_all()

        variable = "" if state == self._own else f"TESTBED_STATE={shlex.quote(str(state))} "
        command = f"{variable}testbed down {shlex.quote(lab)}"
        return Leftover(kind, name, about, command, state=state, remove=remove)


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
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("NSpid:"):
            return len(line.split()) - 1
    return 0


@contextlib.contextmanager
def _without_trace(folder: Path) -> Iterator[None]:
    """Remove the folders that a lock has to create in a missing state folder."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in missing:
                path.rmdir()


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


def _dead_sockets(folder: Path) -> Iterator[Path]:
    """Yield sockets on which no process listens."""
    for path in sorted(folder.glob("**/*")) if folder.is_dir() else []:
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                continue
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
                try:
                    door.connect(str(path))
                except ConnectionRefusedError:
                    yield path


def _file(path: Path, state: Path | None = None) -> Leftover:
    command = f"rm {shlex.quote(str(path))}"
    about = "left by a killed testbed process"
    return Leftover("file", str(path), about, command, state=state, remove=path.unlink)


def _cache(store: Store) -> Iterator[Leftover]:
    for path in store.leftovers():
        about = "of an artifact whose build was killed"
        yield Leftover("cache", str(path), about, FIX, remove=store.sweep)
    for path in files.abandoned(store.folder):
        yield _file(path)


def _temporary() -> Iterator[Leftover]:
    import shutil

    for path in sorted(Path(tempfile.gettempdir()).iterdir()):
        if not path.name.startswith(TEMPORARY) or path.is_symlink():
            continue
        with contextlib.suppress(OSError):
            status = path.stat()
            if status.st_uid == os.geteuid() and time.time() - status.st_mtime > AGE:
                about = "left by a killed testbed process"
                command = f"rm -r {shlex.quote(str(path))}"

                def remove(path: Path = path) -> None:
                    shutil.rmtree(path)

                yield Leftover("folder", str(path), about, command, remove=remove)
