"""Saved walks: what was written is read again, and what is wrong is named by its place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from walks import across, all_walks

from testbed import cli
from testbed.errors import UsageError
from testbed.walk.model import Walk
from testbed.walk.saved import load, schema


@pytest.mark.parametrize("walk", all_walks().values(), ids=all_walks())
def test_a_saved_walk_is_the_same_when_it_is_read(walk: Walk, tmp_path: Path) -> None:
    path = tmp_path / "walk.json"
    path.write_text(json.dumps(walk.to_dict()))
    assert load(path) == Walk.load(str(path)) == walk
    assert Walk.from_dict(walk.to_dict()) == walk


@pytest.mark.parametrize("walk", all_walks().values(), ids=all_walks())
def test_the_schema_holds_for_it(walk: Walk) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(walk.to_dict(), schema(), cls=jsonschema.Draft202012Validator)


def test_the_schema_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["schema", "walk"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


def changed(*path: Any, to: Any = None, without: str = "") -> dict[str, Any]:
    """A saved walk with one value changed or left out."""
    data: dict[str, Any] = json.loads(json.dumps(across().to_dict()))
    place: Any = data
    for key in path[:-1] if not without else path:
        place = place[key]
    if without:
        del place[without]
    else:
        place[path[-1]] = to
    return data


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (changed("lab", to=3), "lab"),
        (changed("legs", 0, "hops", 2, "kind", to="car"), "legs[0].hops[2].kind"),
        (changed("legs", 0, "hops", 1, "view", "ttl", to="64"), "legs[0].hops[1].view.ttl"),
        (changed("legs", 0, "hops", 1, "view", "ttl", to=True), "legs[0].hops[1].view.ttl"),
        (changed("legs", 0, "hops", 1, "view", "frame", to="xx"), "legs[0].hops[1].view.frame"),
        (changed("legs", 0, "hops", 1, "spot", to=None), "legs[0].hops[1].spot"),
        (changed("legs", 0, "hops", 1, "seconds", to="now"), "legs[0].hops[1].seconds"),
        (changed("legs", 0, "hops", 1, without="spot"), "legs[0].hops[1].spot"),
        (changed("legs", to={}), "legs"),
        (changed("names", "10.168.0.2", to=[]), "names.10.168.0.2"),
        (changed("legs", 0, without="arrived"), "legs[0].arrived"),
    ],
)
def test_what_is_wrong_is_named_by_its_place(data: dict[str, Any], place: str) -> None:
    with pytest.raises(UsageError) as found:
        Walk.from_dict(data)
    assert found.value.what.startswith((f"{place}:", f"{place} "))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema(), cls=jsonschema.Draft202012Validator)


def test_fields_of_a_later_version_are_left_alone() -> None:
    data = copy.deepcopy(across().to_dict())
    data["colour"] = data["legs"][0]["hops"][0]["colour"] = "blue"
    assert Walk.from_dict(data) == across()


@pytest.mark.parametrize("data", [None, [], 3, {}, {"format": 2, "legs": []}, {"legs": []}])
def test_another_thing_is_no_walk(data: Any) -> None:
    with pytest.raises(UsageError):
        Walk.from_dict(data)


@pytest.mark.parametrize("text", ["", "{", '{"format": 1}', "[" * 100_000, "\xff"])
def test_a_file_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "walk.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as found:
        load(path)
    assert found.value.where.startswith(str(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as found:
        load(tmp_path / "none.json")
    assert found.value.where == str(tmp_path / "none.json")


@pytest.mark.parametrize("walk", all_walks().values(), ids=all_walks())
def test_the_brief_form_is_the_same_walk_without_frames(walk: Walk) -> None:
    text = walk.brief()
    assert "\n" not in text
    assert len(text) < len(json.dumps(walk.to_dict()))
    data = json.loads(text)
    jsonschema.validate(data, schema(), cls=jsonschema.Draft202012Validator)
    read = Walk.from_dict(data)
    assert read.path == walk.path
    assert [hop.facts for leg in read.legs for hop in leg.hops] == [
        hop.facts for leg in walk.legs for hop in leg.hops
    ]
    assert all(not hop.view.frame for leg in read.legs for hop in leg.hops if hop.view)
