"""The user's own artifacts and registries: ``--artifact NAME=PATH`` and the configuration file.

::

    [artifacts]
    flanneld   = {path = "~/go/bin/flanneld"}
    containerd = {url = "https://.../containerd.tar.gz", sha256 = "...", member = "bin/containerd"}

    [images]
    "redis:7" = {path = "redis.tar"}     # as `docker save` writes it, or an OCI archive or folder

    [pull]
    policy = "missing"                   # or "always", "never"
    from = ["docker", "/srv/images"]     # engines of this machine, archives, folders of archives
    authfile = "auth.json"

    [registries."docker.io"]
    mirrors = ["mirror.example:5000/hub"]
    [registries."mirror.example:5000"]
    insecure = true                      # plain HTTP, or a certificate that is not verified
    ca = "ca.crt"

A relative path is relative to the configuration file's folder.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from testbed import owner
from testbed.artifacts.reference import full_name
from testbed.errors import UsageError
from testbed.topology.keys import IMAGE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

NAME = "[a-z0-9][a-z0-9._-]*"
PATTERNS = {"artifacts": NAME, "images": IMAGE}
#: When a registry is asked: at each `up`, for images that are not here, or not at all.
Policy = Literal["always", "missing", "never"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
#: Container engines of this machine that can be asked for images.
Engine = Literal["docker", "podman"]
ENGINES: tuple[Engine, ...] = get_args(Engine)
#: A registry's host with its port, and optionally the beginning of a repository.
REGISTRY = r"[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[a-z0-9._-]+)*"


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
class Registry:
    """Settings of a registry, as in registries.conf (containers-registries.conf(5)).

    ``mirrors`` are asked first, in this order.  ``insecure`` permits plain HTTP and certificates
    that are not verified.  ``ca`` is a file with certificates to trust, in the format PEM.
    """

    mirrors: tuple[str, ...] = ()
    insecure: bool = False
    ca: Path | None = None


@dataclass(frozen=True, slots=True)
class Pull:
    """Sources of images that are neither the user's nor in the cache.

    ``sources`` are asked in this order: an engine of this machine, or a path.  None of ``policy``
    and ``authfile`` means the default.
    """

    policy: Policy | None = None
    sources: tuple[Engine | Path, ...] = ()
    authfile: Path | None = None
    registries: Mapping[str, Registry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config:
    """The user's own artifacts and images, by name, and the sources of other images."""

    artifacts: Mapping[str, Local | Remote] = field(default_factory=dict)
    images: Mapping[str, Local | Remote] = field(default_factory=dict)
    pull: Pull = field(default_factory=Pull)


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
        at = re.search(r"at line ([0-9]+)", str(error))
        where = f"{path}:{at[1]}" if at else str(path)
        raise UsageError(str(error), where=where, hint=hint) from error
    file = _File(path, text)
    images = file.items(data, "images")
    seen: dict[str, str] = {}
    for name in images:
        other = seen.setdefault(full_name(name), name)
        if other != name:
            raise UsageError(
                f"{name} and {other} name the same image",
                where=file.where("images", name),
                hint="keep one of them",
            )
    return Config(file.items(data, "artifacts"), images, file.pull(data))


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
        found[name] = Local(_path(Path(), path), f"--artifact {name}")
    return found


def sources(given: Iterable[str]) -> tuple[Engine | Path, ...]:
    """Parse the values of ``--images-from``: docker, podman, or a path.

    Raises UsageError for a path that does not exist.
    """
    return tuple(_source(one, Path(), f"--images-from {one}") for one in given)


