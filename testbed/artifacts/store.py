"""The store of binaries and images, built on first use and then taken from the cache."""

from __future__ import annotations

import functools
import os
import re
import stat
import threading
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from testbed import boot_cache, owner
from testbed.artifacts import config as settings
from testbed.artifacts.cache import Cache, Record, remove_tree
from testbed.artifacts.cache import size as folder_size
from testbed.artifacts.config import Config, Local, Remote
from testbed.artifacts.reference import Reference, full_name, local_name
from testbed.artifacts.source import Job, Origin, Runner, Source, disk_full
from testbed.errors import ArtifactError, CommandError, UsageError
from testbed.process import run
from testbed.progress import Tell, silent
from testbed.topology.keys import IMAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from testbed.artifacts.config import Policy
    from testbed.artifacts.images import Brought, Way, Ways
    from testbed.artifacts.inventory import Inventory
    from testbed.artifacts.source import Preference
    from testbed.artifacts.url import Download


PULLS = 3  # images that are fetched at once, as Docker fetches layers
FITTING = "archives"  # name of a fact: users' archives that every engine can load


@dataclass(slots=True)
class _Lacking:
    """Images that are not available."""

    files: list[str] = field(default_factory=list)  #: sentences on missing files of the user
    reasons: dict[str, list[str]] = field(default_factory=dict)  #: what was tried, by image
    hints: dict[str, list[str]] = field(default_factory=dict)  #: by image

    def add(
        self, name: str, reasons: list[str], tried: Sequence[tuple[Way, ArtifactError]]
    ) -> None:
        self.reasons[name] = reasons
        self.hints[name] = [why.hint for _, why in tried if why.hint]


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact, with its source and its place in the cache."""

    name: str
    version: str  #: empty if not known yet
    key: str  #: twelve hex digits of the content's recipe; empty for a user's path
    path: Path | None  #: the folder in the cache, or the user's file; None when missing
    size: int  #: bytes; 0 when missing
    origin: Origin
    #: "old": built by an earlier recipe, or from an entry that is gone; no longer used
    state: Literal["cached", "missing", "old"]
    of: str = ""  #: key of the entry that it was built from and is removed with
    published: bool = False  #: it can be built here, and is built by its makers as well

    @property
    def described(self) -> str:
        """The version; with its origin for an entry in the cache if there is another origin."""
        if not self.published or self.state == "missing":
            return self.version
        return f"{self.version} ({'downloaded' if self.origin == 'release' else 'built'})"


OWN = "own"  # begins the name of an entry for the programs of a folder


def is_place(part: str) -> bool:
    """Tell whether a part is a folder with programs, by its path."""
    return part.startswith("/")


class Store:
    """Binaries and images by name.  Safe for concurrent threads and processes.

    ``overrides`` maps a name to the user's own file and takes precedence over
    ``config``, the configuration file (None: the default one, if it exists).
    ``progress`` is called with an artifact's name and the current step, from the
    thread that makes it.  ``pull`` and ``images_from`` (docker, podman, or a path) are about images
    that are neither the user's nor built here; they take precedence over the configuration file.
    ``way`` is the origin of programs that can be built here, and are built by their makers as well.
    Without it, the one that was filled or chosen last is used; if there is none, it is
    downloaded, and built if the makers' site cannot be reached.
    ``runner`` and ``inventory`` are for tests.
    """

    def __init__(
        self,
        cache: Path | None = None,
        overrides: Mapping[str, str] | None = None,
        config: Path | None = None,
        progress: Tell = silent,
        *,
        pull: Policy | None = None,
        images_from: Sequence[str] = (),
        way: Preference | None = None,
        runner: Runner = run,
        inventory: Inventory | None = None,
    ) -> None:
        self._cache = Cache((cache or owner.cache()).absolute())
        self._overrides = settings.overrides(overrides or {})
        self._config_path = config
        self._config: Config | None = None
        self._policy = pull
        self._sources = settings.sources(images_from)
        self._way = way
        self._brought: dict[str, Path] = {}  # archives of this store's images, by what was asked
        self._progress = progress
        self._runner = runner
        self._given = inventory
        self._cancel = threading.Event()
        self._versions: dict[str, str] = {}
        self._places: dict[Path, None] = {}  # folders of programs that were used, in order
        self._known: dict[str, Path] = {}  # complete entries, so that the next lookup is one stat

    @property
    def folder(self) -> Path:
        """The cache folder."""
        return self._cache.folder

    def leftovers(self) -> list[Path]:
        """Return the leftovers of killed builds in the cache folder."""
        return self._cache.leftovers()

    def sweep(self) -> None:
        """Remove the leftovers of killed builds."""
        with self._cache.writing():
            self._cache.sweep()

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles, add-ons and network plugins with parts that only their labs need."""
        return tuple(dict.fromkeys(self._listed.roles.values()))

    def unasked(self, roles: Collection[str] = ()) -> frozenset[str]:
        """Return the optional parts.

        These are parts that only help to build others, and parts for rarely used roles, except
        the given ``roles``.
        """
        others = (name for name, of in self._listed.roles.items() if of not in roles)
        return self._listed.tools.union(others)

    def role_of(self, part: str) -> str:
        """Return the role of a part that only labs with this role need; empty for others."""
        return self._listed.roles.get(part, "")

    def unmade(self, role: str) -> list[str]:
        """Return the parts only for labs with a role that are not in the cache yet."""
        return [
            entry.name
            for entry in self._current()
            if entry.state == "missing" and self.role_of(entry.name) == role
        ]

    @property
    def folders(self) -> list[Path]:
        """Return all folders with programs or images: the cache, and the user's own."""
        read = self._read()
        users = [*self._overrides.values(), *read.artifacts.values(), *read.images.values()]
        own = [one.path.resolve().parent for one in users if isinstance(one, Local)]
        return list(dict.fromkeys([self.folder, *own, *self._places]))

    def is_users(self, name: str) -> bool:
        """Tell whether a program is the user's own, by an override or the configuration file."""
        return self._own(name, "artifacts") is not None

    def is_users_image(self, name: str) -> bool:
        """Tell whether an image is the user's own, by the configuration file."""
        return self._own(name, "images") is not None

    def users_images(self) -> dict[str, Path | None]:
        """Return the user's own images: the file of each, None if not downloaded yet.

        A configured file may be missing.
        """
        return {name: self._here(name, own) for name, own in self._read().images.items()}

    def _here(self, name: str, own: Local | Remote) -> Path | None:
        if isinstance(own, Local):
            return own.path
        source = _download(own, name, executable=False)
        found = self._cache.find(_plain(name), source.key())
        return found / source.place if found and source.whole(found) else None

    def users_file(self, name: str) -> Path:
        """Return the path of a user's artifact other than a program, such as a manifest.

        Raises UsageError for a bad configuration, ArtifactError if there is none.
        """
        own = self._own(name, "artifacts")
        if own is None:
            raise ArtifactError(f"unknown artifact {name!r}", hint=self._how([name], "artifacts"))
        return self._users(name, own, executable=isinstance(own, Remote))

    def binary(self, name: str, *parts: str) -> Path:
        """Return the path of a program; build it first if it is not in the cache.

        A program of the user takes precedence.  Otherwise it comes from the first of ``parts``
        that contains it, by default from any part.  A part may be a folder with programs, by its
        absolute path.
        Raises UsageError for a bad configuration, ArtifactError if the program is
        unknown or unavailable, Interrupted after interrupt().
        """
        own = self._own(name, "artifacts")
        if own:
            return self._users(name, own, executable=True)
        part = self._part_of(name, parts)
        if part is None:
            raise ArtifactError(f"unknown artifact {name!r}", hint=self._how([name], "artifacts"))
        try:
            path = self._file(part, f"bin/{name}")
        except ArtifactError as error:
            error.hint = error.hint or self._how([name], "artifacts")
            raise
        if not path.exists():
            raise ArtifactError(
                f"the part {part} contains no {name} on this system",
                hint=self._how([name], "artifacts"),
            )
        return path

    def made(self, name: str, *parts: str) -> Path | None:
        """Return the path of a program as :meth:`binary` does; None if it is not built yet."""
        part = self._part_of(name, parts)
        if part is None or is_place(part) or self._own(name, "artifacts"):
            return self.binary(name, *parts)
        used = self._in_use(part, self._inventory.parts[part])
        return self.binary(name, *parts) if used else None

    def image(self, name: str) -> Path:
        """Return the path of an image's docker-archive, for ``docker load``.

        "nginx" and "docker.io/library/nginx:latest" are the same.  Raises the errors of
        :meth:`bring`.
        """
        return self.bring([name])[name]

    def bring(self, names: Iterable[str]) -> dict[str, Path]:
        """Return the path of a docker-archive for each image; fetch those that are not here.

        An image is the user's (configuration file, ``--artifact``), or one that is built here.
        Others are in the cache, or are fetched from the first source that has them: engines of
        this machine and archives that the user named, and then the image's registry.  Several
        processes and threads fetch an image once.

        Raises one ArtifactError for all images that no source has, which says what was tried,
        UsageError for a bad configuration, Interrupted after interrupt().
        """
        wanted = sorted(set(names))
        lacking = _Lacking()
        absent = [
            name
            for name in wanted
            if name not in self._brought and not self._is_known(name, _Lacking())
        ]
        if len(absent) > 1:
            self._pull_all(absent, lacking)
        for name in wanted:
            if name not in self._brought and name not in lacking.reasons:
                self._bring(name, lacking)
        if error := self._lacking_error(lacking):
            raise error
        return {name: self._brought[name] for name in wanted}

    def _bring(self, name: str, lacking: _Lacking) -> None:
        if path := self._image(name, lacking):
            self._brought[name] = path

    def _pull_all(self, names: Sequence[str], lacking: _Lacking) -> None:
        """Fetch images of registries and engines, some at a time.

        Those that are in the cache cost less than a thread.
        """
        if self._ways.policy != "always":
            names = [name for name in names if not self._cached_image(name)]
        if not names:
            return
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(PULLS) as pool:
            pulls = [pool.submit(self._bring, name, lacking) for name in names]
            try:
                for pull in pulls:
                    pull.result()
            except BaseException as error:
                for pull in pulls:
                    pull.cancel()
                if not isinstance(error, ArtifactError):
                    self.interrupt()
                raise

    def lacking_images(self, names: Iterable[str]) -> ArtifactError | None:
        """Return one error for all images that are certain to be missing; None if there are none.

        Nothing is downloaded or built, and no source is asked: other images may turn out to be
        missing, too.  Raises UsageError for a bad configuration.
        """
        lacking = _Lacking()
        for name in sorted(set(names)):
            if self._is_known(name, lacking) or self._cached_image(name):
                continue
            if (reasons := self._ways.hopeless()) is not None:
                image = Reference.parse(name)
                lacking.add(name, self._ways.report(image, reasons), reasons)
        return self._lacking_error(lacking)

    def absent_images(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Return the images that are not here yet, each with the sources that can be asked."""
        return {
            name: self._ways.places(Reference.parse(name))
            for name in sorted(set(names))
            if not (self._is_known(name, _Lacking()) or self._cached_image(name))
        }

    def image_hint(self, names: Sequence[str]) -> str:
        """Return how to provide images as files: lines for the configuration file."""
        return self._how(names, "images")

    def _image(self, name: str, lacking: _Lacking) -> Path | None:
        """Return the archive of an image, or None if it is lacking."""
        own = self._own(name, "images")
        if own:
            if not self._is_known(name, lacking):
                return None
            path = self._users(_plain(name), own, executable=False)
            return self._for_engines(path, name)
        if part := self._built_image(name):
            return self._file(part, "image.tar")
        image = Reference.parse(name)
        source = self._ways.of(image)
        from testbed.artifacts.images import NoImage

        try:
            return self._pulled(image, source) / "image.tar"
        except ArtifactError as error:
            if not isinstance(error.__cause__, NoImage):
                raise
            lacking.add(name, self._ways.report(image, source.tried), source.tried)
            return None

    def _pulled(self, image: Reference, source: Brought) -> Path:
        """Return the entry of an image; fetch it if it is missing, or old and wanted anew."""
        from testbed.artifacts.images import entry_name

        name = entry_name(image)
        if self._ways.policy != "always" or image.digest:
            found = self._known.get(name) or self.kept(name, source)
            found = found or self._fill(name, source.key(), source, shown=image.short)
            self._known[name] = found
            return found
        return self._fill(
            name,
            source.key(),
            source,
            shown=image.short,
            valid=lambda folder: source.whole(folder) and source.is_current(folder),
        )

    def _for_engines(self, path: Path, name: str) -> Path:
        """Return a user's archive in the format that every engine can load."""
        from testbed.artifacts import archive

        # To look into a large archive that is compressed takes long: once is enough.
        status = archive.stamp(path)
        stamp = f"{path} {status.st_size} {status.st_mtime_ns}"
        fitting = boot_cache.recall(self.folder, FITTING)
        fitting = fitting if isinstance(fitting, list) else []
        if stamp in fitting:
            return path
        try:
            if archive.is_docker(path):
                boot_cache.keep(self.folder, FITTING, [*fitting[-99:], stamp])
                return path
        except ArtifactError:  # the engine says what it does not like about it
            return path
        from testbed.artifacts.images import Converted

        return self.keep(_plain(name), Converted(path, full_name(local_name(name)))) / "image.tar"

    def image_in_cache(self, name: str) -> Path:
        """Return the path of an image's archive in the cache, to which a user's own is copied.

        Raises the errors of :meth:`bring`.
        """
        path = self.image(name)
        if path.is_relative_to(self.folder):
            return path
        from testbed.artifacts.images import Converted

        return self.keep(_plain(name), Converted(path, full_name(local_name(name)))) / "image.tar"

    def _is_known(self, name: str, lacking: _Lacking) -> bool:
        """Tell whether an image is the user's or built here; a user's file must exist."""
        own = self._own(name, "images")
        if isinstance(own, Local) and settings.look(own.path, own.given_by) is None:
            lacking.files.append(f"{own.given_by}: the file {own.path} does not exist")
        return own is not None or self._built_image(name) is not None

    def _built_image(self, name: str) -> str | None:
        """Return the part with an image; a part never has the digest of a registry."""
        return None if "@" in name else self._known_images().get(full_name(name))

    def _cached_image(self, name: str) -> Path | None:
        """Return the entry of an image that was fetched before."""
        from testbed.artifacts.images import entry_name

        image = Reference.parse(name)
        return self.kept(entry_name(image), self._ways.of(image))

    @functools.cached_property
    def _ways(self) -> Ways:
        from dataclasses import replace

        from testbed.artifacts.images import Ways

        given = self._read().pull
        pull = replace(given, sources=(*self._sources, *given.sources))
        policy = self._policy or given.policy or "missing"
        return Ways(pull, policy, self._runner, self._cancel)

    def _lacking_error(self, lacking: _Lacking) -> ArtifactError | None:
        said = list(lacking.files)
        names = sorted(lacking.reasons)
        if names:
            is_one = len(names) == 1
            said.insert(
                0,
                f"image{'' if is_one else 's'} {', '.join(names)} {'is' if is_one else 'are'} "
                "not available",
            )
            alike: dict[tuple[str, ...], list[str]] = {}
            for name in names:
                alike.setdefault(tuple(lacking.reasons[name]), []).append(name)
            for reasons, of_these in alike.items():
                said += [f"    {', '.join(of_these)}:", *(f"      {one}" for one in reasons)]
        hints = list(dict.fromkeys(hint for name in names for hint in lacking.hints[name]))
        hints.append(self.image_hint(names) if names else "correct the path, or write the file")
        return ArtifactError("\n".join(said), hint="; or ".join(hints)) if said else None

    def _known_images(self) -> dict[str, str]:
        """Return the part of each image of the inventory, by the image's full name."""
        return {full_name(name): part for name, part in self._inventory.images.items()}

    def file(self, part: str, place: str) -> Path:
        """Return the path of another file of a part; ``place`` is its path in the part."""
        return self._file(part, place)

    def path_dirs(self, *parts: str) -> list[Path]:
        """Return folders for PATH with all programs of some parts, and no others.

        If several parts contain a program, the first is used.
        """
        brought: dict[str, str] = {}
        for part in parts:
            programs = self._brought_by(part)
            if not programs:
                raise ArtifactError(f"no part {part!r} contains programs")
            brought = dict.fromkeys(programs, part) | brought
        owned = [name for name in brought if self._own(name, "artifacts")]
        if not owned and len(parts) == 1 and not is_place(parts[0]):
            return [self._folder(parts[0]) / "bin"]
        # PATH is searched by name, so the other files in the user's folder must not be on it.
        chosen = {name: self.binary(name) for name in owned}
        for name, part in brought.items():
            if name not in chosen and (path := self._file(part, f"bin/{name}")).exists():
                chosen[name] = path
        from testbed.artifacts.links import Links

        name = OWN if is_place(parts[0]) else parts[0]
        return [self._make(f"{name}-path", Links(chosen)) / "bin"]

    def versions(self) -> dict[str, str]:
        """Return the version of each cached or pinned artifact; for a user's file, its path."""
        pulled = (record for record in self._cache.records() if record.origin == "pulled")
        entries = [*self._current(), *(_cached(record, "cached") for record in pulled)]
        return {entry.name: entry.described for entry in entries if entry.version}

    def versions_of(
        self, programs: Iterable[str], *parts: str, images: Iterable[str] = ()
    ) -> dict[str, str]:
        """Return the versions of the parts with these programs and images, by part.

        ``parts`` are as in :meth:`binary`.  The user's own files are listed by their own names.
        Parts of unknown version are left out.
        """
        names = [
            *(p if self.is_users(p) else self._part_of(p, parts) for p in programs),
            *(
                i if self.is_users_image(i) else self._built_image(i) or Reference.parse(i).short
                for i in images
            ),
        ]
        found = {name: self.version(name) for name in names if name}
        return {name: version for name, version in found.items() if version}

    def version(self, part: str) -> str:
        """Return the version of a part, as in :meth:`versions`; empty if unknown."""
        if part not in self._versions:
            self._versions[part] = self._version(part)
        return self._versions[part]

    def _version(self, part: str) -> str:
        if is_place(part):
            return ""  # its user runs the program
        source, users = self._inventory.parts.get(part), self._own_sources()
        if source is None or {part, *source.brings()} & users.keys():
            return self.versions().get(part, "")
        # Every `up` asks for a few of them, and all records take longer than an engine's start.
        used = self._used(part, source)
        record = self._cache.record(part, used.key())
        if record is None:
            return source.version() or ""
        return _cached(record, "cached", published=source.published() is not None).described

    def packages(self, *parts: str) -> dict[str, str]:
        """Return the packages of parts, name to version; the version is empty if unknown."""
        found: dict[str, str] = {}
        for part in parts:
            names = getattr(self._inventory.parts.get(part), "packages", ())
            if names and isinstance(names, tuple):  # those of a Go module are not a distribution's
                found |= dict.fromkeys(names, "") | {names[0]: self.version(part)}
        return found

    def keep(self, name: str, source: Source) -> Path:
        """Return the folder of an artifact with a source of the caller's; build it if missing."""
        found = self.kept(name, source)  # not by name alone: several may have it
        return found or self._fill(name, source.key(), source)

    def kept(self, name: str, source: Source) -> Path | None:
        """Return the folder of such an artifact if it is in the cache, else None."""
        found = self._cache.find(name, source.key())
        return found if found and source.whole(found) else None

    def push(self, archive: Path, name: str) -> str:
        """Push an archive of ``docker load`` to a registry; return its name with its digest.

        ``name`` has the registry and a tag.  Registries' settings and credentials are those for
        pulls.  Raises ArtifactError.
        """
        from testbed.artifacts.skopeo import Skopeo

        given, image = self._read().pull, Reference.parse(name)
        skopeo = Skopeo(self._runner, self._cancel, given.registries, given.authfile)
        try:
            digest = skopeo.push(
                archive, image, lambda seconds: self._progress(name, f"push, {seconds:.0f} s")
            )
        except ArtifactError as error:
            raise ArtifactError(
                f"{name} was not pushed: {error.message}", hint=error.hint
            ) from error
        self._progress(name, "pushed", ended=True)
        return f"{name}@{digest}"

    def list(self) -> Sequence[Entry]:
        """Return all artifacts: of the inventory, of the user, and in the cache."""
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
        """Build or download an artifact: a part, a program, an image, or a user's artifact."""
        if name in self._listed.parts and not self._own(name, "artifacts"):
            self._make(name, self._listed.parts[name])
        elif full_name(name) in self._known_images() or name in self._read().images:
            self.image(name)
        elif self._own(name, "artifacts") and name not in self._inventory.programs:
            self.users_file(name)
        elif self.is_reference(name):
            self.image(name)
        else:
            self.binary(name)

    @staticmethod
    def is_reference(name: str) -> bool:
        """Tell whether a name is one of an image in a registry, with its tag, digest or path."""
        return bool(set(":/@") & set(name) and re.fullmatch(IMAGE, name))

    def remove(self, name: str | None = None, key: str | None = None) -> int:
        """Remove an artifact from the cache, or all if ``name`` is None; return the bytes freed.

        With ``key``, only the entry with this key is removed.  A program's name stands
        for its part.  Entries built from it are removed too.  A running lab keeps the
        files that it has open, but cannot start a removed program again.  The user's
        own files are not touched.
        """
        from testbed.artifacts.images import entry_name

        wanted = name and self._inventory.programs.get(name, _plain(name))
        image = name and entry_name(Reference.parse(name))
        records = self._cache.records()
        doomed = {
            record.key
            for record in records
            if (wanted is None or record.name in {wanted, f"{wanted}-path", image})
            and key in {None, record.key}
        }
        freed = self._remove(records, doomed)
        if wanted is None:
            with self._cache.writing():
                remove_tree(self._cache.shared)
        return freed

    def prune(self) -> int:
        """Remove the entries that are no longer used (``old``); return the bytes freed.

        A lab that an earlier version of testbed created may use them; see :meth:`remove`.
        """
        old = {entry.key for entry in self.list() if entry.state == "old"}
        return self._remove(self._cache.records(), old)

    def _remove(self, records: Iterable[Record], doomed: AbstractSet[str]) -> int:
        """Remove the entries with these keys, and those built from them."""
        from testbed.artifacts.images import prune

        gone = [record for record in records if record.key in doomed or record.of in doomed]
        freed = sum(record.size for record in gone)
        with self._cache.writing():
            for record in gone:
                self._cache.remove(record, cancel=self._cancel)
            if any(record.origin == "pulled" for record in gone):
                left = [one.path for one in self._cache.records() if one.origin == "pulled"]
                freed += prune(self._cache.shared, left)
        self._known.clear()
        self._brought.clear()
        return freed

    def interrupt(self) -> None:
        """Cancel all steps in progress, in all threads; called when the program exits."""
        self._cancel.set()

    @functools.cached_property
    def _inventory(self) -> Inventory:
        from testbed.artifacts.inventory import INVENTORY

        return self._given or INVENTORY

    @functools.cached_property
    def _listed(self) -> Inventory:
        """The inventory with the packages of roles; it loads the modules of all roles."""
        from testbed.artifacts import package_tree

        return self._given or self._inventory.extended(package_tree.of_roles())

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
        """Return the part of a program: the first of ``parts`` with it, if any are given."""
        bringing = (part for part in parts if name in self._brought_by(part))
        return next(bringing, None) if parts else self._inventory.programs.get(name)

    def _brought_by(self, part: str) -> Collection[str]:
        """Return the names of the programs of a part.  Raises ArtifactError for a lost folder."""
        if not is_place(part):
            return self._inventory.brought_by(part)
        place = Path(part)
        self._places[place.resolve()] = None
        try:
            return sorted(one.name for one in place.iterdir() if os.access(one, os.X_OK))
        except OSError as error:
            raise ArtifactError(
                f"cannot read the folder of programs {part}: {error.strerror}",
                hint="put it back, or name another one in the topology file",
            ) from error

    def _how(self, names: Sequence[str], section: str) -> str:
        """Return a hint for adding artifacts or images: lines for the configuration file."""
        path = self._config_path or settings.default_path()
        lines = settings.entries(section, names, ".tar" if section == "images" else "")
        what = "archives of `docker save`" if section == "images" else "your own files"
        words = f"to use {what}, add to {path}, with their paths:"
        return "\n     ".join([words, *lines])

    def _users(self, name: str, own: Local | Remote, *, executable: bool) -> Path:
        if isinstance(own, Local):
            status = settings.look(own.path, own.given_by)
            if status is None or (executable and not stat.S_ISREG(status.st_mode)):
                raise UsageError(f"the file {own.path} does not exist", where=own.given_by)
            if executable and not os.access(own.path, os.X_OK):
                raise UsageError(
                    f"{own.path} is not executable", where=own.given_by, hint=f"chmod +x {own.path}"
                )
            return own.path
        source = _download(own, name, executable=executable)
        return self._make(name, source) / source.place

    def _folder(self, part: str) -> Path:
        return self._make(part, self._inventory.parts[part])

    def _file(self, part: str, place: str) -> Path:
        if is_place(part):
            return Path(part, Path(place).name)
        return self._folder(part) / place

    def _make(self, name: str, source: Source) -> Path:
        known = self._known.get(name)
        if known and source.whole(known):
            return known
        used = self._in_use(name, source)
        found = used[1] if used else self._fill_first(name, source)
        if self._way and (official := source.published()):
            entries = (self._cache.find(name, one.key()) for one in (official, source))
            self._cache.choose(found, [one for one in entries if one not in {None, found}])
        self._known[name] = found
        return found

    def _alternatives(self, source: Source) -> tuple[Source, ...]:
        """Return the sources of a part that may be used, the preferred one first."""
        official = source.published()
        if official is None or self._way == "source":
            return (source,)
        return (official,) if self._way == "download" else (official, source)

    def _in_use(self, name: str, source: Source) -> tuple[Source, Path] | None:
        """Return the entry of a part that is used, and its source; None if none is complete."""
        found = [
            (one, path)
            for one in self._alternatives(source)
            if (path := self._cache.find(name, one.key())) and one.whole(path)
        ]
        if len(found) < 2:
            return found[0] if found else None
        return max(found, key=lambda pair: self._cache.chosen(pair[1]))

    def _used(self, name: str, source: Source) -> Source:
        """Return the source of a part that is used, or will be tried first."""
        alternatives = self._alternatives(source)
        if len(alternatives) == 1:
            return alternatives[0]
        used = self._in_use(name, source)
        return used[0] if used else alternatives[0]

    def _fill_first(self, name: str, source: Source) -> Path:
        """Fill an entry from the first source that can be reached."""
        from testbed.artifacts.fetch import NotFetched

        *others, last = self._alternatives(source)
        for one in others:
            try:
                return self._fill(name, one.key(), one)
            except ArtifactError as error:
                if not isinstance(error.__cause__, NotFetched):
                    raise
                words = f"{error.__cause__.message}; building it from its source"
                self._progress(name, words, ended=True)
        try:
            return self._fill(name, last.key(), last)
        except ArtifactError as error:
            if last is not source and isinstance(error.__cause__, NotFetched):
                error.hint = "`--from source` builds it instead"
            raise

    def refuse_unpublished(self, names: Iterable[str]) -> None:
        """Raise UsageError if one of these artifacts cannot be downloaded from its makers."""
        parts = self._listed.parts
        known = sorted(name for name, source in parts.items() if source.published())
        for name in names:
            if self._inventory.programs.get(name, name) not in known:
                raise UsageError(
                    f"{name} cannot be downloaded from its makers",
                    where="--from download",
                    hint=f"this machine can download {', '.join(known) or 'none'};"
                    " leave the option out for others",
                )

    def _fill(
        self,
        name: str,
        key: str,
        source: Source,
        valid: Callable[[Path], bool] | None = None,
        shown: str = "",
    ) -> Path:
        shown = shown or name

        def say(message: str) -> None:
            self._progress(shown, message)

        def build(folder: Path) -> str:
            job = Job(folder, self._cache.shared, say, self._runner, self._cancel, self._folder)
            owner.make(job.shared)
            try:
                version = source.fill(job)
            finally:
                owner.give_tree(job.shared)
            self._versions.clear()
            self._progress(shown, f"ready, {version}", ended=True)
            return version

        try:
            return self._cache.fill(
                name,
                key,
                source.origin,
                build,
                of=source.of(),
                valid=valid or source.whole,
                say=say,
                cancel=self._cancel,
            )
        except ArtifactError as error:
            raise ArtifactError(f"{shown}: {error.message}", hint=error.hint) from error
        except CommandError as error:
            if full := disk_full(error):
                raise ArtifactError(
                    f"cannot build {shown}: the disk of {self.folder} is full\n    {full}",
                    hint="free space there, or set TESTBED_CACHE to another folder",
                ) from error
            raise ArtifactError(
                f"cannot build {shown}\n{error.message}", hint=error.hint
            ) from error

    def _own_sources(self) -> dict[str, Local | Remote]:
        """Return the user's own artifacts and images, by name."""
        read = self._read()
        return {**read.images, **read.artifacts, **self._overrides}

    def _current(self) -> Iterator[Entry]:
        records = {record.key: record for record in self._cache.records()}
        read, users = self._read(), self._own_sources()
        for name, source in self._listed.parts.items():
            if all(made in users for made in source.brings() or (name,)):
                continue  # not used
            published = source.published() is not None
            yield _entry(name, self._used(name, source), records, published=published)
        for name, own in users.items():
            if isinstance(own, Remote):
                source = _download(own, name, executable=name not in read.images)
                yield _entry(name, source, records)
                continue
            try:
                status = settings.look(own.path, own.given_by)
            except UsageError:  # as good as missing, for this user
                status = None
            size = 0
            if status is not None:
                is_folder = stat.S_ISDIR(status.st_mode)
                size = folder_size(own.path) if is_folder else status.st_size
            path = own.path if status else None
            yield Entry(
                name, f"from {own.path}", "", path, size, "path", "cached" if path else "missing"
            )


def _plain(name: str) -> str:
    """Return the name of an image in the form used for cache folders.

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


def _entry(
    name: str, source: Source, records: Mapping[str, Record], *, published: bool = False
) -> Entry:
    key = source.key()
    if key in records:
        return _cached(records[key], "cached", published=published)
    version = source.version() or ""
    return Entry(name, version, key, None, 0, source.origin, "missing", published=published)


def _cached(record: Record, state: Literal["cached", "old"], *, published: bool = False) -> Entry:
    return Entry(
        _image_of(record) or record.name,
        record.version,
        record.key,
        record.path,
        record.size,
        record.origin,
        state,
        record.of,
        published,
    )


def _image_of(record: Record) -> str:
    """Return the name of a fetched image, or an empty string for another entry."""
    if record.origin != "pulled":
        return ""
    from testbed.artifacts.images import Facts

    facts = Facts.of(record.path)
    return Reference.parse(facts.reference).short if facts else ""
