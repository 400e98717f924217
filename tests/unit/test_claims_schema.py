"""The schemas of a catalogue's files: valid, true of the shipped ones, and strict."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from catalogues import shipped
from pages import write_files

from testbed import cli
from testbed.claims.schema import schemas
from testbed.cli.schema import OF_CATALOGUES

FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def kind_of(path: Path) -> str:
    if path.parent.name == "translations":
        return "translations"
    return {"catalogue.yaml": "catalogue", "sabotages.yaml": "sabotages"}.get(path.name, "document")


def validator(kind: str) -> jsonschema.Draft202012Validator:
    schema = schemas()[kind]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def check(kind: str, data: Any) -> None:
    validator(kind).validate(data)


def test_they_hold_for_the_shipped_catalogue_and_the_page(tmp_path: Path) -> None:
    folders = [*shipped().folders, write_files("claims.md", tmp_path) / "claims"]
    paths = [
        path
        for folder in folders
        for path in (*folder.glob("*.yaml"), *folder.glob("translations/*.yaml"))
    ]
    assert {kind_of(path) for path in paths} == set(schemas()) == set(OF_CATALOGUES)
    for path in paths:
        check(kind_of(path), yaml.load(path.read_bytes(), FAST))


CLAIM = {
    "id": "a", "place": "p", "claim": "c", "kind": "state", "needs": ["netns"],
    "expect": "confirmed", "check": "k",
}  # fmt: skip
DOCUMENT = {"title": "t", "claims": [CLAIM]}
BROKEN = [{"name": "a", "what": "w", "claims": ["a"], "faults": ["partition n1"]}]


@pytest.mark.parametrize(
    ("kind", "good", "path", "value"),
    [
        ("document", DOCUMENT, ["titel"], "x"),
        ("document", DOCUMENT, ["link"], "javascript:x"),
        ("document", DOCUMENT, ["claims", 0, "kind"], "sttae"),
        ("document", DOCUMENT, ["claims", 0, "needs"], []),
        ("document", DOCUMENT, ["claims", 0, "expect"], "skipped"),
        ("document", DOCUMENT, ["claims", 0, "id"], "a b"),
        ("document", DOCUMENT, ["titles"], "x"),
        ("document", DOCUMENT, ["claims", 0, "needs"], "netns"),
        ("document", DOCUMENT, ["claims", 0, "quoted"], "x"),
        ("document", DOCUMENT, ["claims", 0, "otherwise"], "x"),
        ("document", DOCUMENT, ["claims", 0, "otherwise"], [{"expect": "confirmed", "why": "x"}]),
        ("catalogue", {"labs": [{"topology": "x"}]}, ["labs", 0, "only"], "x"),
        ("catalogue", {"labs": [{"topology": "x"}]}, ["labs", 0, "documents"], "x"),
        ("catalogue", {"labs": [{"topology": "x"}]}, ["labs", 0, "measures"], "no"),
        ("catalogue", {"labs": [{"topology": "x"}]}, ["labs", 0, "nodes"], "three"),
        ("sabotages", BROKEN, [0, "do"], ["ls"]),
        ("sabotages", BROKEN, [0, "claims"], []),
        ("translations", {"a": {"claim": "x"}}, ["a", "check"], "x"),
    ],
)
def test_they_refuse_what_the_loader_refuses(
    kind: str, good: Any, path: list[str | int], value: Any
) -> None:
    check(kind, good)
    bad = copy.deepcopy(good)
    at = bad
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        check(kind, bad)


@pytest.mark.parametrize("kind", OF_CATALOGUES)
def test_the_command_prints_them(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema", kind]) == 0
    assert json.loads(capsys.readouterr().out) == schemas()[kind]
