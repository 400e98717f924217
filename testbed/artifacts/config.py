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
        raise UsageError("the configuration file does not exist", where=str(path)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot be read: {error}", where=str(path)) from error
    import tomllib

    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = 'put names with ":" or "/" in quotes, like "redis:7"'
        raise UsageError(str(error), where=str(path), hint=hint) from error
    images = _section(path, data, "images")
    seen: dict[str, str] = {}
    for name in images:
        other = seen.setdefault(full_name(name), name)
        if other != name:
            raise UsageError(
                f"{name} and {other} name the same image",
                where=f"{path}: images",
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
                "wanted NAME=PATH",
                where=f"--artifact {name}={path}",
                hint="for example: --artifact flanneld=./flanneld",
            )
        found[name] = Local(Path(path).expanduser().absolute(), f"--artifact {name}")
    return found


def _section(path: Path, data: Mapping[str, Any], section: str) -> dict[str, Local | Remote]:
    table = data.get(section, {})
    if not isinstance(table, dict):
        raise UsageError(f"wanted a table, saw {table!r}", where=f"{path}: {section}")
    return {name: _item(path, section, name, item) for name, item in table.items()}


def _item(path: Path, section: str, name: str, item: object) -> Local | Remote:
    where = f"{path}: {section}.{name}"
    hint = 'write {path = "..."} or {url = "...", sha256 = "..."}'
    if not re.fullmatch(PATTERNS[section], name):
        quoted = f'put the whole name in quotes, like "{name}:TAG"' if section == "images" else None
        raise UsageError(
            f"{name!r} is not a name of an artifact or an image", where=where, hint=quoted
        )
    if not isinstance(item, dict):
        raise UsageError(f"wanted a table, saw {item!r}", where=where, hint=hint)
    for word, value in item.items():
        if word not in {"path", "url", "sha256", "member"}:
            raise UsageError("unknown key", where=f"{where}.{word}", hint=hint)
        if not isinstance(value, str) or not value:
            raise UsageError(f"wanted text, saw {value!r}", where=f"{where}.{word}")
    if ("path" in item) == ("url" in item):
        raise UsageError("wanted either path or url", where=where, hint=hint)
    if "path" in item:
        extra = sorted(set(item) - {"path"})
        if extra:
            raise UsageError("only allowed with url", where=f"{where}.{extra[0]}")
        return Local((path.parent / Path(item["path"]).expanduser()).absolute(), where)
    return _remote(where, item)


def _remote(where: str, item: Mapping[str, str]) -> Remote:
    if not re.match(r"https?://[^/]", item["url"]):
        raise UsageError(
            f"wanted an http or https address, saw {item['url']!r}", where=f"{where}.url"
        )
    digest = item.get("sha256", "").lower()
    if not digest:
        raise UsageError(
            "missing; a download is verified by its checksum",
            where=f"{where}.sha256",
            hint="run sha256sum on a file that you trust",
        )
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(f"wanted 64 hex digits, saw {digest!r}", where=f"{where}.sha256")
    return Remote(item["url"], digest, item.get("member"), where)
