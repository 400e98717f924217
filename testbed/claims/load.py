"""Read a catalogue from its folder.

The files are ``catalogue.yaml`` (optional: name, title, labs), a file for each document,
``translations/LANGUAGE.yaml``, ``sabotages.yaml``, and the checks, ``test_*.py``.  docs/claims.md
describes them.  Reading runs no check.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from testbed.claims import marks
from testbed.claims.catalogue import Catalogue, Place, Source, numbered, shown
from testbed.claims.labs import Wanted
from testbed.claims.model import (
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
from testbed.errors import CatalogueError, Problem
from testbed.topology.load import Overrides, is_path, names
from testbed.topology.load import beside as topologies_in
from testbed.topology.tree import nearest
from testbed.topology.variant import options

if TYPE_CHECKING:
    import yaml

CATALOGUE = "catalogue.yaml"
SABOTAGES = "sabotages.yaml"
TRANSLATIONS = "translations"
CLAIMS = "claims"  #: name of a folder that belongs to the topologies beside it

#: An ID is part of addresses in the report, of file names and of command lines.
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
#: Anchors that the HTML report has for itself.
ANCHORS = re.compile(
    r"(checks|claims|labs|measured|otherwise|summary|unexpected)(-title)?"
    r"|clear|nothing|shown|theme|title|unfold|(chart|document|i|lab|picture)-.*"
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
    found = reader.catalogue()
    if reader.problems:
        raise CatalogueError(list(dict.fromkeys(reader.problems)))
    return found


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of a YAML file with its position; ``key`` is that of its key, if it has one."""

    file: str
    node: Any
    key: Any = None
    what: str = ""  #: the entry that it belongs to, for messages

    @property
    def line(self) -> int:
        line: int = (self.key or self.node).start_mark.line
        return line + 1


