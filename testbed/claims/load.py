"""Read a catalogue from its folder.

The files are ``catalogue.yaml`` (optional: name, title, labs), a file for each document,
``translations/LANGUAGE.yaml``, ``sabotages.yaml``, and the checks, ``test_*.py``.  docs/claims.md
describes them.  Reading runs no check.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from testbed.claims import marks
from testbed.claims.catalogue import Catalogue, Place, Source, numbered, shown
from testbed.claims.labs import Wanted
from testbed.claims.model import (
    ALTERNATIVES,
    ANY_LAB,
    COMPARISON,
    EXPECTED,
    Claim,
    Document,
    Kind,
    Order,
    Otherwise,
    Sabotage,
    Translation,
    fact_names,
    feature_words,
)
from testbed.errors import CatalogueError, TopologyError
from testbed.topology import tree
from testbed.topology.load import Overrides, is_path, names
from testbed.topology.load import beside as topologies_in
from testbed.topology.read import Reader
from testbed.topology.source import MAX_BYTES, from_text, to_text
from testbed.topology.tree import Problems, nearest
from testbed.topology.variant import options

if TYPE_CHECKING:
    from testbed.topology.tree import Tree

CATALOGUE = "catalogue.yaml"
SABOTAGES = "sabotages.yaml"
TRANSLATIONS = "translations"
CLAIMS = "claims"  #: name of a folder that belongs to the topologies beside it

#: An ID is part of addresses in the report, of file names and of command lines.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
#: Anchors that the HTML report has for itself.
ANCHORS = re.compile(
    r"(checks|claims|labs|measured|otherwise|summary|unexpected)(-title)?"
    r"|clear|nothing|shown|theme|title|unfold|(chart|document|i|lab|picture|walk)-.*"
)
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")  # RFC 5646, section 2.1
LINK = re.compile(r"https?://\S+")
PLACE = re.compile(r"[^\s/]+(/[^\s/]+)?")

OF_CATALOGUE = ("name", "title", "language", "titles", "labs")
OF_DOCUMENT = ("title", "language", "titles", "link", "claims")
REQUIRED_OF_DOCUMENT = ("title", "claims")
OF_CLAIM = tuple(one.name for one in fields(Claim) if one.name != "document")
REQUIRED_OF_CLAIM = ("id", "claim")
OF_OTHERWISE = ("when", "expect", "why")
OF_TRANSLATION = ("claim", "why", "otherwise")
OF_SABOTAGE = ("name", "what", "claims", "faults", "do", "undo")
REQUIRED_OF_SABOTAGE = ("name", "what", "claims")
OF_LAB = ("topology", "documents", "measures", "only", "provider")

KINDS: tuple[str, ...] = get_args(Kind)


def load(folder: Path) -> Catalogue:
    """Read the catalogue in a folder.

    Raises CatalogueError with every problem of its files.
    """
    reader = _Reader(Path(folder).resolve())
    found = Catalogue()
    with contextlib.suppress(TopologyError):  # more problems than anybody reads
        found = reader.catalogue()
    problems = [(file, one) for file, of in reader.files.items() for one in of.problems.found()]
    if problems:
        raise CatalogueError(problems)
    return found


class _File(Reader):
    """Reads a file of a catalogue, and collects its problems."""

    def __init__(self, file: str) -> None:
        super().__init__(Problems(file))

    def content(self, path: Path) -> Tree | None:
        """Return the content of the file, or None after a problem."""
        try:
            with path.open("rb") as file:
                # One byte more than allowed is enough to detect a file that is too large.
                text = to_text(file.read(MAX_BYTES + 1), self.problems)
            empty = ("content", "write an entry, or remove the file")
            return from_text(text, self.problems, empty=empty, plain=True)
        except TopologyError:
            return None
        except OSError as error:
            seen = (error.strerror or "an error").lower()
            self.problems.add_at(0, 0, "a file that can be read", seen, "check its permissions")
            return None

    def wrong(self, at: Tree, wanted: str, seen: str, hint: str) -> None:
        self.problems.add(at, wanted, seen, hint)

    def fields(
        self, at: Tree | None, known: Collection[str] | None, wanted: str, hint: str
    ) -> dict[str, Tree] | None:
        """Return the values of a mapping by key; ``known`` None accepts any key."""
        found = self.table(at, wanted, hint=hint)
        if found is None:
            return None
        if known is not None:
            self.known_only(found, known, ignored="")
        entries = found.entries.items()
        return {name: entry.value for name, entry in entries if known is None or name in known}

    def words(self, at: Tree | None, key: str) -> str | None:
        """Return a text that is not blank.  YAML reads 003 as a number, so it must be quoted."""
        wanted = f"text for {key!r}"
        value = self.text(at, wanted)
        if at is None or value is None or value.strip():
            return value
        self.wrong(at, wanted, "an empty one", "write it, or remove the key")
        return None

    def texts(self, at: Tree | None, key: str) -> tuple[str, ...] | None:
        if at is None:
            return None
        before = len(self.problems)
        items = self.items(at, f"a list of texts for {key!r}", "write it as [one, two]")
        found = [self.words(item, key) for item in items]
        return None if len(self.problems) > before else tuple(filter(None, found))

    def language(self, at: Tree | None) -> str | None:
        wanted = "a language tag (BCP 47)"
        return self.matching(at, LANGUAGE.pattern, wanted, "such as en, de or zh")

    def titles(self, at: Tree | None) -> dict[str, str]:
        """Return translations of a title by language."""
        found: dict[str, str] = {}
        entries = self.fields(at, None, "titles by language", "write it as {en: TITLE}") or {}
        for lang, value in entries.items():
            if not LANGUAGE.fullmatch(lang):
                self.wrong(value, "a language tag (BCP 47)", repr(lang), "such as en, de or zh")
            elif title := self.words(value, "title"):
                found[lang] = title
        return found


@dataclass
class _Reader:
    """Reads the files of a folder."""

    folder: Path
    files: dict[str, _File] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def file(self, path: Path) -> _File:
        return self.files.setdefault(shown(path), _File(shown(path)))

    def add(self, path: Path, line: int, wanted: str, seen: str, hint: str) -> None:
        self.file(path).problems.add_at(line, 0, wanted, seen, hint)

    # -- the catalogue -----------------------------------------------------------------

    def catalogue(self) -> Catalogue:
        if not self.folder.is_dir():
            seen = "a file" if self.folder.exists() else "no such folder"
            hint = "check the path, or begin one with `testbed claims new DIR`"
            self.add(self.folder, 0, "a folder with a catalogue", seen, hint)
            return Catalogue()
        source, labs = self.head()
        documents: dict[str, Document] = {}
        claims: dict[str, Claim] = {}
        paths = [
            path
            for path in sorted(self.folder.glob("*.yaml"))
            if path.name not in {CATALOGUE, SABOTAGES}
        ]
        for path in paths:
            self.document(path, source, documents, claims)
        if not paths:
            hint = "write one (docs/claims.md), or begin with `testbed claims new DIR`"
            self.add(self.folder, 0, "a document, NAME.yaml", "none", hint)
        # Of a claim with a problem of its own its place is known all the same.
        known = self.places
        self.checks(claims)
        translations = {
            path.stem: self.translation(path, claims)
            for path in sorted((self.folder / TRANSLATIONS).glob("*.yaml"))
        }
        sabotages = self.sabotages(known)
        wanted = (
            numbered([lab for at in labs for lab in self.lab(at, documents, claims)])
            if labs is not None
            else self.beside(documents)
        )
        return Catalogue(
            (source,), documents, claims, translations, sabotages, wanted, dict(self.places)
        )

    def head(self) -> tuple[Source, tuple[Tree, ...] | None]:
        """Return name and title of the catalogue, and its labs; None if it names none."""
        own = self.folder.parent if self.folder.name == CLAIMS else self.folder
        path = self.folder / CATALOGUE
        if not path.exists():
            return Source(own.name, self.folder), None
        file = self.file(path)
        hint = f"known keys: {', '.join(OF_CATALOGUE)}"
        found = file.fields(file.content(path), OF_CATALOGUE, "a mapping", hint) or {}
        labs = found.get("labs")
        return Source(
            file.words(found.get("name"), "name") or own.name,
            self.folder,
            file.words(found.get("title"), "title") or "",
            file.language(found.get("language")) or "en",
            file.titles(found.get("titles")),
        ), file.items(labs, "a list of labs", "write it as [{topology: NAME}]") if labs else None

    def lab(
        self, at: Tree, documents: Mapping[str, Document], claims: Mapping[str, Claim]
    ) -> Iterator[Wanted]:
        """Yield a lab of catalogue.yaml, unless it has a problem."""
        file = self.file(self.folder / CATALOGUE)
        before = len(file.problems)
        of_roles = {name: same[0].type for name, same in options().items()}
        found = file.fields(at, (*OF_LAB, *of_roles), "a lab", "write it as {topology: NAME}")
        if found is None:
            return
        if "topology" not in found:
            file.wrong(at, "'topology'", "none", "a shipped topology by name, or a path")
            return
        topology = self.topology(file, found["topology"])
        of = file.texts(found.get("documents"), "documents")
        for item in of or ():
            if item not in documents:
                hint = nearest(item, documents)
                file.wrong(found["documents"], "a document of this catalogue", repr(item), hint)
        only: list[str] = []
        for item in file.texts(found.get("only"), "only") or ():
            chosen = _expand(item, (*claims, *feature_words()))
            if not chosen:
                hint = nearest(item, feature_words())
                file.wrong(found["only"], "a claim or a feature", repr(item), hint)
            only += chosen
        measures = file.boolean(found.get("measures"))
        varied: dict[str, Any] = {
            key: file.integer(found[key], key, 1, 10**6)
            if kind is int
            else file.words(found[key], key)
            for key, kind in {"provider": str, **of_roles}.items()
            if key in found
        }
        if topology and len(file.problems) == before:
            of = of or tuple(documents)
            yield Wanted(topology, of, Overrides(**varied), measures is not False, tuple(only))

    def topology(self, file: _File, at: Tree) -> str | None:
        word = file.words(at, "topology")
        if word is None or word in names():
            return word
        path = self.folder / word
        if path.is_file():
            return str(path.resolve())
        if is_path(word):
            file.wrong(at, "a topology file", f"{word!r}, which does not exist", "check the path")
        else:
            hint = f"{nearest(word, names())} A path is relative to this file: ../{word}.yaml"
            file.wrong(at, "a shipped topology or a path", repr(word), hint)
        return None

    def beside(self, documents: Mapping[str, Document]) -> tuple[Wanted, ...]:
        """Return the topologies beside a folder of the name ``claims``."""
        if self.folder.name != CLAIMS:
            return ()
        paths = topologies_in(self.folder.parent)
        return numbered([Wanted(str(path), tuple(documents)) for path in paths])

    # -- documents and claims ----------------------------------------------------------

    def document(
        self,
        path: Path,
        source: Source,
        documents: dict[str, Document],
        claims: dict[str, Claim],
    ) -> None:
        """Read a document's file; its name without the ending is the document's ID."""
        if not ID.fullmatch(path.stem):
            hint = "use letters, digits and . _ - in the name of the file"
            self.add(path, 0, "a document ID", repr(path.stem), hint)
        file = self.file(path)
        root = file.content(path)
        hint = "begin with `title: TITLE` and `claims:`; docs/claims.md shows one"
        found = file.fields(root, OF_DOCUMENT, "a document", hint)
        if root is None or found is None:
            return
        for key in REQUIRED_OF_DOCUMENT:
            if key not in found:
                file.wrong(root, f"{key!r}", "none", f"known keys: {', '.join(OF_DOCUMENT)}")
        hint = "begin it with https:// or http://"
        link = file.matching(found.get("link"), LINK.pattern, "an address for 'link'", hint)
        documents[path.stem] = Document(
            path.stem,
            file.words(found.get("title"), "title") or "",
            file.language(found.get("language")) or source.language,
            source.language,
            file.titles(found.get("titles")),
            link or "",
        )
        hint = "begin each with `- id: NAME`"
        for at in file.items(found.get("claims"), "a list of claims", hint):
            with file.problems.within(_id(at)):
                if claim := self.claim(file, path, at):
                    claims[claim.id] = claim

    def claim(self, file: _File, path: Path, at: Tree) -> Claim | None:
        before = len(file.problems)
        found = file.fields(at, OF_CLAIM, "a claim", "begin it with `- id: NAME`")
        if found is None:
            return None
        hint = "use letters, digits and . _ -"
        name = file.matching(found.get("id"), ID.pattern, "a claim ID", hint)
        for key in REQUIRED_OF_CLAIM:
            if key not in found:
                file.wrong(at, f"{key!r}", "none", "docs/claims.md has a table of the keys")
        if name and ANCHORS.fullmatch(name):
            wanted = "a claim ID that is no anchor of the report"
            file.wrong(at, wanted, repr(name), "put a topic before it")
        if name and name in self.places:
            seen = f"{name!r} again, first at {self.places[name]}"
            file.wrong(at, "each claim ID once", seen, "rename one of them")
        elif name:
            self.places[name] = Place(path, at.line)
        texts = {key: file.words(found.get(key), key) for key in ("place", "claim", "check", "why")}
        expect = file.choice(found.get("expect"), "a verdict", EXPECTED) or "confirmed"
        usual = "definition" if expect == "not testable" else "state"
        kind = file.choice(found.get("kind"), "a kind", KINDS) or usual
        needs = self.needs(file, found["needs"]) if "needs" in found else (ANY_LAB,)
        quoted = file.texts(found.get("quoted"), "quoted")
        otherwise = self.otherwise(file, found.get("otherwise"))
        if expect in {"contradicted", "conditional"} and "why" not in found:
            file.wrong(found["expect"], "'why', the reason", f"{expect!r} without one", "add `why`")
        if expect == "not testable" and kind != "definition":
            hint = "write `kind: definition`, or expect another verdict"
            file.wrong(found["kind"], "a definition, if it is not testable", repr(kind), hint)
        if len(file.problems) > before or name is None:
            return None
        words: dict[str, Any] = {key: text or "" for key, text in texts.items()}
        words |= {"kind": kind, "expect": expect}
        return Claim(
            id=name,
            document=path.stem,
            needs=needs,
            quoted=quoted or (),
            otherwise=otherwise,
            **words,
        )

    def needs(self, file: _File, at: Tree) -> tuple[str, ...]:
        before = len(file.problems)
        found = file.items(at, "a list of texts for 'needs'", "write it as [docker, etcd]")
        if not found and len(file.problems) == before:
            hint = "write [netns] for any lab, [none] for no lab at all"
            file.wrong(at, "features in 'needs'", "an empty list", hint)
        known = tuple(feature_words())
        return tuple(filter(None, [file.choice(item, "a feature", known) for item in found]))

    def otherwise(self, file: _File, at: Tree | None) -> tuple[Otherwise, ...]:
        hint = 'write `- when: {docker: ">= 28"}` with `expect` and `why`'
        found = file.items(at, "a list for 'otherwise'", hint)
        return tuple(filter(None, [self.other(file, item) for item in found]))

    def other(self, file: _File, at: Tree) -> Otherwise | None:
        hint = "write `when`, `expect` and `why`"
        found = file.fields(at, OF_OTHERWISE, "an expectation", hint)
        if found is None:
            return None
        for key in OF_OTHERWISE:
            if key not in found:
                file.wrong(at, f"{key!r} in 'otherwise'", "none", "add it")
        when: dict[str, str] = {}
        if condition := found.get("when"):
            hint, wanted = 'write it as {docker: ">= 28"}', "facts of the lab for 'when'"
            facts = file.fields(condition, fact_names(), wanted, hint)
            if isinstance(condition, tree.Mapping) and not condition.entries:
                file.wrong(condition, wanted, "none", hint)
            for fact, value in (facts or {}).items():
                word = file.words(value, fact)
                # A mistyped comparison would be read as a word that no fact equals.
                if word and not (word[:1].isalnum() or COMPARISON.fullmatch(word)):
                    hint = 'a word, or a comparison such as ">= 28"'
                    file.wrong(value, f"a condition for {fact!r}", repr(word), hint)
                elif word:
                    when[fact] = word
        expect = file.choice(found.get("expect"), "a verdict", ALTERNATIVES)
        why = file.words(found.get("why"), "why")
        return Otherwise(when, expect, why) if when and expect and why else None  # type: ignore[arg-type]

    # -- what belongs to claims --------------------------------------------------------

    def checks(self, claims: Mapping[str, Claim]) -> None:
        """Compare the claims with the marks of the tests."""
        testable = {name for name, claim in claims.items() if claim.is_testable}
        if marks.ids(self.folder) == testable and set(claims) == set(self.places):
            return
        dynamic = False
        seen: set[str] = set()
        for mark in marks.marked(self.folder):
            file, line = mark.place.file, mark.place.line
            dynamic = dynamic or not mark.claim
            if mark.claim and mark.claim not in self.places:
                hint = nearest(mark.claim, self.places)
                self.add(file, line, "a claim of this catalogue", repr(mark.claim), hint)
            elif mark.claim in claims and mark.claim not in testable:
                hint = "remove the test, or expect another verdict"
                wanted = "a claim that can be tested"
                self.add(file, line, wanted, f"{mark.claim!r}, a definition", hint)
            seen.add(mark.claim)
        for name in claims:
            if name in testable - seen and not dynamic:
                place = self.places[name]
                hint = f'mark a test with @pytest.mark.{marks.MARK}("{name}")'
                wanted = f"{name}: a check in a test_*.py of this catalogue"
                self.add(place.file, place.line, wanted, "none", hint)

    def translation(self, path: Path, claims: Mapping[str, Claim]) -> Mapping[str, Translation]:
        """Read the claims' texts in another language, by ID."""
        if not LANGUAGE.fullmatch(path.stem):
            hint = "name the file after the language, such as de.yaml"
            self.add(path, 0, "a language tag (BCP 47)", repr(path.stem), hint)
        file = self.file(path)
        found: dict[str, Translation] = {}
        hint = "write `ID: {claim: TEXT}`"
        entries = file.fields(file.content(path), None, "texts by claim ID", hint) or {}
        for name, at in entries.items():
            with file.problems.within(name):
                if one := self.translated(file, name, at, claims.get(name)):
                    found[name] = one
        return found

    def translated(
        self, file: _File, name: str, at: Tree, original: Claim | None
    ) -> Translation | None:
        """Read a claim's texts in another language."""
        if name not in self.places:
            file.wrong(at, "a claim of this catalogue", repr(name), nearest(name, self.places))
            return None
        texts = file.fields(at, OF_TRANSLATION, "the texts of a claim", "write {claim: TEXT}")
        if texts is None:
            return None
        if "claim" not in texts:
            file.wrong(at, "'claim'", "none", "translate the statement itself")
        claim, why = (file.words(texts.get(key), key) for key in ("claim", "why"))
        others = file.texts(texts.get("otherwise"), "otherwise")
        if others and original and len(others) != len(original.otherwise):
            wanted = f"a reason for each of {len(original.otherwise)} entries of 'otherwise'"
            hint = "keep the order of the claim's entries"
            file.wrong(texts["otherwise"], wanted, f"{len(others)}", hint)
        return Translation(claim, why or "", others or ()) if claim else None

    def sabotages(self, known: Mapping[str, Place]) -> tuple[Sabotage, ...]:
        path = self.folder / SABOTAGES
        if not path.exists():
            return ()
        file = self.file(path)
        found: dict[str, Sabotage] = {}
        hint = "begin each with `- name: NAME`"
        for at in file.items(file.content(path), "a list of sabotages", hint):
            one = self.sabotage(file, at, known)
            if one and one.name in found:
                file.wrong(at, "each name once", f"{one.name!r} again", "rename one of them")
            elif one:
                found[one.name] = one
        return tuple(found.values())

    def sabotage(self, file: _File, at: Tree, known: Mapping[str, Place]) -> Sabotage | None:
        before = len(file.problems)
        found = file.fields(at, OF_SABOTAGE, "a sabotage", "begin it with `- name: NAME`")
        if found is None:
            return None
        for key in REQUIRED_OF_SABOTAGE:
            if key not in found:
                file.wrong(at, f"{key!r}", "none", f"known keys: {', '.join(OF_SABOTAGE)}")
        if not {"faults", "do"} & set(found):
            file.wrong(at, "'faults' or 'do'", "none", "say what breaks the lab")
        if "do" in found and "undo" not in found:
            file.wrong(found["do"], "'undo' beside 'do'", "none", "say what repairs the lab")
        of = found.get("claims")
        claims = file.items(of, "a list of claims", "write it as [one, two]")
        words = [file.words(one, "claims") for one in claims]
        for one, word in zip(claims, words, strict=True):
            if word and word not in known:
                file.wrong(one, "a claim of this catalogue", repr(word), nearest(word, known))
        if isinstance(of, tree.Sequence) and not claims:
            file.wrong(of, "claims that must fail", "none", "write it as [one, two]")
        hint = "use letters, digits and -"
        name = file.matching(found.get("name"), ID.pattern, "a name", hint)
        what = file.words(found.get("what"), "what")
        faults = self.faults(file, found.get("faults"))
        do, undo = (self.orders(file, found.get(key), key) for key in ("do", "undo"))
        if len(file.problems) > before or name is None or what is None:
            return None
        return Sabotage(name, what, tuple(filter(None, words)), faults, do, undo)

    def faults(self, file: _File, at: Tree | None) -> tuple[str, ...]:
        from testbed.faults.model import Unreadable, parse

        words = file.texts(at, "faults") or ()
        for word in words:
            try:
                parse(word.split())
            except Unreadable as error:
                if at and len(word.split()) > 1:  # one word is the name of a topology's fault
                    file.wrong(at, error.wanted, error.seen, error.hint)
        return words

    def orders(self, file: _File, at: Tree | None, key: str) -> tuple[Order, ...]:
        """Return commands, each a mapping of one place to a command."""
        hint = "write each as `- NODE: COMMAND`"
        found: list[Order] = []
        for item in file.items(at, f"a list of commands for {key!r}", hint):
            entries = file.fields(item, None, f"a command for {key!r}", hint) or {}
            if len(entries) > 1:
                file.wrong(item, f"one command in each entry of {key!r}", "several", hint)
            for place, value in entries.items():
                if not PLACE.fullmatch(place):
                    file.wrong(value, "NODE or NODE/CONTAINER", repr(place), hint)
                elif command := file.words(value, place):
                    found.append(Order(place, command))
        return tuple(found)


def _id(at: Tree) -> str:
    """Return the ID of a claim for messages about the claim; empty if it has none."""
    found = at.get("id") if isinstance(at, tree.Mapping) else None
    return found.text if isinstance(found, tree.Scalar) else ""


def _expand(word: str, known: Collection[str]) -> list[str]:
    """Return the words that match a shell pattern, in their order."""
    import fnmatch

    return [one for one in known if fnmatch.fnmatchcase(one, word)]
