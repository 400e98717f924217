"""MkDocs hooks: pages that are not files in docs/, and links that lead to pages."""

from __future__ import annotations

import logging
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from markdown.extensions import Extension
from markdown.treeprocessors import Treeprocessor
from mkdocs.structure.files import File

import testbed
from testbed.nodes import base as nodes
from testbed.roles import base as roles
from testbed.topology.reference import reference

if TYPE_CHECKING:
    from types import ModuleType
    from xml.etree.ElementTree import Element

    from markdown import Markdown
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))  # this folder is no package
import cli_reference
import gallery
import links
import verdicts

log = logging.getLogger("mkdocs.hooks.testbed")

TESTING = """# Test contracts

Test suites for your own providers and roles. [Extend testbed](../extending.md) shows their use.

::: testbed.testing
    options: {show_root_heading: false, show_root_toc_entry: false, show_if_no_docstring: false}
"""
VERDICTS = "verdicts.md"
#: The documented members of classes that have more.
MEMBERS = {"Lab": "[up, down, live]"}
#: Elements that load what an attribute names.
LOADS = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


def contract(word: str, module: ModuleType, first: type) -> str:
    """Return the page of a contract: the module's text, the class, then what else it defines."""
    names = [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "") == module.__name__ and not name.startswith("_")
    ]
    names.sort(key=lambda name: name != first.__name__)
    head = f"""# {word.capitalize()} contract

What a {word} implements. [Extend testbed](../extending.md) has an example.

::: {module.__name__}
    options: {{members: false, show_root_heading: false, show_root_toc_entry: false}}
"""
    return "\n".join([head, *(f"::: {module.__name__}.{name}\n" for name in names)])


def python_reference() -> str:
    """Return a page with the public interface, functions first; mkdocstrings fills it."""
    parts = ["# Python reference\n"]
    parts += ["All that `import testbed` provides. [Python interface](../api.md) shows its use.\n"]
    names = [name for name in testbed.__all__ if name != "errors"]
    for name in sorted(names, key=lambda name: (not name[0].islower(), name)):
        members = f"\n    options: {{members: {MEMBERS[name]}}}" if name in MEMBERS else ""
        parts.append(f"::: testbed.{name}{members}\n")
    parts.append("## Errors\n\n::: testbed.errors\n    options:")
    parts.append("      {heading_level: 3, show_root_heading: false, show_root_toc_entry: false}\n")
    return "\n".join(parts)


class Links(Extension):
    """Changes the links of a page to where they lead on the site."""

    def __init__(self, repository: str | None) -> None:
        super().__init__()
        self.repository = repository
        self.page = ""  # the page in the making, relative to docs/

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  the name is Python-Markdown's
        # After links are parsed (20), before MkDocs looks for their files (0).
        md.treeprocessors.register(_Rewrite(self), "testbed-links", 10)

    def on_site(self, target: str) -> str | None:
        try:
            return links.on_site(target, self.page, self.repository)
        except links.BadLink as error:
            log.warning("%s: %s", links.source(self.page), error)  # an error with --strict
            return target


class _Rewrite(Treeprocessor):
    def __init__(self, extension: Links) -> None:
        super().__init__()
        self.extension = extension

    def run(self, root: Element) -> None:
        for element in root.iter():
            attribute = {"a": "href", "img": "src"}.get(element.tag, "")
            if not (target := element.get(attribute)):
                continue
            if (found := self.extension.on_site(target)) is None:
                element.tag = "span"
                del element.attrib[attribute]
            else:
                element.set(attribute, found)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name the pages of patterns in the navigation, and add the extension that changes links."""
    config.nav = links.expanded(config.nav)
    config.markdown_extensions.append(Links(config.repo_url))  # type: ignore[arg-type]  # or a name
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files in docs/."""
    pages = {page: (links.ROOT / name).read_text("utf-8") for name, page in links.PAGES.items()}
    pages["index.md"], pages["tour.md"] = links.split(pages["index.md"])
    pages["bugs.md"] = gallery.page(pages["bugs.md"], links.ROOT / "examples" / "bugs")
    pages |= {
        "reference/cli.md": cli_reference.page(),
        "reference/topology.md": reference(),
        "reference/python.md": python_reference(),
        "reference/providers.md": contract("provider", nodes, nodes.Provider),
        "reference/roles.md": contract("role", roles, roles.Role),
        "reference/testing.md": TESTING,
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Tell the extension which page comes next, and complete the page on verdicts."""
    del files
    (extension,) = (one for one in config.markdown_extensions if isinstance(one, Links))
    extension.page = page.file.src_uri
    return markdown + (verdicts.every(verdicts.found()) if extension.page == VERDICTS else "")


class _Loads(HTMLParser):
    """Collects what a page loads from other hosts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        target = values.get(LOADS.get(tag, "")) or ""
        if urlsplit(target).netloc and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(target)


def on_post_build(config: MkDocsConfig) -> None:
    """Warn about each file that would load something from another host."""
    site = Path(config.site_dir)
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = path.read_text(encoding="utf-8")
        page = _Loads()
        if path.suffix == ".html":
            page.feed(text)
        for target in [*page.found, *re.findall(r"url\(\W?(\w+://[^)]*)\)", text)]:
            log.warning("%s loads %s", path.relative_to(site), target)
