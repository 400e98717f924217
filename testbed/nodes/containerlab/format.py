"""Topology files of containerlab, as a format of topology files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.topology.format import Format

if TYPE_CHECKING:
    from testbed.topology.format import GetStore
    from testbed.topology.tree import Problems


class TopoFile(Format):
    """A file of containerlab: YAML, or a Go template of YAML."""

    name = "containerlab"
    patterns: ClassVar[tuple[str, ...]] = ("*.clab.yml", "*.clab.yaml", "*.clab.gotmpl")

    def recognizes(self, path: Path, text: str) -> bool:
        """Recognize a file by its name, or by the key ``topology`` at its top."""
        if self.is_named(path):
            return True
        found = set(re.findall(r"^(topology|nodes)\s*:", text, re.MULTILINE))
        return found == {"topology"}

    def read(
        self, path: Path, text: str, problems: Problems, store: GetStore | None
    ) -> dict[str, Any]:
        from testbed.nodes.containerlab import topofile
        from testbed.nodes.containerlab.resolve import resolve

        if "{{" not in text:
            topofile.parse(text, problems)
        if problems:
            return {}
        program = (store or _users_store)().binary("containerlab")
        whole = resolve(program, path.absolute(), text, problems)
        return {} if problems else topofile.read(whole, path, problems)


def _users_store() -> Any:
    from testbed.artifacts import Store

    return Store()
