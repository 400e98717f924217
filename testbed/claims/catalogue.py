"""The catalogue: every claim, read from the YAML files beside this module."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from testbed.claims.model import COMPARISON, FACTS, Claim, Kind, Otherwise, Translation, Verdict

FOLDER = Path(__file__).parent


@functools.cache
def claims() -> Mapping[str, Claim]:
    """All claims by id, in the order of the documents.

    Raises ValueError naming file and id when an entry is not as it should be.
    """
    import yaml
    from yaml import CSafeLoader

    found: dict[str, Claim] = {}
    for path in sorted(FOLDER.glob("[0-9]*.yaml")):
        for entry in yaml.load(path.read_text(encoding="utf-8"), CSafeLoader):
            claim = _claim(path.name, entry)
            if claim.id in found:
                raise ValueError(f"{path.name}: {claim.id} is there twice")
            found[claim.id] = claim
    return found


@functools.cache
def translated(lang: str) -> Mapping[str, Translation]:
    """The claims' texts in another language by id, as far as there are any.

    Raises ValueError naming file and id when an entry is not as it should be.
    """
    path = FOLDER / f"{lang}.yaml"
    if not path.exists():
        return {}
    import yaml
    from yaml import CSafeLoader

    found = yaml.load(path.read_text(encoding="utf-8"), CSafeLoader)
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: wanted texts by id, saw {found!r}")  # noqa: TRY004  as below
    return {name: _translation(f"{path.name}: {name}", entry) for name, entry in found.items()}


def _translation(where: str, entry: Any) -> Translation:
    if not isinstance(entry, dict) or "claim" not in entry:
        raise ValueError(f"{where}: no claim in {entry!r}")
    unknown = set(entry) - {"claim", "why", "otherwise"}
    if unknown:
        raise ValueError(f"{where}: unknown keys {sorted(map(str, unknown))}")
    otherwise = entry.get("otherwise", [])
    single = [entry["claim"], entry.get("why", "")]
    if not isinstance(otherwise, list) or not all(isinstance(t, str) for t in single + otherwise):
        raise ValueError(f"{where}: not text, or not a list of texts")
    return Translation(single[0], single[1], tuple(otherwise))


def _claim(file: str, entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: wanted a claim, saw {entry!r}")  # noqa: TRY004  as all of these
    where = f"{file}: {entry.get('id', '?')}"
    wrong = [key for key, value in entry.items() if not _fits(key, value)]
    if wrong:
        raise ValueError(f"{where}: not text, or not a list of texts: {', '.join(wrong)}")
    try:
        claim = Claim(
            id=entry["id"],
            document=entry["document"],
            place=entry["place"],
            claim=entry["claim"],
            kind=entry["kind"],
            needs=tuple(entry["needs"]),
            expect=entry["expect"],
            check=entry["check"],
            why=entry.get("why", ""),
            quoted=tuple(entry.get("quoted", ())),
            otherwise=tuple(Otherwise(**other) for other in entry.get("otherwise", ())),
        )
    except KeyError as error:
        raise ValueError(f"{where}: {error} is missing") from None
    unknown = set(entry) - set(claim.to_dict())
    if unknown:
        raise ValueError(f"{where}: unknown keys {sorted(unknown)}")
    if claim.kind not in get_args(Kind) or claim.expect not in get_args(Verdict):
        raise ValueError(f"{where}: unknown kind {claim.kind!r} or verdict {claim.expect!r}")
    if claim.expect not in ("confirmed", "not testable") and not claim.why:
        raise ValueError(f"{where}: expects {claim.expect!r} and does not say why")
    if not claim.is_testable and claim.kind != "definition":
        raise ValueError(f"{where}: only a definition is not testable")
    return claim


OTHERWISE = {"when", "expect", "why"}


def _fits(key: str, value: Any) -> bool:
    """Lists for ``needs`` and ``quoted``, text for most else: YAML takes 003 for a number."""
    if key == "otherwise":
        return isinstance(value, list) and all(map(_is_otherwise, value))
    if key in {"needs", "quoted"}:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def _is_otherwise(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == OTHERWISE
        and isinstance(entry["when"], dict)
        and bool(entry["when"])  # what holds everywhere is `expect`
        and all(name in FACTS and _is_condition(is_) for name, is_ in entry["when"].items())
        and entry["expect"] in get_args(Verdict)
        and isinstance(entry["why"], str)
        and bool(entry["why"])
    )


def _is_condition(value: Any) -> bool:
    """A word, or a comparison as it should be: a mistyped one would be a word that no fact is."""
    if not isinstance(value, str):
        return False
    return value[:1].isalnum() or COMPARISON.fullmatch(value) is not None
