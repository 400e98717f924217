"""Keys of a node besides its roles: kernel settings and files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from testbed.topology import tree
from testbed.topology.declare import Block, Composed, Draft, Nested, key, schema_of
from testbed.topology.shapes import FilePath, Pattern, Shape, Text, table, whole
from testbed.topology.tree import describe, quote

if TYPE_CHECKING:
    from pathlib import Path

    from testbed.topology.read import Reader
    from testbed.topology.tree import Tree

#: A sysctl's name: words with dots between. In a link's name a slash stands for a dot (sysctl(8)).
SYSCTL = r"[a-z0-9_]+(\.[A-Za-z0-9_/:@-]+)+"
#: Sysctls of the network stack, which each network namespace has by itself.
NETWORK = "net."
MODE = r"0?[0-7]{3,4}"
#: USER or USER:GROUP, by name or number (chown(1)).
OWNER = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_][A-Za-z0-9_.-]*)?"
TARGET = r"/[^\0]+"
BIND = r"(?P<source>[./~][^:\0]*):(?P<target>/[^:\0]+)(:(?P<mode>ro|rw))?"
#: Folders of a node that are the kernel's, or testbed's own.
NO_FILES = ("/proc", "/sys", "/dev", "/run/testbed")


class Sysctls(Shape[Mapping[str, str]]):
    """Kernel settings by name; a value is a number or a text."""

    def schema(self) -> dict[str, Any]:
        value = {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1}]}
        return table(whole(SYSCTL), value)

    def read(self, read: Reader, at: Tree | None) -> dict[str, str] | None:
        found = read.table(at, "a mapping of sysctls")
        out = {}
        for entry in found.entries.values() if found else ():
            name = self._name(read, entry.key)
            value = self._value(read, entry.value)
            if name is not None and value is not None:
                out[name] = value
        return out if found else None

    @staticmethod
    def _name(read: Reader, at: tree.Scalar) -> str | None:
        if re.fullmatch(SYSCTL, at.text):
            return at.text
        wanted = "a sysctl, like net.ipv4.conf.all.rp_filter"
        hint = "write its words with dots between"
        if "/" in at.text:
            hint = f"write {at.text.removeprefix('/proc/sys/').strip('/').replace('/', '.')}"
        read.problems.add(at, wanted, quote(at.text), hint)
        return None

    @staticmethod
    def _value(read: Reader, at: Tree) -> str | None:
        if isinstance(at, tree.Broken):
            return None
        if isinstance(at, tree.Scalar):
            if isinstance(at.value, int) and not isinstance(at.value, bool):
                return str(at.value)
            words = " ".join(at.value.split()) if isinstance(at.value, str) else ""
            if words and not at.surprise and "\0" not in words:
                return words
        wanted, hint = "a number, or text such as '4096 87380 6291456'", "write 1 for on, 0 for off"
        read.problems.add(at, wanted, describe(at), hint)
        return None

    def plain(self, value: Mapping[str, str]) -> dict[str, Any]:
        return {name: int(one) if one.isdecimal() else one for name, one in value.items()}


class Mode(Shape[int]):
    """Permission bits, as chmod(1) takes them."""

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [whole(MODE), {"type": "integer"}]}

    def read(self, read: Reader, at: Tree | None) -> int | None:
        if at is None or isinstance(at, tree.Broken):
            return None
        # YAML 1.1 reads 0640 as an octal number, which is meant.
        if isinstance(at, tree.Scalar) and re.fullmatch(MODE, at.text):
            return int(at.text, 8)
        hint = 'write three or four digits from 0 to 7: "0644", or "0755" for a program'
        read.problems.add(at, "permission bits, like 0644", describe(at), hint)
        return None

    def plain(self, value: int) -> str:
        return f"{value:04o}"


@dataclass(frozen=True, slots=True)
class File(Block):
    """A file on a node, or a folder with files.

    ``source`` is a path on this machine, relative to the folder of the topology file; None for a
    file with inline ``content``. ``mode`` None means that of the source: 0755 for a program, else
    0644. ``owner`` is as for chown(1), empty for root.
    """

    rules: ClassVar[Mapping[str, Any]] = {
        "oneOf": [{"required": ["file"]}, {"required": ["content"]}]
    }

    source: str | None = key(
        FilePath(),
        "File or folder on this machine, relative to the folder of the topology file.",
        name="file",
        default=None,
    )
    content: str | None = key(Text(), "Content of the file.", default=None, always=True)
    mode: int | None = key(
        Mode(), "Permission bits. Default: 0755 for a program, else 0644.", default=None
    )
    owner: str = key(
        Pattern(OWNER, "an owner, like root or root:adm", "write USER or USER:GROUP"),
        "Owner, and group after a colon. Default: root.",
        default="",
    )

    @classmethod
    def make(cls, given: dict[str, Any], draft: Draft) -> Self | None:
        said = {"file", "content"} & draft.body.entries.keys()
        if len(said) != 1:
            wanted, seen = "either file or content", "both" if said else "neither"
            hint = "remove one of them" if said else "like {file: app.conf}"
            draft.read.problems.add(draft.body, wanted, seen, hint)
        return cls(**given)

    def to_dict(self) -> dict[str, Any]:
        found = Block.to_dict(self)
        if self.content is None:
            del found["content"]
        return found


class Files(Composed):
    """Files of a node, by their paths on the node."""

    def schema(self) -> dict[str, Any]:
        value = {"anyOf": [{"type": "string", "minLength": 1}, schema_of(File)]}
        return table(whole(TARGET), value)

    def read_in(self, draft: Draft, at: Tree) -> dict[str, File]:
        found = draft.read.table(at, "a mapping of paths on the node to files")
        out: dict[str, File] = {}
        for entry in found.entries.values() if found else ():
            path = target(draft.read, entry.key)
            file = self._file(draft, entry.value)
            if path is not None and file is not None:
                out[path] = file
        return out

    @staticmethod
    def _file(draft: Draft, at: Tree) -> File | None:
        if isinstance(at, tree.Mapping):
            return Nested(File).read_in(draft, at)
        source = draft.read.path(at, "a path, or a mapping with file or content")
        return None if source is None else File(source)

    def plain(self, value: Mapping[str, File]) -> dict[str, Any]:
        return {path: file.to_dict() for path, file in value.items()}


@dataclass(frozen=True, slots=True)
class Bind:
    """A file or folder of this machine at a path of a node.

    ``source`` is relative to the folder of the topology file.
    """

    source: str
    target: str
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}" + (":ro" if self.read_only else "")


class Binding(Shape[Bind]):
    """A bind in Compose's short form: ``SOURCE:TARGET[:ro|rw]``."""

    def schema(self) -> dict[str, Any]:
        return whole(BIND)

    def read(self, read: Reader, at: Tree | None) -> Bind | None:
        wanted = "a bind as SOURCE:TARGET[:ro]"
        hint = "like ./data:/srv/data or /usr/share/x:/srv/x:ro"
        text = read.text(at, wanted, lambda text: "" if re.fullmatch(BIND, text) else hint)
        if at is None or text is None:
            return None
        if not (found := re.fullmatch(BIND, text)):
            if re.fullmatch(r"[^/:~.][^:]*:/.*", text):  # a named volume in Compose
                hint = f"write ./{text}: a source begins with ., / or ~"
            read.problems.add(at, wanted, quote(text), hint)
            return None
        assert isinstance(at, tree.Scalar)
        path = target(read, replace(at, text=found["target"]))
        source = read.problems.beside(at, found["source"])
        return Bind(source, path, found["mode"] == "ro") if path else None

    def plain(self, value: Bind) -> str:
        return str(value)


def target(read: Reader, at: tree.Scalar) -> str | None:
    """Read the path of a file on a node."""
    text = at.text
    wanted = "an absolute path on the node, like /etc/app.conf"
    if not re.fullmatch(TARGET, text) or posixpath.normpath(text) != text:
        hint = "write it from / on, without '..', '//' and a slash at the end"
        read.problems.add(at, wanted, quote(text), hint)
    elif top := next((top for top in NO_FILES if f"{text}/".startswith(f"{top}/")), ""):
        read.problems.add(at, f"a path outside of {top}", quote(text), "choose another")
    else:
        return text
    return None


def unreadable(path: Path) -> str:
    """Return why a file or folder of this machine cannot be read; empty if it can."""
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return (reason or "an error").lower()
    return "" if path.is_dir() or path.is_file() else "no regular file"
