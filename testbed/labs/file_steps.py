"""Files of nodes: read from this machine, compared with the node's, written, removed.

The mark of the node (:mod:`testbed.labs.own_mark`) notes the files that ``up`` has written. A file
that was there before is kept on the node, and put back when the topology no longer has its path.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from testbed.errors import LabError
from testbed.labs.own_mark import FILES
from testbed.labs.placed import placed
from testbed.nodes import originals
from testbed.roles.part import Part
from testbed.topology.settings import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from testbed.labs.own_mark import OwnMark
    from testbed.nodes.base import Node
    from testbed.topology.model import Topology
    from testbed.topology.settings import File

PROGRAM, PLAIN = 0o755, 0o644


@dataclass(frozen=True, slots=True)
class Content:
    """A file to write; ``owner`` is empty for root."""

    data: bytes
    mode: int
    owner: str = ""

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def contents(topology: Topology, node: str) -> dict[str, Content]:
    """Return the files of a node by path.  Raises LabError for one that cannot be read."""
    files = topology.nodes[node].files.items()
    found: dict[str, Content] = {}
    for path, file in files:
        with placed(topology, "nodes", node, "files", path):
            found.update(_read(topology.folder, path, file))
    return found


def _read(folder: Path, path: str, file: File) -> Iterator[tuple[str, Content]]:
    if file.content is not None:
        mode = PLAIN if file.mode is None else file.mode
        yield path, Content(file.content.encode(), mode, file.owner)
        return
    source = folder / Path(file.source or "").expanduser()
    if why := unreadable(source):
        raise LabError(
            f"{source}, for {path}, cannot be read: {why}",
            hint="restore it beside the topology file, or remove it from `files`",
        )
    if not source.is_dir():
        yield path, _content(source, file)
        return
    for below in sorted(source.rglob("*")):
        if below.is_file():
            yield f"{path}/{below.relative_to(source)}", _content(below, file)


def _content(source: Path, file: File) -> Content:
    own = PROGRAM if source.stat().st_mode & 0o100 else PLAIN
    return Content(source.read_bytes(), own if file.mode is None else file.mode, file.owner)


def apply(topology: Topology, node: Node, own: OwnMark) -> list[str]:
    """Write the files of a node that are missing or differ; remove those of an earlier ``up``.

    Return the changes. Raises LabError for a file that cannot be read here or written there.
    """
    goal = contents(topology, node.name)
    before = own.get(FILES)
    if not goal and not before:
        return []
    told = []
    wrong = differences(node, goal)
    if new := [path for path in goal if path not in before]:
        originals.keep(node, new)
        own.keep(FILES, {**before, **dict.fromkeys(new, "")})  # whatever happens below
    for path, seen in wrong.items():
        with placed(topology, "nodes", node.name, "files", _key(topology, node.name, path)):
            _write(node, path, goal[path])
        changed = before.get(path) not in (None, goal[path].digest)
        how = "set" if not before.get(path) else "changed" if changed else "restored"
        told.append(f"{how} file {path}" + (f" ({seen})" if how == "restored" else ""))
    if gone := [path for path in before if path not in goal]:
        originals.put_back(node, gone)
        told += [f"removed file {path}" for path in gone]
    own.keep(FILES, {path: content.digest for path, content in goal.items()})
    return told


def _key(topology: Topology, node: str, path: str) -> str:
    """Return the key of the file that has a path: itself, or a folder above it."""
    keys = topology.nodes[node].files
    return path if path in keys else next(key for key in keys if path.startswith(f"{key}/"))


def _write(node: Node, path: str, content: Content) -> None:
    try:
        try:
            node.put(content.data, path, mode=content.mode)
        except OSError:
            if not node.own_folder(path):
                raise
            node.put(content.data, path, mode=content.mode)
    except OSError as error:
        raise LabError(
            f"{node.name} cannot have the file {path}: {error.strerror}",
            hint="choose a folder that exists on the node and can be written, such as /etc or /srv",
        ) from error
    if content.owner:
        done = node.run(["chown", content.owner, path], check=False)
        if not done.ok:
            raise LabError(
                f"{node.name} cannot give {path} to {content.owner}: {done.stderr.strip()}",
                hint="use a user and a group of the node, or their numbers",
            )


def differences(node: Node, goal: Mapping[str, Content]) -> dict[str, str]:
    """Return the files of a node that are missing or differ, each with what was seen."""
    found = {path: seen for path, one in goal.items() if (seen := _difference(node, path, one))}
    rest = {path: one for path, one in goal.items() if path not in found}
    for path, (mode, owners) in originals.states(node, rest).items():
        if mode != rest[path].mode:
            found[path] = f"mode {mode:04o}"
        elif not _owned(rest[path].owner or "root", owners):
            found[path] = f"owner {owners[0]}"
    return {path: found[path] for path in goal if path in found}


def _difference(node: Node, path: str, content: Content) -> str:
    try:
        return "" if node.get(path) == content.data else "other content"
    except IsADirectoryError:
        return "a folder"
    except OSError:
        return "missing"


def _owned(wanted: str, owners: tuple[str, str]) -> bool:
    """Tell whether a file has an owner, and the group if the owner has one after a colon."""
    user, _, group = wanted.partition(":")
    users, groups = zip(*(one.split(":", 1) for one in owners), strict=True)
    return user in users and (not group or group in groups)


def parts(topology: Topology, node: Node) -> list[Part]:
    """Return the state of a node's files, for ``status``."""
    if not topology.nodes[node.name].files:
        return []
    try:
        goal = contents(topology, node.name)
    except LabError as error:
        return [Part("files", "unknown", ok=False, detail=error.message)]
    wrong = differences(node, goal)
    return [Part(path, wrong.get(path, "present"), path not in wrong) for path in goal]
