"""The contract of a source: something that can fill a cache folder with an artifact."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from testbed import owner
from testbed.artifacts import release

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Mapping, Sequence

    from testbed.errors import CommandError
    from testbed.process import Completed

#: Messages about a full disk, in the locale C; apt checks the space beforehand.
FULL = ("No space left on device", "You don't have enough free space")

Origin = Literal[
    "debian", "go", "pypi", "path", "url", "cc", "engine", "image", "pulled", "release"
]
#: The origin of programs that can be built here, and are built by their makers as well.
Preference = Literal["download", "source"]


class Runner(Protocol):
    """The part of :func:`testbed.process.run` that sources use; tests pass a fake."""

    def __call__(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
        on_tick: Callable[[float], None] | None = None,
        cancel: threading.Event | None = None,
    ) -> Completed: ...


@dataclass(frozen=True, slots=True)
class Job:
    """The parameters of filling one cache entry, passed to its source."""

    into: Path  #: the folder to fill; empty, on the cache's file system, used by this job only
    shared: Path  #: a permanent folder for data that several jobs share (package lists)
    say: Callable[[str], None]  #: shows the current step to the user
    runner: Runner
    cancel: threading.Event
    part: Callable[[str], Path]  #: return the folder of another part, built first if necessary

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        on_line: Callable[[str], None] | None = None,
        tick: str = "",
    ) -> Completed:
        """Run a command that ends when the job is cancelled; ``tick`` is shown once a second.

        Its own caches are never in a folder of another user.
        """
        return self.runner(
            argv,
            cwd=cwd,
            env=owner.for_tools(os.environ if env is None else env),
            check=check,
            on_line=on_line,
            on_tick=(lambda seconds: self.say(f"{tick}, {seconds:.0f} s")) if tick else None,
            cancel=self.cancel,
        )


class Source(ABC):
    """The source of an artifact: describes it, and fills a folder with it."""

    origin: ClassVar[Origin]

    @abstractmethod
    def recipe(self) -> Mapping[str, object]:
        """Return everything that determines the folder's content, as JSON values.

        It is called often and must be fast.
        """

    @abstractmethod
    def fill(self, job: Job) -> str:
        """Fill ``job.into`` and return the artifact's version.

        Raises ArtifactError, or CommandError if a command fails.
        """

    def brings(self) -> tuple[str, ...]:
        """Return the programs that the folder will always contain, each as ``bin/<name>``."""
        return ()

    def whole(self, folder: Path) -> bool:
        """Tell whether a filled folder is still complete, at the cost of a few stat calls."""
        return all((folder / "bin" / name).exists() for name in self.brings())

    def published(self) -> Source | None:
        """Return the source of the same programs, built by their makers for this machine.

        None if there is none.  It brings the same programs in the same version.
        """
        return None

    def of(self) -> str:
        """Return the key of the entry that this one is built from and removed with, or ""."""
        return ""

    def version(self) -> str | None:
        """Return the version if it is known before anything is fetched, else None."""
        return None

    def key(self) -> str:
        """Return twelve hex digits, a hash of the recipe."""
        import hashlib

        text = json.dumps([self.origin, self.recipe()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def disk_full(error: CommandError) -> str:
    """Return the line of a failed command's output that reports a full disk; empty if none."""
    lines = (line.strip() for line in error.stderr.splitlines())
    return next((line for line in lines if any(words in line for words in FULL)), "")


def system() -> str:
    """Return the distribution's release and the processor, which a dynamic binary depends on."""
    fields = release.facts()
    return f"{fields.get('ID', 'linux')}{fields.get('VERSION_ID', '')}-{os.uname().machine}"
