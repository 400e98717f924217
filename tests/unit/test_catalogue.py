"""The shipped catalogue: each claim well formed, and decided by one test, no more and no less."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

from catalogues import claims, shipped
from cookbook import recipes

from testbed import pytest_checks
from testbed.catalogues.shipped import FOLDER
from testbed.claims.model import Kind, Verdict, feature_words
from testbed.roles.kubernetes.section import PLUGINS
from testbed.topology import load, names
from testbed.topology.load import Overrides


def marked_tests() -> dict[str, list[str]]:
    """The tests of the suites that carry a claim's mark, read without running anything."""
    found: dict[str, list[str]] = {}
    for name, node, _ in functions():
        for claim in marks("testbed_claim", node.decorator_list):
            found.setdefault(claim, []).append(name)
    return found


def functions() -> Iterator[tuple[str, ast.FunctionDef, ast.Module]]:
    """Each function of the suites as file::name, with its file."""
    for path in sorted(FOLDER.glob("test_*.py")):
        module = parsed(path)
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.name}::{node.name}", node, module


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def marks(name: str, found: Iterable[ast.expr]) -> Iterator[str]:
    """The arguments of the marks of a name."""
    for mark in found:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == f"pytest.mark.{name}":
            yield from map(ast.literal_eval, mark.args)


def of_module(module: ast.Module) -> Iterator[ast.expr]:
    """The marks in a module's ``pytestmark``: one, or a list of them."""
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from node.value.elts if isinstance(node.value, ast.List) else [node.value]


def marks_anywhere() -> Counter[str]:
    """Count the marks in the code of each file, also where marked_tests does not look."""
    found: Counter[str] = Counter()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(parsed(path)):
            named = isinstance(node, ast.Attribute) and node.attr == "testbed_claim"
            if named and ast.unparse(node).endswith("mark.testbed_claim"):
                found[path.name] += 1
    return found


# -- the shipped one -----------------------------------------------------------


def test_all_documents_are_there_in_order() -> None:
    documents = [claim.document for claim in claims().values()]
    assert documents == sorted(documents)
    assert list(dict.fromkeys(documents)) == list(shipped().documents)
    others = {"catalogue"}
    assert set(documents) == {path.stem for path in FOLDER.glob("*.yaml")} - others


def test_ids_are_words_and_the_keys() -> None:
    for key, claim in claims().items():
        assert key == claim.id
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key), key


def test_every_claim_is_complete() -> None:
    for claim in claims().values():
        for text in (claim.place, claim.claim, claim.check):
            assert text, claim.id
            assert text == text.strip(), claim.id
        assert claim.kind in get_args(Kind), claim.id
        assert claim.expect in get_args(Verdict), claim.id
        assert claim.needs, claim.id
        assert len(set(claim.needs)) == len(claim.needs), claim.id
        assert claim.expect in {"confirmed", "not testable"} or claim.why, claim.id


def test_every_claim_expects_what_a_check_can_come_to() -> None:
    for claim in claims().values():
        expected = {claim.expect, *(other.expect for other in claim.otherwise)}
        if claim.is_testable:
            assert expected - {"skipped"} <= {"confirmed", "conditional", "contradicted"}, claim.id
            assert claim.expect != "skipped", claim.id
        else:
            assert expected == {"not testable"}, claim.id


def features_of_shipped_labs() -> list[set[str]]:
    """Return what each shipped topology, `verify --all` variant and network plugin has."""
    labs = [load(name) for name in names()] + [wanted.load() for wanted in shipped().labs]
    labs += [load("k8s-two-node", Overrides(cni=plugin)) for plugin in PLUGINS]
    return [pytest_checks.features(topology) for topology in labs]


def test_a_feature_that_a_lab_has_is_a_word_of_the_catalogue(tmp_path: Path) -> None:
    """A feature that only a recipe of the cookbook has is for the claims of users."""
    had = set().union(*features_of_shipped_labs())
    for recipe in recipes():
        had |= pytest_checks.features(load(recipe.write(tmp_path)))
    assert had == set(feature_words()), "none is missing, none is had by no lab"


def test_what_a_claim_needs_is_had_by_a_shipped_lab() -> None:
    labs = features_of_shipped_labs()
    for claim in claims().values():
        assert any(set(claim.needs) <= lab for lab in labs), (claim.id, claim.needs)


def test_every_claim_has_one_test_and_every_mark_a_claim() -> None:
    marked = marked_tests()
    testable = {claim.id for claim in claims().values() if claim.is_testable}
    assert sorted(set(marked) - testable) == [], "marks without a claim that can be tested"
    assert sorted(testable - set(marked)) == [], "claims without a test"
    assert {claim: tests for claim, tests in marked.items() if len(tests) > 1} == {}


def test_what_an_entry_needs_its_test_is_marked_with() -> None:
    """The mark decides where the test runs, the entry which labs are brought up for it.

    The mark may ask for more, such as ``gateway``, where the statement itself does not.
    """
    catalogued = claims()
    for name, node, module in functions():
        marked = set(marks("testbed_needs", [*node.decorator_list, *of_module(module)]))
        assert marked <= set(feature_words()), name
        for claim in marks("testbed_claim", node.decorator_list):
            needs = set(catalogued[claim].needs)
            if needs == {"none"}:
                assert marked <= {"none"}, (claim, name)
            else:  # any lab has netns
                assert needs - {"netns"} <= marked - {"none"}, (claim, name)
                assert marked, (claim, name)


def test_no_mark_is_overlooked() -> None:
    marked = [name for names in marked_tests().values() for name in names]
    assert Counter(name.partition("::")[0] for name in marked) == marks_anywhere()


def test_no_test_hides_another_of_the_same_name() -> None:
    for path in FOLDER.glob("test_*.py"):
        tree = parsed(path)
        seen = Counter(node.name for node in tree.body if isinstance(node, ast.FunctionDef))
        assert [name for name, count in seen.items() if count > 1] == [], path.name
