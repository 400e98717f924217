"""JSON Schemas (draft 2020-12) of the files of a catalogue, for editors.

A schema checks one value at a time.  Only :func:`testbed.claims.load.load` checks, for example,
that a sabotage names a claim that exists.
"""

from __future__ import annotations

from typing import Any

from testbed.claims.load import (
    ID,
    KINDS,
    LANGUAGE,
    LINK,
    OF_CATALOGUE,
    OF_CLAIM,
    OF_DOCUMENT,
    OF_LAB,
    OF_OTHERWISE,
    OF_SABOTAGE,
    OF_TRANSLATION,
    PLACE,
    REQUIRED_OF_CLAIM,
    REQUIRED_OF_DOCUMENT,
    REQUIRED_OF_SABOTAGE,
)
from testbed.claims.model import ALTERNATIVES, EXPECTED, fact_names, feature_words
from testbed.topology.variant import options

TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
TEXTS: dict[str, Any] = {"type": "array", "items": TEXT}


def schemas() -> dict[str, dict[str, Any]]:
    """Return the schema of each kind of file, by its name.

    >>> sorted(schemas())
    ['catalogue', 'document', 'sabotages', 'translations']
    """
    found = {
        "catalogue": ("catalogue.yaml of a catalogue", _catalogue()),
        "document": ("a document of a catalogue, with its claims", _document()),
        "sabotages": ("sabotages.yaml of a catalogue", _sabotages()),
        "translations": ("translations/LANGUAGE.yaml of a catalogue", _translations()),
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        name: {**head, "title": f"testbed: {title}", **schema}
        for name, (title, schema) in found.items()
    }


def _whole(text: str) -> str:
    """Return a pattern for a whole text: a schema's pattern may match a part."""
    return f"^(?:{text})$"


def _object(
    known: tuple[str, ...], required: tuple[str, ...] = (), **special: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of a mapping of these keys, each a text unless ``special`` has another."""
    return {
        "type": "object",
        "properties": {key: special.get(key, TEXT) for key in known},
        "required": [*required],
        "additionalProperties": False,
    }


def _language() -> dict[str, Any]:
    return {"type": "string", "pattern": _whole(LANGUAGE.pattern)}


def _titles() -> dict[str, Any]:
    return {"type": "object", "propertyNames": _language(), "additionalProperties": TEXT}


def _id() -> dict[str, Any]:
    return {"type": "string", "pattern": _whole(ID.pattern)}


def _catalogue() -> dict[str, Any]:
    number: dict[str, Any] = {"type": "integer"}
    varied = {n: number if same[0].type is int else TEXT for n, same in options().items()}
    lab = _object(
        (*OF_LAB, *varied),
        ("topology",),
        documents=TEXTS,
        only=TEXTS,
        measures={"type": "boolean"},
        **varied,
    )
    labs = {"type": "array", "items": lab}
    return _object(OF_CATALOGUE, titles=_titles(), language=_language(), labs=labs)


def _document() -> dict[str, Any]:
    expected = {"enum": list(EXPECTED)}
    when = _object(fact_names())
    facts = {**when, "minProperties": 1}
    verdicts = {"enum": list(ALTERNATIVES)}
    other = _object(OF_OTHERWISE, OF_OTHERWISE, when=facts, expect=verdicts)
    needs = {"type": "array", "items": {"enum": list(feature_words())}, "minItems": 1}
    claim = _object(
        OF_CLAIM,
        REQUIRED_OF_CLAIM,
        id=_id(),
        kind={"enum": list(KINDS)},
        needs=needs,
        expect=expected,
        quoted=TEXTS,
        otherwise={"type": "array", "items": other},
    )
    return _object(
        OF_DOCUMENT,
        REQUIRED_OF_DOCUMENT,
        language=_language(),
        titles=_titles(),
        link={"type": "string", "pattern": _whole(LINK.pattern)},
        claims={"type": "array", "items": claim},
    )


def _sabotages() -> dict[str, Any]:
    order = {
        "type": "object",
        "propertyNames": {"pattern": _whole(PLACE.pattern)},
        "additionalProperties": TEXT,
        "minProperties": 1,
        "maxProperties": 1,
    }
    orders = {"type": "array", "items": order}
    some = {**TEXTS, "minItems": 1}
    one = _object(
        OF_SABOTAGE,
        REQUIRED_OF_SABOTAGE,
        name=_id(),
        claims=some,
        faults=TEXTS,
        do=orders,
        undo=orders,
    )
    broken = [{"required": ["faults"]}, {"required": ["do", "undo"]}]
    return {"type": "array", "items": {**one, "anyOf": broken}}


def _translations() -> dict[str, Any]:
    texts = _object(OF_TRANSLATION, ("claim",), otherwise=TEXTS)
    return {"type": "object", "additionalProperties": texts}
