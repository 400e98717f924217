"""Programs built from Go modules that are pinned in this package with their checksums."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed import owner, process
from testbed.artifacts.cache import remove_tree
from testbed.artifacts.source import Job, Origin, Runner, Source, system
from testbed.errors import ArtifactError
from testbed.process import which

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from testbed.artifacts.official import Official

MODULES = Path(__file__).parent / "go"
COMPILER = ("gcc", "libc6-dev")  # Debian packages


@dataclass(frozen=True)
class GoModule(Source):
    """Programs, each built from a Go package, with the versions that ``module`` pins.

    ``module`` is a folder of :data:`MODULES` that contains go.mod and go.sum, and optionally
    a main package of ours if upstream's does more than is needed.  ``packages`` maps a program's
    name to its Go package; "." is our main package.  All are of one Go module, whose version is
    the part's version: ``main``, or else the module of the first package.
    """

    module: str
    packages: Mapping[str, str]
    main: str = ""
    tests: Mapping[str, str] = field(default_factory=dict)  #: programs that are tests of packages
    #: Go variables to set to the version at link time, if the build does not set them itself.
    stamp: Sequence[str] = ()
    toolchain: str = "go"  #: part with a Go that is new enough, if the one on PATH is not
    release: str = ""  #: upstream's name of that version, if its tag differs
    tags: Sequence[str] = ()
    language: str = ""
    """Go language version, such as "go1.26", of sources without a go.mod; Go's default is 1.16."""
    cgo: str = ""  #: shell pattern of the architectures for which its parts in C are built, too
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Libraries of the parts in C: pkg-config's name to the Debian package."""
    data: Sequence[str] = ()  #: folders of the module to keep next to the programs
    edits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Edits of the module's files: path to the text to replace and its replacement."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Other files of the module to keep: path in the entry to path in the module."""
    official: Official | None = None  #: the same programs, built by their makers
    origin: ClassVar[Origin] = "go"

    @property
    def _folder(self) -> Path:
        return MODULES / self.module

    @property
    def _flags(self) -> list[str]:
        stamp = "".join(f" -X {name}={self.version()}" for name in self.stamp)
        tags = ["-tags", ",".join(self.tags)] if self.tags else []
        written = f"-gcflags={self._required()[0]}/...=-lang={self.language}"
        language = [written] if self.language else []
        return ["-trimpath", *tags, *language, "-ldflags", f"-s -w{stamp}"]

    @property
    def _cgo(self) -> str:
        return "1" if fnmatchcase(os.uname().machine, self.cgo) else "0"

    def version(self) -> str:
        """Return the module's version in go.mod, prefixed with ``release`` if that differs."""
        version = self._required()[1].removesuffix("+incompatible")
        if self.release and version != f"v{self.release}":
            return f"{self.release}+{version}"
        return self.release or version

    def _required(self) -> tuple[str, str]:
        """Return the path of the packages' module, and its version."""
        text = (self._folder / "go.mod").read_text(encoding="utf-8")
        package = self.main or next(iter(self.packages.values()))
        for path, version in re.findall(r"^(?:require)?\s+(\S+) (v\S+)", text, re.MULTILINE):
            if package == path or package.startswith(path + "/"):
                return str(path), str(version)
        raise ArtifactError(f"{self._folder / 'go.mod'} does not require {package}")

    def whole(self, folder: Path) -> bool:
        return super().whole(folder) and all((folder / place).exists() for place in self.files)

    def brings(self) -> tuple[str, ...]:
        return (*self.packages, *self.tests)

    def published(self) -> Source | None:
        return self.official if self.official and self.official.machine() else None

    def recipe(self) -> Mapping[str, object]:
        sums = {p.name: sha256(p.read_bytes()).hexdigest() for p in self._sources()}
        return {
            "sums": sums,
            "packages": {**self.packages, **self.tests},
            "flags": self._flags,
            "cgo": self._cgo,
            "system": system(),  # with cgo it is linked with the C library
            **({"data": list(self.data)} if self.data else {}),
            **({"edits": dict(self.edits)} if self.edits else {}),
            **({"files": dict(self.files)} if self.files else {}),
        }

    def fill(self, job: Job) -> str:
        source = job.into / "source"  # a copy: ours may be read-only, or inside a git repository
        source.mkdir()
        for path in self._sources():
            shutil.copyfile(path, source / path.name)
        if self._cgo == "1":
            self._check_c(job)
        go = _toolchain(job, self._go_needed(), self.toolchain)
        env = _environment(job, go, self._cgo)
        (job.into / "bin").mkdir()

        def heard(line: str) -> None:
            if line.startswith("go: downloading "):
                job.say(line.removeprefix("go: "))

        job.say("download the Go modules")
        if self.data or self.edits:
            self._take(job, go, source, env)
        # Vetting a test's package takes vetting all that it imports: as long as compiling it.
        build, test = (["build"], self.packages), (["test", "-c", "-vet=off"], self.tests)
        for how, name, package in [(h, *one) for h, some in (build, test) for one in some.items()]:
            job.run(
                [go, *how, *self._flags, "-o", job.into / "bin" / name, package],
                cwd=source,
                env=env,
                on_line=heard,
                tick=f"compile {package}",
            )
        self._keep_files(job, go, source, env)
        remove_tree(source)
        return self.version()

    def _take(self, job: Job, go: str, source: Path, env: Mapping[str, str]) -> None:
        """Keep the requested files of the module; set up a copy to build from if some are edited.

        The module has already been checked against go.sum.
        """
        wanted = "@".join(self._required())
        said = job.run([go, "mod", "download", "-json", wanted], cwd=source, env=env).stdout
        module = Path(json.loads(said)["Dir"])
        for name in self.data:
            _copy(module / name, job.into / name)
        if not self.edits:
            return
        _copy(module, source / "edited")
        for name, (old, new) in self.edits.items():
            path = source / "edited" / name
            text = path.read_text(encoding="utf-8")
            if text.count(old) != 1:
                raise ArtifactError(f"{name} of {wanted} has {old!r} {text.count(old)} times")
            path.write_text(text.replace(old, new), encoding="utf-8")
        job.run([go, "mod", "edit", "-replace", f"{self.main}=./edited"], cwd=source, env=env)

    def _keep_files(self, job: Job, go: str, source: Path, env: Mapping[str, str]) -> None:
        if not self.files:
            return
        argv = [go, "list", "-m", "-f", "{{.Dir}}", self._required()[0]]
        module = Path(job.run(argv, cwd=source, env=env).stdout.strip())
        for place, name in self.files.items():
            shutil.copyfile(module / name, job.into / place)

    def _sources(self) -> list[Path]:
        """Return go.mod, go.sum, and our main package if there is one."""
        return sorted([*self._folder.glob("go.*"), *self._folder.glob("*.go")])

    def _check_c(self, job: Job) -> None:
        """Raise ArtifactError, with the packages to install, if C cannot be compiled."""
        if not which(os.environ.get("CC", "gcc")):
            raise ArtifactError(
                "a C compiler is required to build it, and this machine has none",
                hint=f"apt-get install --no-install-recommends {' '.join(COMPILER)}",
            )
        for library, package in self.libraries.items():
            if not has_library(job.runner, library):
                raise ArtifactError(
                    f"the headers of {library} are required to build it, and pkg-config finds none",
                    hint=f"apt-get install --no-install-recommends pkg-config {package}",
                )

    def _go_needed(self) -> tuple[int, ...]:
        text = (self._folder / "go.mod").read_text(encoding="utf-8")
        found = re.search(r"^go ([\d.]+)$", text, re.MULTILINE)
        return _numbers(found[1]) if found else (1,)


