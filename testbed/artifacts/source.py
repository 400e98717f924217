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

#: How programs say that a disk is full, in the locale C; apt counts beforehand.
FULL = ("No space left on device", "You don't have enough free space")

Origin = Literal["debian", "go", "pypi", "path", "url", "cc", "engine", "image"]


class Runner(Protocol):
    """The shape of :func:`testbed.process.run`, as far as sources use it; tests pass a fake."""

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
    """One filling of one entry, as its source sees it."""

    into: Path  #: the folder to fill; empty, on the cache's file system, and nobody else's
    shared: Path  #: a folder that outlives the job, for what several jobs share (package lists)
    say: Callable[[str], None]  #: tells the user what is being done
    runner: Runner
    cancel: threading.Event
    part: Callable[[str], Path]  #: the finished folder of another part, made first if need be

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
        """Run a command that ends when the job is cancelled; ``tick`` is said once a second.

        What it caches for itself goes to no folder of another user's.
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
    """Says where an artifact comes from, and fills a folder with it."""

    origin: ClassVar[Origin]

    @abstractmethod
    def recipe(self) -> Mapping[str, object]:
        """All that decides what the folder will hold, as JSON can say it; cheap to ask."""

    @abstractmethod
    def fill(self, job: Job) -> str:
        """Fill ``job.into`` and return the artifact's version.

        Raises ArtifactError, or CommandError for a command that failed.
        """

    def brings(self) -> tuple[str, ...]:
        """The programs that the folder will have for certain, each as ``bin/<name>``."""
        return ()

    def whole(self, folder: Path) -> bool:
        """Whether nobody has removed a part of a filled folder since; a stat or a few."""
        return all((folder / "bin" / name).exists() for name in self.brings())

    def of(self) -> str:
        """The key of the entry that this one is made from and goes with; empty where none is."""
        return ""

    def version(self) -> str | None:
        """The version, where it is known before anything is fetched."""
        return None

    def key(self) -> str:
        """Twelve hex digits that change when the recipe does."""
        import hashlib

        text = json.dumps([self.origin, self.recipe()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def disk_full(error: CommandError) -> str:
    """The line in which a command that failed says that a disk is full; empty where none does."""
    lines = (line.strip() for line in error.stderr.splitlines())
    return next((line for line in lines if any(words in line for words in FULL)), "")


def system() -> str:
    """The distribution's release and the processor: what a dynamic binary was made for."""
    fields = release.facts()
    return f"{fields.get('ID', 'linux')}{fields.get('VERSION_ID', '')}-{os.uname().machine}"
