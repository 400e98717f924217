"""The one place to ask for a binary or an image: made on first use, at once afterwards."""

from __future__ import annotations

import functools
import os
import re
import threading
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed import owner
from testbed.artifacts import config as settings
from testbed.artifacts.archive import full_name
from testbed.artifacts.cache import Cache, Record, remove_tree
from testbed.artifacts.config import Config, Local, Remote
from testbed.artifacts.source import Job, Origin, Runner, Source, disk_full
from testbed.errors import ArtifactError, CommandError, UsageError
from testbed.process import run
from testbed.progress import Tell, silent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from testbed.artifacts.catalog import Catalog
    from testbed.artifacts.url import Download


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact: what it is, where it comes from, and whether it is here."""

    name: str
    version: str  #: empty while it is not known
    key: str  #: twelve hex digits of the content's recipe; empty for a user's path
    path: Path | None  #: the folder in the cache, or the user's file; None when missing
    size: int  #: bytes; 0 when missing
    origin: Origin
    #: "old": made by an earlier recipe, or from something that is gone; used no more
    state: Literal["cached", "missing", "old"]
    of: str = ""  #: the key of the entry that it was made from and goes with


class Store:
    """Binaries and images by name.  Safe to use from several threads and processes at once.

    ``overrides`` maps a name to the user's own file and wins over ``config``,
    the configuration file (None: the default one, if it exists).  ``progress``
    is told of artifacts by their names, from whatever thread asked.
    ``runner`` and ``catalog`` are for tests.
    """

    def __init__(
        self,
        cache: Path | None = None,
        overrides: Mapping[str, str] | None = None,
        config: Path | None = None,
        progress: Tell = silent,
        *,
        runner: Runner = run,
        catalog: Catalog | None = None,
    ) -> None:
        self._cache = Cache((cache or owner.cache()).absolute())
        self._overrides = settings.overrides(overrides or {})
        self._config_path = config
        self._config: Config | None = None
        self._progress = progress
        self._runner = runner
        self._given = catalog
        self._cancel = threading.Event()
        self._versions: dict[str, str] | None = None
        self._known: dict[str, Path] = {}  # what was found whole, so that a second look is one stat

    @property
    def folder(self) -> Path:
        """The cache folder."""
        return self._cache.folder

    def leftovers(self) -> list[Path]:
        """What killed makers of artifacts have left in the cache folder."""
        return self._cache.leftovers()

    def sweep(self) -> None:
        """Remove it."""
        self._cache.sweep()

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles, add-ons and network plugins whose parts are made for labs with them alone."""
        return tuple(dict.fromkeys(self._catalog.roles.values()))

    def unasked(self, roles: Collection[str] = ()) -> frozenset[str]:
        """Parts that are not missed when missing.

        Those that only the making of others may need, and those for labs with roles that
        few have, but for the ``roles`` that are asked for.
        """
        others = (name for name, of in self._catalog.roles.items() if of not in roles)
        return self._catalog.tools.union(others)

    def role_of(self, part: str) -> str:
        """The role that a part is for, where labs with that one alone ask for it."""
        return self._catalog.roles.get(part, "")

    def unmade(self, role: str) -> list[str]:
        """The parts for labs with a role alone that are not here yet."""
        return [
            entry.name
            for entry in self._current()
            if entry.state == "missing" and self.role_of(entry.name) == role
        ]

    @property
    def folders(self) -> list[Path]:
        """Every folder that programs or images may be read from: the cache, and the user's own."""
        read = self._read()
        users = [*self._overrides.values(), *read.artifacts.values(), *read.images.values()]
        own = [one.path.resolve().parent for one in users if isinstance(one, Local)]
        return list(dict.fromkeys([self.folder, *own]))

    def is_users(self, name: str) -> bool:
        """Whether a program is the user's own, by an override or the configuration file."""
        return self._own(name, "artifacts") is not None

    def is_users_image(self, name: str) -> bool:
        """Whether an image is the user's own, by the configuration file."""
        return self._own(name, "images") is not None

    def users_images(self) -> dict[str, Path | None]:
        """The user's own images: the file of each, None of one that is still to be downloaded.

        A file that is named may not be there.
        """
        return {name: self._here(name, own) for name, own in self._read().images.items()}

    def _here(self, name: str, own: Local | Remote) -> Path | None:
        if isinstance(own, Local):
            return own.path
        source = _download(own, name, executable=False)
        found = self._cache.find(_plain(name), source.key())
        return found / source.place if found and source.whole(found) else None

    def users_file(self, name: str) -> Path:
        """The path of an artifact of the user's that is no program, such as a manifest.

        Raises UsageError for a bad configuration, ArtifactError when there is none.
        """
        own = self._own(name, "artifacts")
        if own is None:
            raise ArtifactError(
                f"no artifact is named {name!r}", hint=self._how([name], "artifacts")
            )
        return self._users(name, own, executable=isinstance(own, Remote))

    def binary(self, name: str, *parts: str) -> Path:
        """The path of a program; made first if it is not in the cache.

        ``parts`` are those that it may come from; the first that brings it is taken, unless
        the user has one of his own.
        Raises UsageError for a bad configuration, ArtifactError when the
        program is unknown or cannot be had, Interrupted after interrupt().
        """
        own = self._own(name, "artifacts")
        if own:
            return self._users(name, own, executable=True)
        part = self._part_of(name, parts)
        if part is None:
            raise ArtifactError(
                f"no artifact is named {name!r}", hint=self._how([name], "artifacts")
            )
        path = self._file(part, f"bin/{name}")
        if not path.exists():
            raise ArtifactError(
                f"the part {part} of this system brings no {name}",
                hint=self._how([name], "artifacts"),
            )
        return path

    def made(self, name: str, *parts: str) -> Path | None:
        """The path of a program as :meth:`binary` gives it; None where it is still to be made."""
        part = self._part_of(name, parts)
        if part is not None and not self._own(name, "artifacts"):
            source = self._catalog.parts[part]
            found = self._cache.find(part, source.key())
            if found is None or not source.whole(found):
                return None
        return self.binary(name, *parts)

    def image(self, name: str) -> Path:
        """The path of an image as a docker-archive, as ``docker load`` reads it.

        "nginx" and "docker.io/library/nginx:latest" are the same.  Raises as :meth:`binary` does.
        """
        own = self._own(name, "images")
        if own:
            return self._users(_plain(name), own, executable=False)
        if why := self.lacking_images([name]):
            raise why
        part = self._known_images()[full_name(name)]
        return self._file(part, "image.tar")

    def lacking_images(self, names: Iterable[str]) -> ArtifactError | None:
        """The error for images that are missing, all of them at once; None if none is.

        Nothing is downloaded or made.  Raises UsageError for a bad configuration.
        """
        unknown, said = [], []
        for name in sorted(set(names)):
            own = self._own(name, "images")
            if own is None and full_name(name) not in self._known_images():
                unknown.append(name)
            elif isinstance(own, Local) and not own.path.is_file():
                said.append(f"{own.given_by}: there is no file {own.path}")
        if unknown:
            is_one = len(unknown) == 1
            known = ", ".join(sorted({*self._catalog.images, *self._read().images}))
            said.insert(
                0,
                f"image{'' if is_one else 's'} {', '.join(unknown)} {'is' if is_one else 'are'} "
                f"not available here; available: {known}",
            )
        hint = self._how(unknown, "images") if unknown else "correct the path, or write the file"
        return ArtifactError("\n".join(said), hint=hint) if said else None

    def _known_images(self) -> dict[str, str]:
        """The part that makes each image of the catalogue, by the image's full name."""
        return {full_name(name): part for name, part in self._catalog.images.items()}

    def file(self, part: str, place: str) -> Path:
        """A file that a part has beside its programs; ``place`` is its path in the part."""
        return self._file(part, place)

    def path_dirs(self, *parts: str) -> list[Path]:
        """The folders that hold all programs of some parts, and nothing else, to be put on PATH.

        Of several parts that bring a program the first is taken.
        """
        brought: dict[str, str] = {}
        for part in parts:
            programs = self._catalog.brought_by(part)
            if not programs:
                raise ArtifactError(f"no part is named {part!r} and brings programs")
            brought = dict.fromkeys(programs, part) | brought
        owned = [name for name in brought if self._own(name, "artifacts")]
        if not owned and len(parts) == 1:
            return [self._folder(parts[0]) / "bin"]
        # All of them are looked up by name, so the user's must not bring its neighbours along.
        chosen = {name: self.binary(name) for name in owned}
        for name, part in brought.items():
            if name not in chosen and (path := self._file(part, f"bin/{name}")).exists():
                chosen[name] = path
        from testbed.artifacts.links import Links

        return [self._make(f"{parts[0]}-path", Links(chosen)) / "bin"]

    def versions(self) -> dict[str, str]:
        """The version of each artifact that is here or pinned; a user's file counts as its path."""
        return {entry.name: entry.version for entry in self._current() if entry.version}

    def versions_of(
        self, programs: Iterable[str], *parts: str, images: Iterable[str] = ()
    ) -> dict[str, str]:
        """The versions of the parts that bring these programs and images, by part.

        ``parts`` are as :meth:`binary` takes them.  The user's own are there by their own names.
        Parts whose version is not known are left out.
        """
        known = self._known_images()
        names = [
            *(p if self.is_users(p) else self._part_of(p, parts) for p in programs),
            *(i if self.is_users_image(i) else known.get(full_name(i)) for i in images),
        ]
        found = {name: self.version(name) for name in names if name}
        return {name: version for name, version in found.items() if version}

    def version(self, part: str) -> str:
        """The version of a part, as :meth:`versions` has it; empty when it is not known."""
        if self._versions is None:
            self._versions = self.versions()
        return self._versions.get(part, "")

    def packages(self, *parts: str) -> dict[str, str]:
        """The packages that parts are made of, name to version; empty where it is not known."""
        found: dict[str, str] = {}
        for part in parts:
            names = getattr(self._catalog.parts.get(part), "packages", ())
            if isinstance(names, tuple):  # those of a Go module are no distribution's
                found |= dict.fromkeys(names, "") | {names[0]: self.version(part)}
        return found

    def keep(self, name: str, source: Source) -> Path:
        """The folder of an artifact that somebody else knows how to make; made first if need be."""
        found = self.kept(name, source)  # not by name alone: several may bear it
        return found or self._fill(name, source.key(), source)

    def kept(self, name: str, source: Source) -> Path | None:
        """The folder of such an artifact if it has been made, else None."""
        found = self._cache.find(name, source.key())
        return found if found and source.whole(found) else None

    def list(self) -> Sequence[Entry]:
        """Every artifact that is known, chosen by the user, or in the cache."""
        entries = list(self._current())
        keys = {entry.key for entry in entries}
        names = {entry.name for entry in entries}
        records = self._cache.records()
        there = {"", *(record.key for record in records)}
        return entries + [
            _cached(record, "old" if record.name in names or record.of not in there else "cached")
            for record in records
            if record.key not in keys and not record.name.endswith("-path")
        ]

    def fetch(self, name: str) -> None:
        """Make an artifact now: a part, a program, an image, or one of the user's."""
        if name in self._catalog.parts and not self._own(name, "artifacts"):
            self._folder(name)
        elif full_name(name) in self._known_images() or name in self._read().images:
            self.image(name)
        elif self._own(name, "artifacts") and name not in self._catalog.programs:
            self.users_file(name)
        else:
            self.binary(name)

    def remove(self, name: str | None = None, key: str | None = None) -> int:
        """Remove an artifact from the cache, or with None all of them; return the bytes freed.

        Of several of that name only the one with the ``key`` goes, if given.  A
        program's name stands for the part that brings it.  What was made from it
        goes too.  A lab that runs goes on with what it has open, yet cannot start
        a removed program again.  A user's own files are not touched.
        """
        wanted = name and self._catalog.programs.get(name, _plain(name))
        records = self._cache.records()
        doomed = {
            record.key
            for record in records
            if (wanted is None or record.name in {wanted, f"{wanted}-path"})
            and key in {None, record.key}
        }
        freed = 0
        for record in records:
            if record.key in doomed or record.of in doomed:
                self._cache.remove(record, cancel=self._cancel)
                freed += record.size
        if wanted is None:
            remove_tree(self._cache.shared)
        self._known.clear()
        return freed

    def interrupt(self) -> None:
        """Make every step in progress, in whatever thread, end soon; called on the way out."""
        self._cancel.set()

    @functools.cached_property
    def _catalog(self) -> Catalog:
        from testbed.artifacts.catalog import CATALOG

        return self._given or CATALOG

    def _read(self) -> Config:
        if self._config is None:
            self._config = settings.load(self._config_path)
        return self._config

    def _own(self, name: str, section: Literal["artifacts", "images"]) -> Local | Remote | None:
        if section == "artifacts":
            return self._overrides.get(name) or self._read().artifacts.get(name)
        wanted = full_name(name)
        given = {**self._read().images, **self._overrides}
        return next((own for key, own in given.items() if full_name(key) == wanted), None)

    def _part_of(self, name: str, parts: Sequence[str]) -> str | None:
        """The part that brings a program: the first of ``parts``, if any are given."""
        bringing = (part for part in parts if name in self._catalog.brought_by(part))
        return next(bringing, None) if parts else self._catalog.programs.get(name)

    def _how(self, names: Sequence[str], section: str) -> str:
        """How to bring artifacts or images: lines for the end of the configuration file."""
        path = self._config_path or settings.default_path()
        lines = settings.entries(section, names, ".tar" if section == "images" else "")
        what = "archives that `docker save` wrote" if section == "images" else "your own files"
        words = f"to use {what}, add to {path}, with their paths:"
        return "\n     ".join([words, *lines])

    def _users(self, name: str, own: Local | Remote, *, executable: bool) -> Path:
        if isinstance(own, Local):
            if not own.path.is_file():
                raise UsageError(f"{own.given_by}: there is no file {own.path}")
            if executable and not os.access(own.path, os.X_OK):
                raise UsageError(
                    f"{own.given_by}: {own.path} is not executable", hint=f"chmod +x {own.path}"
                )
            return own.path
        source = _download(own, name, executable=executable)
        return self._make(name, source) / source.place

    def _folder(self, part: str) -> Path:
        return self._make(part, self._catalog.parts[part])

    def _file(self, part: str, place: str) -> Path:
        return self._folder(part) / place

    def _make(self, name: str, source: Source) -> Path:
        known = self._known.get(name)
        if known and source.whole(known):
            return known
        key = source.key()
        found = self._cache.find(name, key)
        if found is None or not source.whole(found):
            found = self._fill(name, key, source)
        self._known[name] = found
        return found

    def _fill(self, name: str, key: str, source: Source) -> Path:
        def say(message: str) -> None:
            self._progress(name, message)

        def build(folder: Path) -> str:
            job = Job(folder, self._cache.shared, say, self._runner, self._cancel, self._folder)
            owner.make(job.shared)
            try:
                version = source.fill(job)
            finally:
                owner.give_tree(job.shared)
            self._versions = None
            self._progress(name, f"ready, {version}", ended=True)
            return version

        try:
            return self._cache.fill(
                name,
                key,
                source.origin,
                build,
                of=source.of(),
                valid=source.whole,
                say=say,
                cancel=self._cancel,
            )
        except ArtifactError as error:
            raise ArtifactError(f"{name}: {error.message}", hint=error.hint) from error
        except CommandError as error:
            if full := disk_full(error):
                raise ArtifactError(
                    f"{name} cannot be made: the disk of {self.folder} is full\n    {full}",
                    hint="make room, or give another folder with TESTBED_CACHE",
                ) from error
            raise ArtifactError(
                f"{name} cannot be made\n{error.message}", hint=error.hint
            ) from error

    def _current(self) -> Iterator[Entry]:
        records = {record.key: record for record in self._cache.records()}
        read = self._read()
        users: dict[str, Local | Remote] = {**read.images, **read.artifacts, **self._overrides}
        for name, source in self._catalog.parts.items():
            if all(made in users for made in source.brings() or (name,)):
                continue  # nothing of it is used
            yield _entry(name, source, records.get(source.key()))
        for name, own in users.items():
            if isinstance(own, Remote):
                source = _download(own, name, executable=name not in read.images)
                yield _entry(name, source, records.get(source.key()))
                continue
            here = own.path.is_file()
            size = own.path.stat().st_size if here else 0
            path = own.path if here else None
            yield Entry(
                name, f"from {own.path}", "", path, size, "path", "cached" if here else "missing"
            )


def _plain(name: str) -> str:
    """The name of an image as a folder of the cache has it.

    >>> _plain("nginx:latest"), _plain("team/web:1")
    ('nginx', 'team-web-1-97f3')
    """
    name = name.removesuffix(":latest")
    plain = re.sub("[^a-z0-9._-]+", "-", name.lower())
    return name if plain == name else f"{plain}-{sha256(name.encode()).hexdigest()[:4]}"


def _download(own: Remote, name: str, *, executable: bool) -> Download:
    from testbed.artifacts.url import Download

    place = f"bin/{name}" if executable else "image.tar"
    return Download(own.url, own.sha256, place, own.member)


def _entry(name: str, source: Source, record: Record | None) -> Entry:
    if record is None:
        return Entry(name, source.version() or "", source.key(), None, 0, source.origin, "missing")
    return _cached(record, "cached")


def _cached(record: Record, state: Literal["cached", "old"]) -> Entry:
    return Entry(
        record.name,
        record.version,
        record.key,
        record.path,
        record.size,
        record.origin,
        state,
        record.of,
    )