@dataclass
class _Reader:
    """Reads the files of a folder, and collects their problems."""

    folder: Path
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)

    # -- problems and simple values ----------------------------------------------------

    def add(self, file: str, line: int, wanted: str, seen: str, hint: str) -> None:
        self.problems.append((file, Problem(line, 0, wanted, seen, hint)))

    def wrong(self, at: _Value, wanted: str, seen: str, hint: str) -> None:
        where = f"{at.what}: " if at.what else ""
        self.add(at.file, at.line, f"{where}{wanted}", seen, hint)

    def root(self, path: Path) -> _Value | None:
        """Return the content of a YAML file, or None after a problem."""
        import yaml

        file = shown(path)
        try:
            loader = yaml.CSafeLoader(path.read_text(encoding="utf-8-sig"))
            node = loader.get_single_node()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 0
            what = " ".join(filter(None, [error.problem, error.context]))
            self.add(file, line, "YAML", what, _yaml_hint(what))
            return None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            seen = str(error).split("\n", 1)[0]
            self.add(file, 0, "YAML in UTF-8", seen, "save the file as UTF-8 text")
            return None
        except OSError as error:
            seen = (error.strerror or "an error").lower()
            self.add(file, 0, "a file that can be read", seen, "check its permissions")
            return None
        if node is None:
            self.add(file, 0, "content", "an empty file", "write an entry, or remove the file")
            return None
        return _Value(file, node)

    def mapping(
        self, at: _Value, known: Collection[str] | None, what: str, hint: str
    ) -> dict[str, _Value] | None:
        """Return the values of a mapping by key; ``known`` None accepts any key."""
        import yaml

        if not isinstance(at.node, yaml.MappingNode):
            self.wrong(at, what, _describe(at.node), hint)
            return None
        found: dict[str, _Value] = {}
        for key, node in at.node.value:
            value = _Value(at.file, node, key, at.what)
            if not isinstance(key, yaml.ScalarNode) or not _is_text(key):
                self.wrong(value, "text for a key", _describe(key), "quote it")
            elif key.value in found:
                first = found[key.value].line
                seen = f"{key.value!r} again, first in line {first}"
                self.wrong(value, "each key once", seen, "remove or rename one")
            elif known is not None and key.value not in known:
                self.wrong(value, "a known key", repr(key.value), nearest(key.value, known))
            else:
                found[key.value] = value
        return found

    def items(self, at: _Value, what: str, hint: str) -> list[_Value] | None:
        import yaml

        if not isinstance(at.node, yaml.SequenceNode):
            self.wrong(at, what, _describe(at.node), hint)
            return None
        return [_Value(at.file, node, None, at.what) for node in at.node.value]

    def text(self, at: _Value | None, key: str, *, empty: bool = False) -> str | None:
        """Return a text.  YAML reads 003 as a number, so it must be quoted."""
        if at is None:
            return None
        if not _is_text(at.node):
            self.wrong(at, f"text for {key!r}", _describe(at.node), "quote it")
            return None
        value: str = at.node.value
        if not (value.strip() or empty):
            self.wrong(at, f"text for {key!r}", "an empty one", "write it, or remove the key")
            return None
        return value

    def texts(self, at: _Value | None, key: str) -> tuple[str, ...] | None:
        if at is None:
            return None
        found = self.items(at, f"a list of texts for {key!r}", "write it as [one, two]")
        words = [self.text(item, key) for item in found or ()]
        return None if found is None or None in words else tuple(filter(None, words))

    def choice(self, at: _Value | None, known: Collection[str], what: str) -> str | None:
        """Return a word that is in ``known``."""
        word = self.text(at, what)
        if at is None or word is None or word in known:
            return word
        hint = nearest(word, known)
        if not hint.startswith("known"):
            hint += f" known: {', '.join(known)}"
        self.wrong(at, f"a known {what}", repr(word), hint)
        return None

    def matching(
        self, at: _Value | None, form: re.Pattern[str], key: str, wanted: str, hint: str
    ) -> str | None:
        word = self.text(at, key)
        if at is None or word is None or form.fullmatch(word):
            return word
        self.wrong(at, wanted, repr(word), hint)
        return None

    def language(self, at: _Value | None) -> str | None:
        hint = "such as en, de or zh"
        return self.matching(at, LANGUAGE, "language", "a language tag (BCP 47)", hint)

    def titles(self, at: _Value | None) -> dict[str, str]:
        """Return translations of a title by language."""
        found: dict[str, str] = {}
        if at is None:
            return found
        hint = "write it as {en: TITLE}"
        entries = self.mapping(at, None, "titles by language", hint) or {}
        for lang, value in entries.items():
            if not LANGUAGE.fullmatch(lang):
                self.wrong(value, "a language tag (BCP 47)", repr(lang), "such as en, de or zh")
            elif title := self.text(value, "title"):
                found[lang] = title
        return found

    # -- the catalogue -----------------------------------------------------------------

    def catalogue(self) -> Catalogue:
        if not self.folder.is_dir():
            seen = "a file" if self.folder.exists() else "no such folder"
            hint = "check the path, or begin one with `testbed claims new DIR`"
            self.add(shown(self.folder), 0, "a folder with a catalogue", seen, hint)
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
            self.add(shown(self.folder), 0, "a document, NAME.yaml", "none", hint)
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

    def head(self) -> tuple[Source, list[_Value] | None]:
        """Return name and title of the catalogue, and its labs; None if it names none."""
        own = self.folder.parent if self.folder.name == CLAIMS else self.folder
        path = self.folder / CATALOGUE
        if not path.exists():
            return Source(own.name, self.folder), None
        root = self.root(path)
        what, hint = "a mapping", f"known keys: {', '.join(OF_CATALOGUE)}"
        found = (self.mapping(root, OF_CATALOGUE, what, hint) if root else None) or {}
        labs = found.get("labs")
        hint = "write it as [{topology: NAME}]"
        return Source(
            self.text(found.get("name"), "name") or own.name,
            self.folder,
            self.text(found.get("title"), "title") or "",
            self.language(found.get("language")) or "en",
            self.titles(found.get("titles")),
        ), (self.items(labs, "a list of labs", hint) or []) if labs else None

    def lab(
        self, at: _Value, documents: Mapping[str, Document], claims: Mapping[str, Claim]
    ) -> Iterator[Wanted]:
        """Yield a lab of catalogue.yaml, unless it has a problem."""
        hint = "write it as {topology: NAME}"
        of_roles = {name: same[0].type for name, same in options().items()}
        found = self.mapping(at, (*OF_LAB, *of_roles), "a lab", hint)
        if found is None:
            return
        if "topology" not in found:
            self.wrong(at, "'topology'", "none", "a shipped topology by name, or a path")
            return
        before = len(self.problems)
        topology = self.topology(found["topology"])
        of = self.texts(found.get("documents"), "documents")
        for item in of or ():
            if item not in documents:
                hint = nearest(item, documents)
                self.wrong(found["documents"], "a document of this catalogue", repr(item), hint)
        only: list[str] = []
        for item in self.texts(found.get("only"), "only") or ():
            chosen = _expand(item, (*claims, *feature_words()))
            if not chosen:
                hint = nearest(item, feature_words())
                self.wrong(found["only"], "a claim or a feature", repr(item), hint)
            only += chosen
        measures = self.boolean(found.get("measures"), "measures")
        varied: dict[str, Any] = {
            key: self.number(found[key], key) if kind is int else self.text(found[key], key)
            for key, kind in {"provider": str, **of_roles}.items()
            if key in found
        }
        if topology and len(self.problems) == before:
            of = of or tuple(documents)
            yield Wanted(topology, of, Overrides(**varied), measures, tuple(only))

    def topology(self, at: _Value) -> str | None:
        word = self.text(at, "topology")
        if word is None or word in names():
            return word
        path = self.folder / word
        if path.is_file():
            return str(path.resolve())
        if is_path(word):
            self.wrong(at, "a topology file", f"{word!r}, which does not exist", "check the path")
        else:
            hint = f"{nearest(word, names())} A path is relative to this file: ../{word}.yaml"
            self.wrong(at, "a shipped topology or a path", repr(word), hint)
        return None

    def boolean(self, at: _Value | None, key: str) -> bool:
        if at is None:
            return True
        if at.node.tag == "tag:yaml.org,2002:bool":
            return bool(at.node.value.lower() in {"true", "yes", "on"})
        self.wrong(at, f"true or false for {key!r}", _describe(at.node), "write true or false")
        return True

    def number(self, at: _Value, key: str) -> int:
        if at.node.tag == "tag:yaml.org,2002:int" and at.node.value.isdigit():
            return int(at.node.value)
        self.wrong(at, f"a number for {key!r}", _describe(at.node), "such as 3")
        return 1

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
            self.add(shown(path), 0, "a document ID", repr(path.stem), hint)
        if (root := self.root(path)) is None:
            return
        hint = "begin with `title: TITLE` and `claims:`; docs/claims.md shows one"
        found = self.mapping(root, OF_DOCUMENT, "a document", hint)
        if found is None:
            return
        for key in REQUIRED_OF_DOCUMENT:
            if key not in found:
                self.wrong(root, f"{key!r}", "none", f"known keys: {', '.join(OF_DOCUMENT)}")
        link = self.matching(
            found.get("link"), LINK, "link", "an address", "begin it with https:// or http://"
        )
        documents[path.stem] = Document(
            path.stem,
            self.text(found.get("title"), "title") or "",
            self.language(found.get("language")) or source.language,
            source.language,
            self.titles(found.get("titles")),
            link or "",
        )
        if "claims" in found:
            hint = "begin each with `- id: NAME`"
            for at in self.items(found["claims"], "a list of claims", hint) or ():
                if claim := self.claim(path, at):
                    claims[claim.id] = claim

    def claim(self, path: Path, at: _Value) -> Claim | None:
        before = len(self.problems)
        at = _Value(at.file, at.node, None, _id(at.node))
        found = self.mapping(at, OF_CLAIM, "a claim", "begin it with `- id: NAME`")
        if found is None:
            return None
        hint = "use letters, digits and . _ -"
        name = self.matching(found.get("id"), ID, "id", "a claim ID", hint)
        for key in REQUIRED_OF_CLAIM:
            if key not in found:
                self.wrong(at, f"{key!r}", "none", "docs/claims.md has a table of the keys")
        if name and ANCHORS.fullmatch(name):
            wanted = "a claim ID that is no anchor of the report"
            self.wrong(at, wanted, repr(name), "put a topic before it")
        if name and name in self.places:
            seen = f"{name!r} again, first at {self.places[name]}"
            self.wrong(at, "each claim ID once", seen, "rename one of them")
        elif name:
            self.places[name] = Place(path, at.line)
        texts = {key: self.text(found.get(key), key) for key in ("place", "claim", "check", "why")}
        expect = self.choice(found.get("expect"), EXPECTED, "verdict") or "confirmed"
        usual = "definition" if expect == "not testable" else "state"
        kind = self.choice(found.get("kind"), KINDS, "kind") or usual
        needs = self.needs(found["needs"]) if "needs" in found else (ANY_LAB,)
        quoted = self.texts(found.get("quoted"), "quoted")
        otherwise = self.otherwise(found.get("otherwise"))
        if expect in {"contradicted", "conditional"} and "why" not in found:
            self.wrong(found["expect"], "'why', the reason", f"{expect!r} without one", "add `why`")
        if expect == "not testable" and kind != "definition":
            hint = "write `kind: definition`, or expect another verdict"
            self.wrong(found["kind"], "a definition, if it is not testable", repr(kind), hint)
        if len(self.problems) > before or name is None or needs is None:
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

    def needs(self, at: _Value | None) -> tuple[str, ...] | None:
        if at is None:
            return None
        found = self.items(at, "a list of texts for 'needs'", "write it as [docker, etcd]")
        if found is None:
            return None
        if not found:
            hint = "write [netns] for any lab, [none] for no lab at all"
            self.wrong(at, "features in 'needs'", "an empty list", hint)
        known = feature_words()
        words = [self.choice(item, known, "feature") for item in found]
        return tuple(filter(None, words))

    def otherwise(self, at: _Value | None) -> tuple[Otherwise, ...]:
        if at is None:
            return ()
        hint = 'write `- when: {docker: ">= 28"}` with `expect` and `why`'
        found = self.items(at, "a list for 'otherwise'", hint) or ()
        return tuple(filter(None, map(self.other, found)))

    def other(self, at: _Value) -> Otherwise | None:
        found = self.mapping(at, OF_OTHERWISE, "an expectation", "write `when`, `expect` and `why`")
        if found is None:
            return None
        for key in OF_OTHERWISE:
            if key not in found:
                self.wrong(at, f"{key!r} in 'otherwise'", "none", "add it")
        when: dict[str, str] = {}
        if condition := found.get("when"):
            hint = 'write it as {docker: ">= 28"}'
            facts = self.mapping(condition, fact_names(), "facts of the lab for 'when'", hint)
            if facts is not None and not condition.node.value:
                self.wrong(condition, "facts of the lab for 'when'", "none", hint)
            for fact, value in (facts or {}).items():
                word = self.text(value, fact)
                # A mistyped comparison would be read as a word that no fact equals.
                if word and not (word[:1].isalnum() or COMPARISON.fullmatch(word)):
                    hint = 'a word, or a comparison such as ">= 28"'
                    self.wrong(value, f"a condition for {fact!r}", repr(word), hint)
                elif word:
                    when[fact] = word
        expect = self.choice(found.get("expect"), EXPECTED, "verdict")
        why = self.text(found.get("why"), "why")
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
            file, line = shown(mark.place.file), mark.place.line
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
                self.add(shown(place.file), place.line, wanted, "none", hint)

    def translation(self, path: Path, claims: Mapping[str, Claim]) -> Mapping[str, Translation]:
        """Read the claims' texts in another language, by ID."""
        if not LANGUAGE.fullmatch(path.stem):
            hint = "name the file after the language, such as de.yaml"
            self.add(shown(path), 0, "a language tag (BCP 47)", repr(path.stem), hint)
        if (root := self.root(path)) is None:
            return {}
        found: dict[str, Translation] = {}
        entries = self.mapping(root, None, "texts by claim ID", "write `ID: {claim: TEXT}`") or {}
        for name, value in entries.items():
            at = _Value(value.file, value.node, value.key, name)
            if name not in self.places:
                self.wrong(at, "a claim of this catalogue", repr(name), nearest(name, self.places))
                continue
            texts = self.mapping(at, OF_TRANSLATION, "the texts of a claim", "write {claim: TEXT}")
            if texts is None:
                continue
            if "claim" not in texts:
                self.wrong(at, "'claim'", "none", "translate the statement itself")
            claim, why = (self.text(texts.get(key), key) for key in ("claim", "why"))
            others = self.texts(texts.get("otherwise"), "otherwise")
            original = claims.get(name)
            if others and original and len(others) != len(original.otherwise):
                wanted = f"a reason for each of {len(original.otherwise)} entries of 'otherwise'"
                hint = "keep the order of the claim's entries"
                self.wrong(texts["otherwise"], wanted, f"{len(others)}", hint)
            if claim:
                found[name] = Translation(claim, why or "", others or ())
        return found

    def sabotages(self, known: Mapping[str, Place]) -> tuple[Sabotage, ...]:
        path = self.folder / SABOTAGES
        if not path.exists() or (root := self.root(path)) is None:
            return ()
        found: dict[str, Sabotage] = {}
        hint = "begin each with `- name: NAME`"
        for at in self.items(root, "a list of sabotages", hint) or ():
            one = self.sabotage(at, known)
            if one and one.name in found:
                self.wrong(at, "each name once", f"{one.name!r} again", "rename one of them")
            elif one:
                found[one.name] = one
        return tuple(found.values())

    def sabotage(self, at: _Value, known: Mapping[str, Place]) -> Sabotage | None:
        before = len(self.problems)
        found = self.mapping(at, OF_SABOTAGE, "a sabotage", "begin it with `- name: NAME`")
        if found is None:
            return None
        for key in REQUIRED_OF_SABOTAGE:
            if key not in found:
                self.wrong(at, f"{key!r}", "none", f"known keys: {', '.join(OF_SABOTAGE)}")
        if not {"faults", "do"} & set(found):
            self.wrong(at, "'faults' or 'do'", "none", "say what breaks the lab")
        if "do" in found and "undo" not in found:
            self.wrong(found["do"], "'undo' beside 'do'", "none", "say what repairs the lab")
        claims = (
            self.items(found["claims"], "a list of claims", "write it as [one, two]")
            if ("claims" in found)
            else ()
        )
        words = [self.text(one, "claims") for one in claims or ()]
        for one, word in zip(claims or (), words, strict=True):
            if word and word not in known:
                self.wrong(one, "a claim of this catalogue", repr(word), nearest(word, known))
        if claims is not None and "claims" in found and not claims:
            self.wrong(found["claims"], "claims that must fail", "none", "write it as [one, two]")
        name = self.matching(found.get("name"), ID, "name", "a name", "use letters, digits and -")
        what = self.text(found.get("what"), "what")
        faults = self.faults(found.get("faults"))
        do, undo = (self.orders(found.get(key), key) for key in ("do", "undo"))
        if len(self.problems) > before or name is None or what is None:
            return None
        return Sabotage(name, what, tuple(filter(None, words)), faults, do, undo)

    def faults(self, at: _Value | None) -> tuple[str, ...]:
        from testbed.faults.model import Unreadable, parse

        words = self.texts(at, "faults") or ()
        for word in words:
            try:
                parse(word.split())
            except Unreadable as error:
                if at and len(word.split()) > 1:  # one word is the name of a topology's fault
                    self.wrong(at, error.wanted, error.seen, error.hint)
        return words

    def orders(self, at: _Value | None, key: str) -> tuple[Order, ...]:
        """Return commands, each a mapping of one place to a command."""
        if at is None:
            return ()
        hint = "write each as `- NODE: COMMAND`"
        found: list[Order] = []
        for item in self.items(at, f"a list of commands for {key!r}", hint) or ():
            entries = self.mapping(item, None, f"a command for {key!r}", hint) or {}
            if len(entries) > 1:
                self.wrong(item, f"one command in each entry of {key!r}", "several", hint)
            for place, value in entries.items():
                if not PLACE.fullmatch(place):
                    self.wrong(value, "NODE or NODE/CONTAINER", repr(place), hint)
                elif command := self.text(value, place):
                    found.append(Order(place, command))
        return tuple(found)


