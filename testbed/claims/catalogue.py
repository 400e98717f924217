"""The catalogue: all claims, read from the YAML files beside this module."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from testbed.claims.model import (
    COMPARISON,
    FACTS,
    FEATURES,
    Claim,
    Kind,
    Otherwise,
    Translation,
    Verdict,
)
from testbed.errors import CatalogueError

if TYPE_CHECKING:
    from yaml import Node

FOLDER = Path(__file__).parents[1] / "catalogues" / "shipped"


@functools.cache
def claims() -> Mapping[str, Claim]:
    """Return all claims by id, in the order of the documents.

    Raises CatalogueError, naming file, line and id, for an invalid entry.
    """
    found: dict[str, Claim] = {}
    for path in sorted(FOLDER.glob("[0-9]*.yaml")):
        entries, node = _read(path)
        if not isinstance(entries, list):
            hint = "begin each with `- id: NAME`"
            raise _Place(path, node).wrong(f"wanted claims, saw {entries!r}", hint=hint)
        for at, entry in zip(node.value, entries, strict=True):
            place = _Place(path, at)
            claim = _claim(place, entry)
            if claim.id in found:
                raise place.named(claim.id).wrong("is there twice", "id", hint="rename one")
            found[claim.id] = claim
    return found


@functools.cache
def translated(lang: str) -> Mapping[str, Translation]:
    """Return the claims' texts in another language by id, where translated.

    Raises CatalogueError, naming file, line and id, for an invalid entry.
    """
    path = FOLDER / "translations" / f"{lang}.yaml"
    if not path.exists():
        return {}
    found, node = _read(path)
    if not isinstance(found, dict):
        raise _Place(path, node).wrong(f"wanted texts by id, saw {found!r}")
    places = {key.value: value for key, value in node.value}
    return {
        name: _translation(_Place(path, places.get(name, node), str(name)), entry)
        for name, entry in found.items()
    }


def _read(path: Path) -> tuple[Any, Node]:
    """Read a YAML file: return its content and the node tree with line numbers."""
    import yaml
    from yaml import CSafeLoader

    try:
        loader = CSafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            raise CatalogueError(
                f"{_shown(path)}: an empty file", hint="write a claim, or remove it"
            )
        return loader.construct_document(node), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{_shown(path)}:{mark.line + 1}" if mark else _shown(path)
        what = " ".join(filter(None, [error.problem, error.context]))
        raise CatalogueError(
            f"{where}: not YAML: {what}",
            hint="check the indentation, and quote a text that holds ': ' or begins with "
            "a quote, a backtick or a bracket",
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{_shown(path)}: not YAML: {error}") from None


def _shown(path: Path) -> str:
    """Return the path relative to the working directory where possible."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@dataclass(frozen=True)
class _Place:
    """A catalogue entry and its position, for error messages."""

    path: Path
    node: Node
    id: str = ""

    def named(self, name: str) -> _Place:
        return _Place(self.path, self.node, name)

    def wrong(self, what: str, *way: str | int, hint: str | None = None) -> CatalogueError:
        """Return the error for the key or item at the path ``way``."""
        node = self.node
        line = node.start_mark.line + 1
        for step in way:
            if isinstance(step, int):
                node = node.value[step]
                line = node.start_mark.line + 1
                continue
            for key, value in node.value:
                if key.value == step:
                    node, line = value, key.start_mark.line + 1
        words = f"{self.id}: {what}" if self.id else what
        return CatalogueError(f"{_shown(self.path)}:{line}: {words}", hint=hint)

    def refuse_unknown(
        self, entry: Mapping[Any, Any], known: Collection[str], *way: str | int
    ) -> None:
        for key in entry:
            if key not in known:
                raise self.wrong(f"unknown key {key!r}", *way, key, hint=_nearest(key, known))

    def choice(self, value: Any, known: Collection[str], what: str, *way: str | int) -> None:
        """Refuse a word that is not in ``known``."""
        if value not in known:
            hint = _nearest(value, known)
            if not hint.startswith("known"):
                hint += f" known: {', '.join(known)}"
            raise self.wrong(f"unknown {what} {value!r}", *way, hint=hint)

    def text(self, value: Any, what: str, *way: str | int) -> None:
        """Refuse a value that is not text: YAML reads 003 as a number."""
        if not isinstance(value, str):
            raise self.wrong(f"{what}: wanted text, saw {value!r}", *way, hint="quote it")

    def texts(self, value: Any, what: str, *way: str | int) -> None:
        """Refuse a value that is not a list of texts."""
        if not isinstance(value, list):
            hint = "write it as [one, two]"
            raise self.wrong(f"{what}: wanted a list of texts, saw {value!r}", *way, hint=hint)
        for index, item in enumerate(value):
            self.text(item, what, *way, index)


