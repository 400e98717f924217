"""Add the addresses of the project to the metadata of a distribution.

The sources name no address, so that a copy of the repository publishes its own. TESTBED_REPO_URL is
the address of the repository on GitHub, TESTBED_SITE_URL that of the documentation (as for
``make docs``). With the first, links and pictures of README.md lead there, too: a package index has
no other file. Without them the metadata has no addresses.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"\]\((?!\w+:|#)([^)\s]+)\)")
PICTURES = (".svg", ".png")


def urls(repository: str, site: str) -> dict[str, str]:
    """Return the addresses by their labels on a package index."""
    found = {"Documentation": site} if site else {}
    if repository:
        found |= {
            "Source": repository,
            "Issues": f"{repository}/issues",
            "Changelog": f"{repository}/blob/HEAD/CHANGELOG.md",
        }
    return found


def absolute(text: str, repository: str) -> str:
    """Return a Markdown text whose relative links lead to the repository."""

    def there(found: re.Match[str]) -> str:
        kind = "raw" if found[1].endswith(PICTURES) else "blob"
        return f"]({repository}/{kind}/HEAD/{found[1]})"

    return LINK.sub(there, text) if repository else text


class Addresses(MetadataHookInterface):
    """Set ``urls`` and ``readme``."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = os.environ.get("TESTBED_REPO_URL", "").rstrip("/")
        site = os.environ.get("TESTBED_SITE_URL", "")
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["urls"] = urls(repository, site)
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": absolute(text, repository),
        }
