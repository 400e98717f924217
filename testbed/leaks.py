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
from pathlib import Path
from typing import TYPE_CHECKING

from testbed import files
from testbed.errors import LabBusy, LabError, MachineError, TestbedError, UsageError
from testbed.labs.lab import Lab, Settings
from testbed.labs.state import State
from testbed.leftover import AGE, FIX, Judge, Leftover
from testbed.registry import PROVIDERS

if TYPE_CHECKING:
    from testbed.artifacts import Store
    from testbed.nodes.base import Provider

TEMPORARY = ("testbed-doctor-", "testbed-cc-", "testbed-accel-")


def leftovers(make_settings: Callable[[Path], Settings], state: Path) -> list[Leftover]:
    """Find all leftovers on this machine, and parts of live labs of other state folders.

    ``make_settings`` returns the settings for a state folder; ``state`` is ours.
    """
    look = _Look(make_settings, state.resolve())
    return [
        *(one for kind in PROVIDERS.usable().values() for one in kind.leftovers(look)),
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


class _Look(Judge):
    """A search for the labs of this machine."""

    def __init__(self, make_settings: Callable[[Path], Settings], own: Path) -> None:
        self._make_settings = make_settings
        self.own = own
        self._state = State(own)
        self._running = self._look()

    def _look(self) -> set[tuple[str, Path]]:
        """Return the labs of which a part runs: of all users, and of our own state folder."""
        found = {lab for kind in PROVIDERS.usable().values() for lab in kind.running()}
        settings = self._make_settings(self.own)
        # A provider has labs, too, of which only a cgroup or a file is left.
        return found | {
            (lab, self.own)
            for one in settings.providers.values()
            for lab in _running(one, self._state)
        }

    def holder(self, lab: str, state: Path) -> str:
        return State(state).holder(lab)

    def fate(self, lab: str, state: Path) -> str:
        if holder := self.holder(lab, state):
            return f"held by {holder}"
        if (lab, state) in self._running and lab in State(state).labs():
            return f"lab {lab} of {state}"
        return ""

    @contextlib.contextmanager
    def locked(self, lab: str, state: Path) -> Iterator[None]:
        with _without_trace(state), State(state).lock(lab, FIX, timeout=0):
            yield

    def files(self) -> Iterator[Leftover]:
        """Yield leftover files of our own state folder; others check theirs."""
        state = self._state
        for lab in state.labs():
            if (record := state.read(lab)) and record.attached:
                continue  # nothing of it is ours, whether it runs or not
            if not self.fate(lab, self.own):
                about = f"of lab {lab}, which does not run"
                yield self.whole("record", str(state.path / f"{lab}.json"), about, lab, self.own)
        for lab, path in state.pieces():
            if state.holder(lab):
                continue

            def remove(lab: str = lab) -> None:
                with state.lock(lab, FIX, timeout=0):  # the lock's file is removed on release
                    state.sweep(lab)

            about = "left by a killed testbed process"
            yield Leftover("file", str(path), about, FIX, state=self.own, remove=remove)
        parts = [*files.abandoned(state.path), *files.abandoned(state.path / "runs")]
        for path in (*parts, *_dead_sockets(state.path)):
            yield _file(path, self.own)

    def whole(self, kind: str, name: str, about: str, lab: str, state: Path) -> Leftover:
        """Return a leftover that is removed like ``testbed down``, with the whole lab."""

        def remove() -> None:
            with _without_trace(state):
                one = Lab(lab, self._make_settings(state))
                with one.settings.state.lock(lab, FIX, timeout=0):
                    if lab not in State(state).labs() or (lab, state) not in self._look():
                        one.remove_all()

        variable = "" if state == self.own else f"TESTBED_STATE={shlex.quote(str(state))} "
        command = f"{variable}testbed down {shlex.quote(lab)}"
        return Leftover(kind, name, about, command, state=state, remove=remove)


def _running(provider: Provider, state: State) -> list[str]:
    """Return the labs of a provider of which a part runs.

    A lab whose place does not answer may run, and so may each lab with a record if the provider
    cannot tell its labs.
    """
    try:
        there = provider.labs()
    except (LabError, MachineError, UsageError):
        return state.labs()
    return [lab for lab in there if _runs(provider, lab)]


def _runs(provider: Provider, lab: str) -> bool:
    try:
        return bool(provider.nodes(lab) or provider.fabric(lab))
    except (LabError, MachineError, UsageError):
        return True


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
