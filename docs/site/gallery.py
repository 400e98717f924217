"""The page of the bug reports: examples/bugs/README.md, and below it each report with its lab."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PART = """
#{text}
```yaml title="examples/bugs/{name}/lab.yaml"
{lab}```

Run it:

```sh
testbed up examples/bugs/{name}/lab.yaml
testbed verify {name} examples/bugs/{name}/tests
testbed down {name}
```
"""


def page(readme: str, folder: Path) -> str:
    """Return the page of all reports below a folder, in the order of their names."""
    return readme + "".join(part(path.parent) for path in sorted(folder.glob("*/lab.yaml")))


def part(folder: Path) -> str:
    """Return the part of one report; its title becomes a heading of the page."""
    text, lab = ((folder / name).read_text(encoding="utf-8") for name in ("README.md", "lab.yaml"))
    return PART.format(name=folder.name, text=text, lab=lab)
