"""Programs built from a pinned Go module of our own, whose sums stand beside it."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed import process
from testbed.artifacts.cache import remove_tree
from testbed.artifacts.source import Job, Origin, Source, system
from testbed.errors import ArtifactError
from testbed.process import which

if TYPE_CHECKING:
    from collections.abc import Mapping

MODULES = Path(__file__).parent / "go"
CGO_MACHINES = ("x86_64",)  # flannel's udp backend, the only part in C, is for these


@dataclass(frozen=True)
class GoModule(Source):
    """The program ``name``, built from ``package`` with the versions that ``module`` pins.

    ``module`` is a folder of :data:`MODULES` that holds go.mod and go.sum.
    ``stamp`` names the variable that is to hold the version.
    """

    name: str
    module: str
    package: str
    stamp: str
    origin: ClassVar[Origin] = "go"

    @property
    def _folder(self) -> Path:
        return MODULES / self.module

    @property
    def _flags(self) -> list[str]:
        return ["-trimpath", "-ldflags", f"-s -w -X {self.stamp}={self.version()}"]

    def version(self) -> str:
        """The version of the package's module, as go.mod requires it."""
        text = (self._folder / "go.mod").read_text(encoding="utf-8")
        for path, version in re.findall(r"^\s+(\S+) (v\S+)", text, re.MULTILINE):
            if self.package == path or self.package.startswith(path + "/"):
                return str(version)
        raise ArtifactError(f"{self._folder / 'go.mod'} does not require {self.package}")

    def brings(self) -> tuple[str, ...]:
        return (self.name,)

    def recipe(self) -> Mapping[str, object]:
        sums = {
            name: sha256((self._folder / name).read_bytes()).hexdigest()
            for name in ("go.mod", "go.sum")
        }
        return {
            "sums": sums,
            "package": self.package,
            "flags": self._flags,
            "cgo": _cgo(),
            "system": system(),  # with cgo it is linked with the C library
        }

    def fill(self, job: Job) -> str:
        source = job.into / "source"  # a copy: ours may be read-only, or inside a git repository
        source.mkdir()
        for name in ("go.mod", "go.sum"):
            shutil.copyfile(self._folder / name, source / name)
        go = _toolchain(job, self._go_needed())
        env = _environment(job, go)
        (job.into / "bin").mkdir()

        def heard(line: str) -> None:
            if line.startswith("go: downloading "):
                job.say(line.removeprefix("go: "))

        job.say("fetch the Go modules")
        job.run(
            [go, "build", *self._flags, "-o", job.into / "bin" / self.name, self.package],
            cwd=source,
            env=env,
            on_line=heard,
            tick=f"compile {self.package}",
        )
        remove_tree(source)
        return self.version()

    def _go_needed(self) -> tuple[int, ...]:
        text = (self._folder / "go.mod").read_text(encoding="utf-8")
        found = re.search(r"^go ([\d.]+)$", text, re.MULTILINE)
        return _numbers(found[1]) if found else (1,)


def _cgo() -> str:
    return "1" if os.uname().machine in CGO_MACHINES else "0"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def go_on_path() -> tuple[str, tuple[int, ...]] | None:
    """The Go toolchain that is on PATH, and its version as numbers; None without one."""
    go = which("go")
    if not go:
        return None
    env = {**os.environ, "GOTOOLCHAIN": "local"}
    answer = process.run([go, "version"], env=env, check=False, timeout=20)
    found = re.search(r"\bgo(\d+(?:\.\d+)+)", answer.stdout)
    return (go, _numbers(found[1])) if found else None


def _toolchain(job: Job, needed: tuple[int, ...]) -> str:
    present = go_on_path()
    if present and present[1] >= needed:
        return present[0]
    wanted = ".".join(map(str, needed))
    job.say(f"no Go of {wanted} or later on PATH: fetch one")
    return str(job.part("go") / "go" / "bin" / "go")


def _environment(job: Job, go: str) -> dict[str, str]:
    env = {
        **os.environ,
        "GOTOOLCHAIN": "local",  # never another toolchain than the one that was chosen
        "GOWORK": "off",
        "GO111MODULE": "on",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "CGO_ENABLED": _cgo(),
    }
    for name in ("GOROOT", "GOOS", "GOARCH", "GOBIN"):  # each would bend the build
        env.pop(name, None)
    if env["CGO_ENABLED"] == "1" and not which(env.get("CC", "gcc")):
        raise ArtifactError(
            "a C compiler is needed to build it, and none is on this machine",
            hint="apt-get install --no-install-recommends gcc libc6-dev",
        )
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
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)
