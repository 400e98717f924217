"""Images that are neither the user's own nor built here: found once, then in the cache.

The sources are asked in this order: those that the user named (an engine of this machine, an
archive, a folder of archives), and then the image's registry.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed import owner
from testbed.artifacts import archive
from testbed.artifacts.cache import remove_tree
from testbed.artifacts.config import ENGINES, Pull
from testbed.artifacts.reference import Reference, full_name, local_name
from testbed.artifacts.skopeo import INSTALL, PROGRAM, Remote, Skopeo, unfinished
from testbed.artifacts.source import Job, Origin, Source, disk_full
from testbed.errors import ArtifactError, CommandError, TimeoutExpired
from testbed.process import which

if TYPE_CHECKING:
    from testbed.artifacts.config import Engine, Policy
    from testbed.artifacts.source import Runner

FACTS = "image.json"  # in each entry: its Facts
IMAGE = "image.tar"  # in each entry: an archive of `docker save`
BLOBS = "blobs"  # in the cache's shared folder: layers as registries have them
MIB = 1 << 20
POLL = 0.1  # seconds; how often a layer is looked for that another image brings
SECONDS = 60.0  # time limit of a question to an engine; to save an image may take longer
FORM = 1  # version of what an entry contains
#: Ends of file names of archives in a folder.
ARCHIVES = re.compile(r"\.(tar|tgz|tar\.[a-z0-9]+)$")


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about an image in the cache; ``layers`` are digests of shared blobs."""

    reference: str
    source: str  #: where it came from, in the words of :attr:`Way.name`
    identity: str  #: the registry's digest, an engine's ID, or an archive's path with its stamp
    layers: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Facts | None:
        """Return the facts of an entry, or None if it is none, or not complete."""
        try:
            data = json.loads((folder / FACTS).read_bytes())
            made = cls(data["reference"], data["source"], data["identity"], tuple(data["layers"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return made if (folder / IMAGE).is_file() else None

    def write(self, folder: Path) -> None:
        data = {
            "reference": self.reference,
            "source": self.source,
            "identity": self.identity,
            "layers": list(self.layers),
        }
        (folder / FACTS).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")

    @property
    def version(self) -> str:
        """A short form of the identity."""
        digest = self.identity.partition("sha256:")[2]
        return f"sha256.{(digest or hashlib.sha256(self.identity.encode()).hexdigest())[:12]}"


@dataclass(frozen=True, slots=True)
class Found:
    """An image in a source; ``write`` writes it to a path, and ``layers`` as in Facts."""

    identity: str
    write: Callable[[Job, Path], None]
    layers: tuple[str, ...] = ()


class NoImage(ArtifactError):
    """No source has an image."""


class Way(ABC):
    """A source of images."""

    name: str  #: in messages

    @abstractmethod
    def find(self, image: Reference) -> Found:
        """Look for an image, without fetching it.

        Raises ArtifactError, whose message says why there is none, and Interrupted.
        """

    def hopeless(self) -> ArtifactError | None:
        """Return why this source has no image at all, if that is known without asking it."""
        return None


class OfEngine(Way):
    """A container engine of this machine.  It is only asked, and nothing in it is changed."""

    def __init__(self, engine: Engine, runner: Runner, cancel: threading.Event) -> None:
        self.name = f"this machine's {engine}"
        self._engine = engine
        self._runner = runner
        self._cancel = cancel

    def find(self, image: Reference) -> Found:
        if which(self._engine) is None:
            raise ArtifactError(f"{self._engine} is not installed")
        # Podman's own images have names without a registry of this world.
        for name in dict.fromkeys((image.pulled, image.short)):
            argv = [self._engine, "image", "inspect", "--format", "{{.Id}}", name]
            try:
                env = owner.for_tools(os.environ)
                answer = self._runner(argv, env=env, timeout=SECONDS, cancel=self._cancel)
            except TimeoutExpired as error:
                raise ArtifactError(f"no answer in {SECONDS:g} s") from error
            except CommandError as error:
                words = error.stderr.strip() or error.message
                continue
            said = answer.stdout.strip()
            # Podman leaves out the algorithm.
            identity = said if ":" in said else f"sha256:{said}"
            return Found(identity, partial(self._save, name, image))
        raise ArtifactError(words.splitlines()[-1])

    def _save(self, name: str, image: Reference, job: Job, target: Path) -> None:
        job.say(f"save from {self.name}")
        saved = job.into / "saved.tar"
        job.run([self._engine, "save", "-o", saved, name], tick=f"save from {self.name}")
        for wrong in filter(None, map(_misfit, archive.read(saved))):
            raise wrong
        archive.convert(saved, target, _local(image))
        saved.unlink()


class OfPath(Way):
    """An archive of images, a folder with one, or a folder of such archives."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._path = path

    def find(self, image: Reference) -> Found:
        try:
            return self._search(image)
        except ArtifactError:  # an OSError, too
            raise
        except OSError as error:
            raise ArtifactError(f"cannot be read: {error.strerror or error}") from error

    def _search(self, image: Reference) -> Found:
        wanted = image.digest or full_name(image.pulled)
        seen: list[str] = []
        damaged: list[str] = []
        other: ArtifactError | None = None  # of another processor
        for path in self._archives():
            try:
                for one in archive.read(path):
                    if wanted in {*one.names, one.digest, one.index}:
                        if wrong := _misfit(one):
                            other = wrong
                            continue
                        status = archive.stamp(path)
                        identity = f"{path} {status.st_size} {status.st_mtime_ns}"
                        write = partial(self._write, path, image, one.digest or wanted)
                        return Found(identity, write)
                    seen += one.names
            except ArtifactError:
                if path == self._path:
                    raise
                damaged.append(path.name)
        if other:
            raise other
        has = ", ".join(sorted(seen)) or "no names of images"
        others = f"; {', '.join(damaged)}: no image archive" if damaged else ""
        raise ArtifactError(f"not in it; it has {has}{others}")

    def _archives(self) -> Iterator[Path]:
        if not self._path.is_dir() or _is_layout(self._path):
            yield self._path
            return
        for path in sorted(self._path.iterdir()):
            if (path.is_file() and ARCHIVES.search(path.name)) or _is_layout(path):
                yield path

    def _write(self, path: Path, image: Reference, wanted: str, job: Job, target: Path) -> None:
        job.say(f"copy from {path}")
        archive.convert(path, target, _local(image), wanted)


class OfRegistry(Way):
    """The registry in an image's name, or a mirror of it."""

    def __init__(self, skopeo: Skopeo) -> None:
        self.name = "its registry"
        self._skopeo = skopeo
        self._answered: set[str] = set()  # registries that can be reached
        self._silent: dict[str, ArtifactError] = {}  # those that cannot
        self._lock = threading.Lock()
        self._first: dict[str, threading.Lock] = {}  # held by the first question to a registry
        self._fetching: set[str] = set()  # digests of layers that are being fetched
        self._ended = threading.Condition()

    def hopeless(self) -> ArtifactError | None:
        if which(PROGRAM) is None:
            return ArtifactError(f"{PROGRAM} is not installed", hint=INSTALL)
        return None

    def find(self, image: Reference) -> Found:
        found = self._ask(image)
        return Found(found.digest, partial(self._write, image, found), found.layers)

    def _ask(self, image: Reference) -> Remote:
        registry = image.registry
        if registry in self._answered:
            return self._skopeo.find(image)
        with self._lock:
            first = self._first.setdefault(registry, threading.Lock())
        with first:  # a second time-out would tell nothing new
            if error := self._silent.get(registry):
                raise error
            try:
                found = self._skopeo.find(image)
            except ArtifactError as error:
                if error.message.startswith("cannot be reached"):
                    self._silent[registry] = error
                else:
                    self._answered.add(registry)
                raise
            self._answered.add(registry)
            return found

    @contextlib.contextmanager
    def _claim(self, missing: Mapping[str, Path]) -> Iterator[None]:
        """Wait for layers that another image brings, and then claim those that are missing still.

        ``missing`` has the place of each layer. skopeo fetches an image as a whole, so images with
        a common layer would fetch it twice.
        """
        with self._ended:
            while any(one in self._fetching and not path.exists() for one, path in missing.items()):
                self._ended.wait(POLL)  # the other image may have other layers to fetch
            mine = missing.keys() - self._fetching
            self._fetching |= mine
        try:
            yield
        finally:
            with self._ended:
                self._fetching -= mine
                self._ended.notify_all()

    def _write(self, image: Reference, found: Remote, job: Job, target: Path) -> None:
        config = self._skopeo.config(image, found)
        owner.make(job.shared / BLOBS / "sha256")
        with _locked(job.shared, fcntl.LOCK_SH):
            self._fetch(image, found, config, job, target)

    def _fetch(
        self,
        image: Reference,
        found: Remote,
        config: bytes,
        job: Job,
        target: Path,
    ) -> None:
        blobs = job.shared / BLOBS
        places = {digest: _blob(blobs, digest) for digest in found.layers}
        missing = {one: path for one, path in places.items() if not _is_whole(path, one)}
        with self._claim(missing):
            kept = [path for path in places.values() if path.exists()]
            self._fetch_layers(image, found, job, places, kept)
        job.say("write the image")
        layers = [archive.opener(places[digest]) for digest in found.layers]
        with archive.damaged("the registry's image"):
            archive.write(target, [([_local(image)], config, layers)])

    def _fetch_layers(
        self,
        image: Reference,
        found: Remote,
        job: Job,
        places: Mapping[str, Path],
        kept: Sequence[Path],
    ) -> None:
        """Fetch the layers of an image but the ``kept`` ones to their places."""
        blobs, scratch = job.shared / BLOBS, job.into / "scratch"
        here = sum(path.stat().st_size for path in kept)
        many = f"{len(places)} layer{'' if len(places) == 1 else 's'}"
        total = f"{found.size / MIB:.1f} MiB"
        of_these = f", {len(kept)} of them here" if kept else ""
        job.say(f"pull {many}, {total}{of_these}")

        def tell(_: float) -> None:
            done = sum(path.stat().st_size for path in places.values() if path.exists())
            done += unfinished([scratch])
            job.say(f"pull, {max(done, here) / MIB:.1f} of {total}")

        self._skopeo.fetch(image, found, blobs, scratch, tell)
        remove_tree(scratch)


@dataclass(frozen=True)
class Brought(Source):
    """An image from the first of some ways that has it."""

    image: Reference
    ways: Sequence[Way] = field(compare=False)
    #: Appended to: the ways that were tried, each with the reason why it had no image.
    tried: list[tuple[Way, ArtifactError]] = field(default_factory=list, compare=False)
    origin: ClassVar[Origin] = "pulled"

    def recipe(self) -> Mapping[str, object]:
        return {"image": self.image.pulled, "for": archive.processor(), "form": FORM}

    def whole(self, folder: Path) -> bool:
        return (folder / IMAGE).exists() and (folder / FACTS).exists()

    def fill(self, job: Job) -> str:
        for way, found in self._finds():
            try:
                found.write(job, job.into / IMAGE)
            except CommandError as error:
                if disk_full(error):
                    raise
                self.tried.append((way, ArtifactError(error.stderr.strip() or error.message)))
            except ArtifactError as error:
                self.tried.append((way, error))
            else:
                facts = Facts(self.image.pulled, way.name, found.identity, found.layers)
                facts.write(job.into)
                return facts.version
            for path in job.into.iterdir():
                _remove(path)
        raise NoImage(f"{self.image.short} is not available")

    def is_current(self, folder: Path) -> bool:
        """Tell whether an entry has what the sources have now; they are asked.

        Raises NoImage.
        """
        facts = Facts.of(folder)
        for way, found in self._finds():
            return bool(facts and (facts.source, facts.identity) == (way.name, found.identity))
        raise NoImage(f"{self.image.short} is not available")

    def _finds(self) -> Iterator[tuple[Way, Found]]:
        self.tried.clear()
        for way in self.ways:
            try:
                found = way.find(self.image)
            except ArtifactError as error:
                self.tried.append((way, error))
            else:
                yield way, found


@dataclass(frozen=True)
class Converted(Source):
    """A user's archive in the format that every engine can load."""

    path: Path
    name: str  #: the image's full name
    origin: ClassVar[Origin] = "path"

    def recipe(self) -> Mapping[str, object]:
        status = archive.stamp(self.path)
        return {
            "path": str(self.path),
            "size": status.st_size,
            "changed": status.st_mtime_ns,
            "name": self.name,
            "form": FORM,
        }

    def whole(self, folder: Path) -> bool:
        return (folder / IMAGE).exists()

    def fill(self, job: Job) -> str:
        job.say(f"copy from {self.path}")
        archive.convert(self.path, job.into / IMAGE, self.name)
        return f"of-{self.path.name}"


class Ways:
    """The sources of images with a user's settings."""

    def __init__(self, pull: Pull, policy: Policy, runner: Runner, cancel: threading.Event) -> None:
        self.policy = policy
        self._ways: list[Way] = []
        for one in pull.sources:
            self._ways.append(
                OfPath(one) if isinstance(one, Path) else OfEngine(one, runner, cancel)
            )
        if policy != "never":
            self._ways.append(OfRegistry(Skopeo(runner, cancel, pull.registries, pull.authfile)))
        self._unasked = [engine for engine in ENGINES if engine not in pull.sources]

    def of(self, image: Reference) -> Brought:
        """Return the source of an image."""
        return Brought(image, self._ways)

    def places(self, image: Reference) -> list[str]:
        """Return the sources that are asked for an image, in words."""
        return [_words(way, image) for way in self._ways if way.hopeless() is None]

    def hopeless(self) -> list[tuple[Way, ArtifactError]] | None:
        """Return the reasons if no source can have any image; nothing is asked."""
        reasons = [(way, way.hopeless()) for way in self._ways]
        known = [(way, why) for way, why in reasons if why is not None]
        return known if len(known) == len(reasons) else None

    def report(self, image: Reference, tried: Sequence[tuple[Way, ArtifactError]]) -> list[str]:
        """Return what was tried for an image, a line for each source."""
        lines = ["not in the configuration, not in the cache"]
        if self._unasked:
            named = " and ".join(self._unasked)
            lines.append(f"this machine's {named}: not asked (--images-from {self._unasked[0]})")
        lines += [f"{_words(way, image)}: {why.message}" for way, why in tried]
        if self.policy == "never":
            lines.append(f"{image.registry}: not asked (--pull never)")
        return lines


def _words(way: Way, image: Reference) -> str:
    return f"registry {image.registry}" if isinstance(way, OfRegistry) else way.name


def entry_name(image: Reference) -> str:
    """Return the name of an image's entry in the cache.

    >>> entry_name(Reference.parse("redis:7"))
    'image-redis-7-a0ed'
    """
    plain = re.sub("[^a-z0-9._-]+", "-", image.short.lower())
    return f"image-{plain[:80]}-{hashlib.sha256(image.pulled.encode()).hexdigest()[:4]}"


def prune(shared: Path, folders: Sequence[Path]) -> int:
    """Remove the shared layers of images that are not in these entries; return their bytes.

    Nothing is removed while an image is being pulled.
    """
    kept = {digest for folder in folders if (facts := Facts.of(folder)) for digest in facts.layers}
    freed = 0
    if not (shared / BLOBS).is_dir():
        return freed
    with contextlib.suppress(BlockingIOError), _locked(shared, fcntl.LOCK_EX | fcntl.LOCK_NB):
        for path in (shared / BLOBS / "sha256").iterdir():
            if f"sha256:{path.name}" not in kept:
                freed += path.stat().st_size
                path.unlink()
    return freed


@contextlib.contextmanager
def _locked(shared: Path, how: int) -> Iterator[None]:
    """Hold the lock of the shared layers, by those who add some or by the one who removes some."""
    with os.fdopen(owner.create(shared / f".lock-{BLOBS}"), "r+b") as file:
        fcntl.flock(file, how)
        yield


def _local(image: Reference) -> str:
    return full_name(local_name(image.pulled))


def _misfit(found: archive.Archived) -> ArtifactError | None:
    """Return the error for an image of another processor, else None."""
    return archive.misfit("linux", found.processor) if found.processor else None


def _is_layout(path: Path) -> bool:
    return any((path / name).is_file() for name in archive.INDEXES)


def _blob(blobs: Path, digest: str) -> Path:
    if not re.fullmatch("sha256:[0-9a-f]{64}", digest):
        raise ArtifactError(f"{digest!r} is no sha256 digest of a layer")
    return blobs / digest.replace(":", "/")


def _is_whole(path: Path, digest: str) -> bool:
    """Tell whether a layer is here; a damaged one is removed, so that it is fetched again."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return False
    if f"sha256:{found}" == digest:
        return True
    path.unlink(missing_ok=True)
    return False


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink()
