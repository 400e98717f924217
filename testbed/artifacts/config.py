"""The user's own artifacts: ``--artifact NAME=PATH`` and the configuration file.

::

    [artifacts]
    flanneld   = {path = "~/go/bin/flanneld"}
    containerd = {url = "https://.../containerd.tar.gz", sha256 = "...", member = "bin/containerd"}

    [images]
    "redis:7" = {path = "redis.tar"}     # as `docker save` writes it

A relative path is relative to the configuration file's folder.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed import owner
from testbed.artifacts.archive import full_name
from testbed.errors import UsageError
from testbed.topology.keys import IMAGE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NAME = "[a-z0-9][a-z0-9._-]*"
PATTERNS = {"artifacts": NAME, "images": IMAGE}


@dataclass(frozen=True, slots=True)
class Local:
    """A file of the user."""

    path: Path
    given_by: str  #: the option or the configuration key, for messages


@dataclass(frozen=True, slots=True)
class Remote:
    """A file that can be downloaded; ``member`` is its path inside a tar archive."""

    url: str
    sha256: str
    member: str | None
    given_by: str


@dataclass(frozen=True, slots=True)
class Config:
    """The user's own artifacts and images, by name."""

    artifacts: Mapping[str, Local | Remote] = field(default_factory=dict)
    images: Mapping[str, Local | Remote] = field(default_factory=dict)


def default_path() -> Path:
    """Return ``$TESTBED_CONFIG``, or testbed/config.toml in the user's configuration folder."""
    if given := os.environ.get("TESTBED_CONFIG"):
        return Path(given)
    return owner.base("XDG_CONFIG_HOME", ".config") / "testbed" / "config.toml"


def load(path: Path | None) -> Config:
    """Read a configuration file; None means the default one, which may be missing.

    Raises UsageError with the file's name and the key.
    """
    must_exist = path is not None or "TESTBED_CONFIG" in os.environ
    path = path or default_path()
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if not must_exist:
            return Config()
        raise UsageError(f"{path}: there is no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = 'put names with ":" or "/" in quotes, like "redis:7"'
        raise UsageError(f"{path}: {error}", hint=hint) from error
    images = _section(path, data, "images")
    seen: dict[str, str] = {}
    for name in images:
        other = seen.setdefault(full_name(name), name)
        if other != name:
            raise UsageError(
                f"{path}: images: {name} and {other} are names of one image",
                hint="keep one of them",
            )
    return Config(_section(path, data, "artifacts"), images)


def entries(section: str, names: Iterable[str], ending: str = "") -> list[str]:
    """Return lines to add at the end of a configuration file, one table for each name.

    >>> entries("images", ["redis:7"], ".tar")
    ['[images."redis:7"]', 'path = "/path/to/redis-7.tar"']
    """
    lines = []
    for name in names:
        file = re.sub("[^A-Za-z0-9._-]+", "-", name.partition("@")[0])
        lines += [f'[{section}."{name}"]', f'path = "/path/to/{file}{ending}"']
    return lines


def overrides(given: Mapping[str, str]) -> dict[str, Local]:
    """Parse the ``NAME=PATH`` pairs of the command line.  Raises UsageError for a bad name."""
    found = {}
    for name, path in given.items():
        if not (re.fullmatch(NAME, name) or re.fullmatch(IMAGE, name)) or not path:
            raise UsageError(
                f"--artifact {name}={path}: not NAME=PATH",
                hint="for example: --artifact flanneld=./flanneld",
            )
        found[name] = Local(Path(path).expanduser().absolute(), f"--artifact {name}")
    return found


def _section(path: Path, data: Mapping[str, Any], section: str) -> dict[str, Local | Remote]:
    table = data.get(section, {})
    if not isinstance(table, dict):
        raise UsageError(f"{path}: {section}: a table is wanted, not {table!r}")
    return {name: _item(path, section, name, item) for name, item in table.items()}


def _item(path: Path, section: str, name: str, item: object) -> Local | Remote:
    where = f"{path}: {section}.{name}"
    hint = 'write {path = "..."} or {url = "...", sha256 = "..."}'
    if not re.fullmatch(PATTERNS[section], name):
        quoted = f'put the whole name in quotes, like "{name}:TAG"' if section == "images" else None
        raise UsageError(f"{where}: {name!r} is no name of an artifact or an image", hint=quoted)
    if not isinstance(item, dict):
        raise UsageError(f"{where}: a table is wanted, not {item!r}", hint=hint)
    for word, value in item.items():
        if word not in {"path", "url", "sha256", "member"}:
            raise UsageError(f"{where}.{word}: not a known key", hint=hint)
        if not isinstance(value, str) or not value:
            raise UsageError(f"{where}.{word}: a text is wanted, not {value!r}")
    if ("path" in item) == ("url" in item):
        raise UsageError(f"{where}: exactly one of path and url is wanted", hint=hint)
    if "path" in item:
        extra = sorted(set(item) - {"path"})
        if extra:
            raise UsageError(f"{where}.{extra[0]}: goes with url, not with path")
        return Local((path.parent / Path(item["path"]).expanduser()).absolute(), where)
    return _remote(where, item)


def _remote(where: str, item: Mapping[str, str]) -> Remote:
    if not re.match(r"https?://[^/]", item["url"]):
        raise UsageError(f"{where}.url: an http or https address is wanted, not {item['url']!r}")
    digest = item.get("sha256", "").lower()
    if not digest:
        raise UsageError(
            f"{where}.sha256: missing; a download is trusted by its sum only",
            hint="sha256sum prints it for a file that you trust",
        )
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"{where}.sha256: 64 hex digits are wanted, not {digest!r}")
    return Remote(item["url"], digest, item.get("member"), where)
