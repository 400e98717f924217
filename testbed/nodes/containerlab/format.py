"""Topology files of containerlab, as a format of topology files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from testbed.topology.format import Format, Option

if TYPE_CHECKING:
    from testbed.topology.format import GetStore
    from testbed.topology.tree import Problems
    from testbed.topology.variables import Variables


#: A variable of the environment (hellt/envsubst); two dollar signs are one.
VARIABLE = re.compile(r"\$\$|\$\{?([A-Za-z_][A-Za-z0-9_]*)")
#: The variable with the file of a template's values (cmd/viper.go, for the option --vars).
VALUES = "CLAB_VARS"


class TopoFile(Format):
    """A file of containerlab: YAML, or a Go template of YAML."""

    name = "containerlab"
    patterns: ClassVar[tuple[str, ...]] = ("*.clab.yml", "*.clab.yaml", "*.clab.gotmpl")
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            "vars",
            VALUES,
            "File with values for a template of containerlab, instead of those beside it; "
            "repeatable.",
        ),
    )

    def recognizes(self, path: Path, text: str) -> bool:
        """Recognize a file by its name, or by the key ``topology`` at its top."""
        if self.is_named(path):
            return True
        found = set(re.findall(r"^(topology|nodes)\s*:", text, re.MULTILINE))
        return found == {"topology"}

    def read(
        self,
        path: Path,
        text: str,
        problems: Problems,
        store: GetStore | None,
        variables: Variables,
    ) -> dict[str, Any]:
        from testbed.nodes.containerlab import topofile
        from testbed.nodes.containerlab.resolve import resolve

        if "{{" not in text:
            topofile.parse(text, problems)
        if problems:
            return {}
        program = (store or _users_store)().binary("containerlab")
        values = {name: variables.use(name) for name in _variables(text)}
        if files := values.get(VALUES):
            values[VALUES] = variables.used[VALUES] = os.pathsep.join(
                map(os.path.abspath, files_of(files))
            )
        whole = resolve(program, path.absolute(), text, problems, values)
        return {} if problems else topofile.read(whole, path, problems)


def _variables(text: str) -> list[str]:
    """Return the variables that containerlab looks for when it reads a file."""
    names = [name for name in VARIABLE.findall(text) if name]
    return list(dict.fromkeys([*names, VALUES] if "{{" in text else names))


def files_of(value: str) -> list[str]:
    """Return the files with values for a template: one, or several that are joined as in PATH."""
    if os.path.exists(value):  # noqa: PTH110  (no error)
        return [value]
    return list(filter(None, value.split(os.pathsep)))


def _users_store() -> Any:
    from testbed.artifacts import Store

    return Store()
