"""Targets of a page's links on the site.

Pages link to files, as on a forge.  On the site a link to a file outside docs/ leads to its page,
to the repository if its address is known, or is no link.
"""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]
TOUR = "## A tour in 60 seconds"
#: Files outside docs/ and their pages.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "vulnerabilities.md",
    "CODE_OF_CONDUCT.md": "code-of-conduct.md",
    "examples/bugs/README.md": "bugs.md",
}
#: Pages made of a part of another page's file.
PARTS = {"tour.md": "README.md"}


class BadLink(Exception):
    """A link that leads nowhere, or cannot be right."""


def split(readme: str) -> tuple[str, str]:
    """Return the start page and the tutorial: README.md without its tour, and the tour."""
    before, found, rest = readme.partition(f"\n{TOUR}\n")
    if not found:
        raise BadLink(f"README.md has no heading {TOUR!r}")
    tour, heading, after = rest.partition("\n## ")
    return f"{before}{heading}{after}", f"{TOUR.removeprefix('#')}\n{tour}"


def expanded(nav: Any) -> Any:
    """Return a navigation in which each pattern has become the list of its pages.

    README.md comes first, as the page of the section.
    """
    match nav:
        case list():
            return [expanded(entry) for entry in nav]
        case dict():
            return {title: expanded(entry) for title, entry in nav.items()}
        case str() if "*" in nav:
            docs = ROOT / "docs"
            pages = [path.relative_to(docs).as_posix() for path in docs.glob(nav)]
            return sorted(pages, key=lambda page: (not page.endswith("README.md"), page))
    return nav


def source(page: str) -> str:
    """Return the file of a page, relative to the repository.

    >>> source("index.md"), source("vm.md")
    ('README.md', 'docs/vm.md')
    """
    files = {target: name for name, target in PAGES.items()} | PARTS
    return files.get(page, f"docs/{page}")


def on_site(target: str, page: str, repository: str | None = None) -> str | None:
    """Return where a link of a page leads, or None for a file that has no address.

    ``page`` is relative to docs/, ``repository`` the address of the repository.  External links are
    judged by their form only.  Raises BadLink.

    >>> on_site("docs/vm.md#the-box", "index.md"), on_site("../../README.md", "decisions/0001.md")
    ('vm.md#the-box', '../index.md')
    """
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return external(target)
    if not parts.path:
        return target
    anchor = f"#{parts.fragment}" if parts.fragment else ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source(page)), parts.path))
    if path in PAGES or path.startswith("docs/"):
        found = PAGES.get(path, path.removeprefix("docs/"))
        return posixpath.relpath(found, posixpath.dirname(page) or ".") + anchor
    if not (ROOT / path).exists():
        raise BadLink(f"no file {path}")
    return f"{repository.rstrip('/')}/blob/main/{path}{anchor}" if repository else None


def external(target: str) -> str:
    """Return an external link.  Raises BadLink if it cannot be right."""
    parts = urlsplit(target)
    mail = parts.scheme == "mailto" and "@" in parts.path
    if not mail and not (parts.scheme == "https" and "." in (parts.hostname or "")):
        raise BadLink(f"not an https link: {target}")
    return target