def _yaml_hint(what: str) -> str:
    if "mapping values" in what:
        return "check the indentation, and quote a text that holds ': '"
    if "cannot start any token" in what:
        return "quote a text that begins with this character"
    return (
        "check the indentation, and quote a text that holds ': ' or begins with a quote, "
        "a backtick or a bracket"
    )


def _is_text(node: yaml.Node) -> bool:
    import yaml

    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:str"


def _describe(node: yaml.Node) -> str:
    import yaml

    if isinstance(node, yaml.MappingNode):
        return "a mapping" if node.value else "an empty mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list" if node.value else "an empty list"
    kind = node.tag.rpartition(":")[2]
    if kind == "null":
        return "nothing"
    if kind == "str":
        return repr(node.value)
    words = {"int": "the number", "float": "the number", "bool": "the boolean"}
    return f"{words.get(kind, f'the {kind}')} {node.value}"


def _id(node: yaml.Node) -> str:
    """Return the ID of a claim for messages about the claim; empty if it has none."""
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return next((str(value.value) for key, value in pairs if key.value == "id"), "")


def _expand(word: str, known: Collection[str]) -> list[str]:
    """Return the words that match a shell pattern, in their order."""
    import fnmatch

    return [one for one in known if fnmatch.fnmatchcase(one, word)]