def look(path: Path, where: str) -> os.stat_result | None:
    """Return the status of a user's file or folder; None if there is none.

    ``where`` is the option or the key that names it.  Raises UsageError if this user may not look.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: it contains NUL
        return None
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror or error}",
            where=where,
            hint="check the path and the permissions of its folders, or run testbed as root",
        ) from error


def _path(folder: Path, given: str) -> Path:
    """Return the absolute path of what a user named, relative to a folder."""
    return (folder / os.path.expanduser(given)).absolute()  # noqa: PTH111  the other one raises


def _source(given: str, folder: Path, where: str) -> Engine | Path:
    for engine in ENGINES:
        if given == engine:
            return engine
    path = _path(folder, given)
    if look(path, where) is None:
        raise UsageError(
            f"{path} does not exist",
            where=where,
            hint=f"write {' or '.join(ENGINES)}, an archive, or a folder of archives",
        )
    return path


class _File:
    """A configuration file while it is read; all errors are UsageError with file and line."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._lines = _lines(text)

    def where(self, *keys: str) -> str:
        """Return the place of a key: file, line and the key with its tables."""
        line = next(
            (self._lines[keys[:n]] for n in range(len(keys), 0, -1) if keys[:n] in self._lines), 0
        )
        place = f"{self.path}:{line}" if line else str(self.path)
        return f"{place}: {'.'.join(keys)}"

    def table(self, data: object, *keys: str, hint: str | None = None) -> Mapping[str, Any]:
        if not isinstance(data, dict):
            raise UsageError(f"wanted a table, saw {data!r}", where=self.where(*keys), hint=hint)
        return data

    def known(self, table: Iterable[str], known: Collection[str], *keys: str, hint: str) -> None:
        for word in table:
            if word not in known:
                raise UsageError("unknown key", where=self.where(*keys, word), hint=hint)

    def text(self, value: object, *keys: str) -> str:
        if not isinstance(value, str) or not value:
            raise UsageError(f"wanted text, saw {value!r}", where=self.where(*keys))
        return value

    def texts(self, value: object, *keys: str) -> list[str]:
        if not isinstance(value, list):
            raise UsageError(f"wanted a list, saw {value!r}", where=self.where(*keys))
        return [self.text(one, *keys) for one in value]

    def file(self, value: object, *keys: str) -> Path:
        """Return the path of a file, which must exist."""
        path = self.below(self.text(value, *keys))
        status = look(path, self.where(*keys))
        if status is None or not stat.S_ISREG(status.st_mode):
            raise UsageError(f"the file {path} does not exist", where=self.where(*keys))
        return path

    def below(self, path: str) -> Path:
        return _path(self.path.parent, path)

    def items(self, data: Mapping[str, Any], section: str) -> dict[str, Local | Remote]:
        """Return the artifacts or images of a section."""
        table = self.table(data.get(section, {}), section)
        return {name: self._item(section, name, item) for name, item in table.items()}

    def _item(self, section: str, name: str, item: object) -> Local | Remote:
        keys = section, name
        where = self.where(*keys)
        hint = 'write {path = "..."} or {url = "...", sha256 = "..."}'
        if not re.fullmatch(PATTERNS[section], name):
            quoted = (
                f'put the whole name in quotes, like "{name}:TAG"' if section == "images" else None
            )
            raise UsageError(
                f"{name!r} is not a name of an artifact or an image", where=where, hint=quoted
            )
        table = self.table(item, *keys, hint=hint)
        self.known(table, {"path", "url", "sha256", "member"}, *keys, hint=hint)
        said = {word: self.text(value, *keys, word) for word, value in table.items()}
        if ("path" in said) == ("url" in said):
            raise UsageError("wanted either path or url", where=where, hint=hint)
        if "path" in said:
            extra = sorted(set(said) - {"path"})
            if extra:
                raise UsageError("only allowed with url", where=self.where(*keys, extra[0]))
            return Local(self.below(said["path"]), where)
        return self._remote(said, *keys)

    def _remote(self, item: Mapping[str, str], *keys: str) -> Remote:
        if not re.match(r"https?://[^/]", item["url"]):
            raise UsageError(
                f"wanted an http or https address, saw {item['url']!r}",
                where=self.where(*keys, "url"),
            )
        digest = item.get("sha256", "").lower()
        where = self.where(*keys, "sha256")
        if not digest:
            raise UsageError(
                "missing; a download is verified by its checksum",
                where=where,
                hint="run sha256sum on a file that you trust",
            )
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise UsageError(f"wanted 64 hex digits, saw {digest!r}", where=where)
        return Remote(item["url"], digest, item.get("member"), self.where(*keys))

    def pull(self, data: Mapping[str, Any]) -> Pull:
        """Return the sections ``pull`` and ``registries``."""
        table = self.table(data.get("pull", {}), "pull")
        hint = "known: policy, from, authfile"
        self.known(table, {"policy", "from", "authfile"}, "pull", hint=hint)
        policy = table.get("policy")
        if policy is not None and policy not in POLICIES:
            raise UsageError(
                f"wanted {', '.join(POLICIES[:-1])} or {POLICIES[-1]}, saw {policy!r}",
                where=self.where("pull", "policy"),
            )
        where = self.where("pull", "from")
        given = self.texts(table.get("from", []), "pull", "from")
        authfile = table.get("authfile")
        registries = self.table(data.get("registries", {}), "registries")
        return Pull(
            policy,
            tuple(_source(one, self.path.parent, where) for one in given),
            None if authfile is None else self.file(authfile, "pull", "authfile"),
            {name: self._registry(name, item) for name, item in registries.items()},
        )

    def _registry(self, name: str, item: object) -> Registry:
        keys = "registries", name
        self._name(name, *keys)
        table = self.table(item, *keys)
        self.known(table, {"mirrors", "insecure", "ca"}, *keys, hint="known: mirrors, insecure, ca")
        mirrors = self.texts(table.get("mirrors", []), *keys, "mirrors")
        for mirror in mirrors:
            self._name(mirror, *keys, "mirrors")
        insecure = table.get("insecure", False)
        if not isinstance(insecure, bool):
            raise UsageError(
                f"wanted true or false, saw {insecure!r}", where=self.where(*keys, "insecure")
            )
        ca = table.get("ca")
        return Registry(
            tuple(mirrors), insecure, None if ca is None else self.file(ca, *keys, "ca")
        )

    def _name(self, name: str, *keys: str) -> None:
        if not re.fullmatch(REGISTRY, name):
            raise UsageError(
                f"{name!r} is not a registry",
                where=self.where(*keys),
                hint="write its host with its port, without https://",
            )


#: The key of a line: bare or quoted words, with dots between.
_WORD = r"""(?:"[^"]*"|'[^']*'|[A-Za-z0-9_-]+)"""
_KEY = re.compile(rf"\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*=")
_HEADER = re.compile(rf"\s*\[\s*({_WORD}(?:\s*\.\s*{_WORD})*)\s*\]")


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the number of the first line of each table and key; tomllib keeps none."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.match(line)
        match = header or _KEY.match(line)
        if not match:
            continue
        words = tuple(word.strip("\"'") for word in re.findall(_WORD, match[1]))
        if header:
            table = words
        keys = words if header else (*table, *words)
        for n in range(1, len(keys) + 1):
            found.setdefault(keys[:n], number)
    return found
