"""`testbed claims`: lists, narrows, shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from catalogues import claims

from testbed import cli

if TYPE_CHECKING:
    import pytest

CONTRADICTED = [
    claim.id
    for claim in claims().values()
    if "contradicted" in {claim.expect, *(other.expect for other in claim.otherwise)}
]


def test_all_are_listed_in_the_order_of_the_documents(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["claims"]) == 0
    said = capsys.readouterr()
    assert [line.split()[1] for line in said.out.splitlines()] == list(claims())
    assert f"{len(claims())} of {len(claims())} claims" in said.err


def test_options_narrow_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["claims", "--verdict", "contradicted", "--json"]) == 0
    assert [c["id"] for c in json.loads(capsys.readouterr().out)] == CONTRADICTED
    assert cli.run(["claims", "--document", "002", "--kind", "arith", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found
    assert {(c["document"], c["kind"]) for c in found} == {("002", "arith")}
    assert cli.run(["claims", "--needs", "flannel-udp", "--json"]) == 0
    assert all("flannel-udp" in c["needs"] for c in json.loads(capsys.readouterr().out))
    assert cli.run(["claims", "--kind", "nonsense"]) == 2


def test_one_is_shown_with_its_check(capsys: pytest.CaptureFixture[str]) -> None:
    name = CONTRADICTED[0]
    assert cli.run(["claims", "show", name]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for text in (claims()[name].claim, claims()[name].check, claims()[name].why):
        assert " ".join(text.split()) in said
    assert cli.run(["claims", "show", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == claims()[name].to_dict()


def test_how_it_is_run_and_where_its_test_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    name = CONTRADICTED[0]
    assert cli.run(["claims", "show", name]) == 0
    said = capsys.readouterr().out
    assert "checked by shipped/test_" in said
    assert f"testbed verify --all --claim {name}\n" in said
    assert f"or testbed verify LAB --claim {name} " in said


def test_a_definition_has_no_test(capsys: pytest.CaptureFixture[str]) -> None:
    definition = next(c.id for c in claims().values() if not c.is_testable)
    assert cli.run(["claims", "show", definition]) == 0
    said = capsys.readouterr().out
    assert "\n  checked by" not in said
    assert "run it" not in said


def test_a_slip_of_the_pen_is_helped(capsys: pytest.CaptureFixture[str]) -> None:
    name = CONTRADICTED[0]
    assert cli.run(["claims", "show", name[:-1]]) == 2
    assert f"did you mean {name!r}?" in capsys.readouterr().err