def _nearest(word: object, known: Collection[str]) -> str:
    from testbed.topology.tree import nearest  # its package reads topologies: heavy

    return nearest(str(word), known)


def _translation(place: _Place, entry: Any) -> Translation:
    if not isinstance(entry, dict) or "claim" not in entry:
        raise place.wrong(f"no claim in {entry!r}")
    place.refuse_unknown(entry, ("claim", "why", "otherwise"))
    for key in ("claim", "why"):
        place.text(entry.get(key, ""), key, key)
    place.texts(entry.get("otherwise", []), "otherwise", "otherwise")
    return Translation(entry["claim"], entry.get("why", ""), tuple(entry.get("otherwise", ())))


KEYS = tuple(field.name for field in fields(Claim))
OPTIONAL = {"why", "quoted", "otherwise"}


def _claim(place: _Place, entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise place.wrong(f"wanted a claim, saw {entry!r}", hint="begin it with `- id: NAME`")
    place = place.named(str(entry.get("id", "?")))
    place.refuse_unknown(entry, KEYS)
    for key in KEYS:
        if key not in entry and key not in OPTIONAL:
            raise place.wrong(f"{key!r} is missing", hint="docs/suites.md has a table of the keys")
    for key, value in entry.items():
        if key in {"needs", "quoted"}:
            place.texts(value, key, key)
        elif key != "otherwise":
            place.text(value, key, key)
    place.choice(entry["kind"], get_args(Kind), "kind", "kind")
    place.choice(entry["expect"], get_args(Verdict), "verdict", "expect")
    for index, word in enumerate(entry["needs"]):
        place.choice(word, FEATURES, "feature", "needs", index)
    if not entry["needs"]:
        raise place.wrong("needs: an empty list", "needs", hint="write [none] for no lab at all")
    others = entry.get("otherwise", [])
    if not isinstance(others, list):
        raise place.wrong(f"otherwise: wanted a list, saw {others!r}", "otherwise")
    claim = Claim(
        **{
            **entry,
            "needs": tuple(entry["needs"]),
            "quoted": tuple(entry.get("quoted", ())),
            "otherwise": tuple(_otherwise(place, i, other) for i, other in enumerate(others)),
        }
    )
    if claim.expect not in ("confirmed", "not testable") and not claim.why:
        hint = "add `why`: the reason"
        raise place.wrong(f"expects {claim.expect!r} and does not say why", "expect", hint=hint)
    if not claim.is_testable and claim.kind != "definition":
        raise place.wrong("only a definition is not testable", "kind", hint="`kind: definition`")
    return claim


def _otherwise(place: _Place, index: int, entry: Any) -> Otherwise:
    way = ("otherwise", index)
    if not isinstance(entry, dict):
        hint = "write `when`, `expect` and `why`"
        raise place.wrong(f"otherwise: wanted an expectation, saw {entry!r}", *way, hint=hint)
    known = ("when", "expect", "why")
    place.refuse_unknown(entry, known, *way)
    for key in known:
        if not entry.get(key):  # an unconditional expectation is `expect` itself
            raise place.wrong(f"otherwise: {key!r} is missing", *way)
    if not isinstance(entry["when"], dict):
        raise place.wrong(f"otherwise: when: wanted facts, saw {entry['when']!r}", *way, "when")
    for fact, condition in entry["when"].items():
        place.choice(fact, FACTS, "fact", *way, "when", fact)
        place.text(condition, f"otherwise: {fact}", *way, "when", fact)
        # A mistyped comparison would be read as a word that no fact equals.
        if not (condition[:1].isalnum() or COMPARISON.fullmatch(condition)):
            hint = 'a word, or a comparison such as ">= 28"'
            raise place.wrong(f"otherwise: {fact}: {condition!r}", *way, "when", fact, hint=hint)
    place.choice(entry["expect"], get_args(Verdict), "verdict", *way, "expect")
    place.text(entry["why"], "otherwise: why", *way, "why")
    return Otherwise(**entry)
