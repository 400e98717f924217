"""A catalogue: documents with claims, and all that belongs to them.

:func:`testbed.claims.load.load` reads one from a folder, :func:`combine` puts several together,
:mod:`testbed.claims.choose` decides which ones a command uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.errors import CatalogueError, Problem, UsageError

if TYPE_CHECKING:
    from testbed.claims.labs import Wanted
    from testbed.claims.model import Claim, Document, Sabotage, Translation


@dataclass(frozen=True, slots=True)
class Source:
    """Origin of a catalogue.

    ``title`` is in ``language``, the one in which its claims are written; ``titles`` are
    translations by language.
    """

    name: str
    folder: Path
    title: str = ""
    language: str = "en"
    titles: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "folder": str(self.folder),
            "title": self.title,
            "language": self.language,
            "titles": dict(self.titles),
        }


@dataclass(frozen=True, slots=True)
class Place:
    """A position in a file; ``name`` is the function there, if it is a test."""

    file: Path
    line: int
    name: str = ""

    def __str__(self) -> str:
        return f"{shown(self.file)}:{self.line}"


@dataclass(frozen=True)
class Catalogue:
    """Documents, claims and what belongs to them, of one folder or of several.

    The order of all is that of the folders and files.  ``places`` has the position of each claim
    by id, ``translations`` the texts by language and id, ``labs`` what ``verify --all`` brings up.
    A catalogue without folders, ``Catalogue()``, is for runs without claims.
    """

    sources: tuple[Source, ...] = ()
    documents: Mapping[str, Document] = field(default_factory=dict)
    claims: Mapping[str, Claim] = field(default_factory=dict)
    translations: Mapping[str, Mapping[str, Translation]] = field(default_factory=dict)
    sabotages: tuple[Sabotage, ...] = ()
    labs: tuple[Wanted, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(source.folder for source in self.sources)

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages of claims and of translations, sorted."""
        own = {document.claims_in for document in self.documents.values()}
        titles = {lang for document in self.documents.values() for lang in document.titles}
        return tuple(sorted({*own, *titles, *self.translations}))

    @property
    def name(self) -> str:
        """The names of the folders' catalogues."""
        return " and ".join(source.name for source in self.sources)

    def claim(self, name: str) -> Claim:
        """Return a claim by id.  Raises UsageError, with the nearest id, if there is none."""
        if name not in self.claims:
            from testbed.spelling import nearest

            options = "".join(f" --catalogue {shown(folder)}" for folder in self.folders)
            hint = nearest(name, self.claims, f"`testbed claims{options}` lists them")
            raise UsageError(f"no claim {name!r} in catalogue {self.name}", hint=hint)
        return self.claims[name]

    def texts(self, name: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the translations of a claim by language, as plain data."""
        return {
            lang: found[name].to_dict()
            for lang, found in self.translations.items()
            if name in found
        }

    def checked_by(self, name: str) -> Place | None:
        """Return the test that checks a claim; None for a definition."""
        from testbed.claims.marks import marked

        if name not in self.claims or not self.claims[name].is_testable:
            return None
        for word in (name, ""):  # the ID may be written in parts, which takes a look at all files
            for folder in self.folders:
                for mark in marked(folder, word):
                    if mark.claim == name:
                        return mark.place
        return None


def shown(path: Path) -> str:
    """Return the path relative to the working directory where possible."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def combine(catalogues: Sequence[Catalogue]) -> Catalogue:
    """Return several catalogues as one.

    Raises CatalogueError if two of them have a claim or a document of the same id.
    """
    if len(catalogues) == 1:
        return catalogues[0]
    problems = [*_clashes(catalogues)]
    if problems:
        raise CatalogueError(problems)
    languages = sorted({lang for one in catalogues for lang in one.translations})
    return Catalogue(
        sources=tuple(source for one in catalogues for source in one.sources),
        documents={key: value for one in catalogues for key, value in one.documents.items()},
        claims={key: value for one in catalogues for key, value in one.claims.items()},
        translations={
            lang: {k: v for one in catalogues for k, v in one.translations.get(lang, {}).items()}
            for lang in languages
        },
        sabotages=tuple(sabotage for one in catalogues for sabotage in one.sabotages),
        labs=numbered([lab for one in catalogues for lab in one.labs]),
        places={key: value for one in catalogues for key, value in one.places.items()},
    )


def numbered(labs: Sequence[Wanted]) -> tuple[Wanted, ...]:
    """Return labs with different names: a second one of a name gets a number."""
    count: Counter[str] = Counter()
    found = []
    for lab in labs:
        count[lab.name] += 1
        found.append(replace(lab, number=count[lab.name]) if count[lab.name] > 1 else lab)
    return tuple(found)


def _clashes(catalogues: Sequence[Catalogue]) -> Iterator[tuple[str, Problem]]:
    hint = "rename one of them, or choose catalogues with --catalogue"
    documents: dict[str, Source] = {}
    claims: dict[str, Place] = {}
    modules: dict[str, Path] = {}
    for one in catalogues:
        for name in one.documents:
            source = one.sources[0]
            if first := documents.get(name):
                wanted = f"a document ID that catalogue {first.name} does not use"
                seen = f"{name!r}, also in {shown(first.folder)}"
                yield shown(source.folder), Problem(0, 0, wanted, seen, hint)
            documents.setdefault(name, source)
        for path in (path for folder in one.folders for path in sorted(folder.glob("*.py"))):
            if path.name.startswith(("test_", "conftest.", "__init__.")):
                continue
            if same := modules.get(path.stem):
                wanted = "a module of a name that no other catalogue uses"
                yield shown(path), Problem(0, 0, wanted, f"that of {shown(same)}", "rename one")
            modules.setdefault(path.stem, path)
        for name, place in one.places.items():
            if other := claims.get(name):
                wanted = "a claim ID that no other catalogue uses"
                seen = f"{name!r}, also in {other}"
                yield shown(place.file), Problem(place.line, 0, wanted, seen, hint)
            claims.setdefault(name, place)