def _copy(tree: Path, target: Path) -> None:
    """Copy a folder of the module cache, which is read-only, and make the copy writable."""
    for path in [tree, *sorted(tree.rglob("*"))]:
        place = target / path.relative_to(tree)
        if path.is_dir():
            place.mkdir()
        else:
            shutil.copyfile(path, place)


def has_library(runner: Runner, library: str) -> bool:
    """Tell whether pkg-config knows how to link with a library."""
    program = which("pkg-config")
    return program is not None and runner([program, "--exists", library], check=False).status == 0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def go_on_path() -> tuple[str, tuple[int, ...]] | None:
    """Return the Go toolchain on PATH, and its version as numbers; None without one."""
    go = which("go")
    if not go:
        return None
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    answer = process.run([go, "version"], env=env, check=False, timeout=20)
    found = re.search(r"\bgo(\d+(?:\.\d+)+)", answer.stdout)
    return (go, _numbers(found[1])) if found else None


def _toolchain(job: Job, needed: tuple[int, ...], part: str) -> str:
    present = go_on_path()
    if present and present[1] >= needed:
        return present[0]
    wanted = ".".join(map(str, needed))
    job.say(f"download Go: PATH has none of version {wanted} or later")
    return str(job.part(part) / "bin" / "go")


def _environment(job: Job, go: str, cgo: str) -> dict[str, str]:
    env = {
        **os.environ,
        "GOTOOLCHAIN": "local",  # never another toolchain than the one that was chosen
        "GOWORK": "off",
        "GO111MODULE": "on",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "CGO_ENABLED": cgo,
    }
    for name in ("GOROOT", "GOOS", "GOARCH", "GOBIN"):  # each would change the build
        env.pop(name, None)
    users = job.run([go, "env", "GOCACHE", "GOMODCACHE"], env=env, check=False)
    folders = users.stdout.split("\n")[:2]
    if users.status or not all(_writable(Path(folder)) for folder in folders):
        own = job.shared / "go"
        env |= {"GOCACHE": str(own / "build"), "GOMODCACHE": str(own / "modules")}
        env["GOPATH"] = str(own)
    return env


def _writable(folder: Path) -> bool:
    if not folder.is_absolute():
        return False
    return os.access(owner.existing(folder), os.W_OK)
